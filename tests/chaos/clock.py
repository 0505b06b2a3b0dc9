"""A wall clock that jumps, as the cluster sees it; the machine's own is never touched.

libfaketime stands between the processes of the cluster and the C library. Monotonic clocks are left
alone, as a jump leaves them alone in the kernel.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path


class Clock:
    """``environ`` is what processes need to follow it; ``reason`` why it cannot be had."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.environ: dict[str, str] = {}
        self.reason = ""
        self.jump(0)
        library = _library()
        if library is None:
            self.reason = "libfaketime is not installed"
            return
        environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self.jump(10**6)
        if _seconds(environ) - _seconds({}) > 10**5:
            self.environ = environ
        else:
            self.reason = "libfaketime does not work on this machine"
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """From now on it is that much ahead of the true one; ``0`` sets it right."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


def forget(pids: Collection[int]) -> None:
    """Remove what libfaketime leaves in shared memory of processes that were killed."""
    for pid in pids:
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)


def _library() -> Path | None:
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return path if path.exists() else None


def _seconds(environ: dict[str, str]) -> float:
    """What time it is for a process with that environment."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import time; print(time.time())"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout) if done.returncode == 0 else 0.0
