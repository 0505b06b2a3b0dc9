"""The trivial process: it says itself when it was exec'd, so that nobody has to look for it."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_PIPE = 1 << 20
"""Bytes that may wait to be read: many thousand lines."""
_CHECK = 0.5
"""Seconds between two checks."""


@dataclass(frozen=True)
class Told:
    """What a process has said of itself; ``at`` is of the monotonic clock."""

    name: str
    pid: int
    at: float


class Tellers:
    """Trivial processes in a folder: their command lines, and what they say when they run."""

    def __init__(self, folder: Path, program: list[str]) -> None:
        """``program``: see below. ``check``, which is called now and then while something is
        awaited, raises an error if there is no more hope.
        """
        self.check: Callable[[], None] = lambda: None
        self._fifo = folder / "told.fifo"
        self._program = program
        os.mkfifo(self._fifo)
        self._descriptor = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
        self._rest = b""
        self.latest: dict[str, Told] = {}

    def close(self) -> None:
        os.close(self._descriptor)

    def command(self, name: str) -> list[str]:
        return [*self._program, str(self._fifo), name]

    def pids(self) -> set[int]:
        return {one.pid for one in self.latest.values()}

    def await_all(self, names: Collection[str], patience: float) -> list[Told]:
        """What each has said last; raises TimeoutError."""
        end = time.monotonic() + patience
        while missing := [name for name in names if name not in self.latest]:
            self._read(end, f"{len(missing)} of {len(names)} processes were not started")
        return [self.latest[name] for name in names]

    def await_successor(self, before: Told, patience: float) -> Told:
        end = time.monotonic() + patience
        while self.latest[before.name] == before:
            self._read(end, "a killed process was not started again")
        return self.latest[before.name]

    def _read(self, end: float, what: str) -> None:
        while not select.select([self._descriptor], [], [], _CHECK)[0]:
            self.check()
            if time.monotonic() > end:
                raise TimeoutError(f"{what} in time")
        *lines, self._rest = (self._rest + os.read(self._descriptor, _PIPE)).split(b"\n")
        for line in lines:
            name, pid, nanoseconds = line.decode().split()
            self.latest[name] = Told(name, int(pid), int(nanoseconds) / 1e9)


def program(folder: Path) -> list[str]:
    """Compiled into ``folder``; where there is no compiler, Python: ten milliseconds slower."""
    if compiler := shutil.which("cc"):
        target = folder / "told"
        subprocess.run([compiler, "-O1", "-o", str(target), str(_SOURCE)], check=True)
        return [str(target)]
    script = (
        "import os, signal, sys, time; now = time.monotonic_ns(); "
        "fifo = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK); "
        "os.write(fifo, f'{sys.argv[2]} {os.getpid()} {now}\\n'.encode()); os.close(fifo)\n"
        "while True: signal.pause()"
    )
    return [sys.executable, "-I", "-S", "-c", script]
