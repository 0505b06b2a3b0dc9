"""How a verb ends when it cannot do what it was asked."""

from __future__ import annotations


class Failure(Exception):
    """Shown to the user as it is; ``status`` becomes the exit status."""

    def __init__(self, text: str, status: int, *, prefix: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.prefix = prefix
