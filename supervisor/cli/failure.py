"""How a verb ends, and what it raises when it cannot do what it was asked."""

from __future__ import annotations

DONE, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3
"""Exit statuses: done; it failed; wrong usage or invalid file; no supervisor is running."""


class Failure(Exception):
    """Shown to the user as it is; ``status`` becomes the exit status."""

    def __init__(self, text: str, status: int, *, prefix: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.prefix = prefix
