"""What a supervisor must have for itself before it starts anything, besides its run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from supervisor.runtime import tree
from supervisor.runtime.rundir import AlreadyRunning, RunDirError


class LeftBehind(AlreadyRunning):
    """A supervisor was killed, and what it ran goes on. Adoption is not built yet."""

    def __init__(self, found: Mapping[int, str]) -> None:
        names = ", ".join(f"{mark.partition('/')[2]} (pid {pid})" for pid, mark in found.items())
        RunDirError.__init__(
            self,
            f"an earlier supervisor was killed, and left running: {names}; "
            f"end them first: kill {' '.join(map(str, found))}",
        )


class AlreadyLogging(AlreadyRunning):
    def __init__(self, log_dir: Path) -> None:
        RunDirError.__init__(
            self,
            f"another cluster writes its logs to {log_dir}; name another folder with --log-dir, "
            "or with log_dir in the file",
        )


def refuse_leftovers(mark: str) -> None:
    """Never a second copy of a model beside the first."""
    found = tree.marked(f"{mark}/")
    if found:
        raise LeftBehind(found)


def claim_log_dir(log_dir: Path) -> None:
    """One cluster writes into a log folder: two would overwrite each other's lines.

    Held until we end. Raises RunDirError, also where nothing can be written.
    """
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(log_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RunDirError(
            f"cannot write logs: {error.strerror}: {error.filename}; name a folder with --log-dir"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyLogging(log_dir) from None
