"""What a supervisor must have for itself before it starts anything, besides its run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from supervisor.runtime.rundir import AlreadyRunning, RunDirError


class AlreadyLogging(AlreadyRunning):
    def __init__(self, log_dir: Path) -> None:
        RunDirError.__init__(
            self,
            f"another cluster writes its logs to {log_dir}; name another folder with --log-dir, "
            "or with log_dir in the file",
        )


def claim_log_dir(log_dir: Path) -> int:
    """One cluster writes into a log folder: two would overwrite each other's lines.

    Held as long as the descriptor is open. Raises RunDirError, also where nothing can be written.
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
        os.close(lock)
        raise AlreadyLogging(log_dir) from None
    return lock
