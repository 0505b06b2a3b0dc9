"""Processes that end when the benchmark does, however it ends, and what /proc says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_GUARD = Path(__file__).parent.parent / "tests" / "guard.py"
_RUN = ("LLM_BENCHMARK_RUN", f"{os.getpid()}-{time.monotonic_ns()}")
"""The variable that all have in their environment which this run has started."""


# ---------------------------------------------------------------- starting and ending


def environment() -> dict[str, str]:
    """Ours, marked, without what makes Python compile every module anew, or points elsewhere."""
    left_out = ("LLM_SUPERVISOR_", "PYTHONDONTWRITEBYTECODE")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**ours, _RUN[0]: _RUN[1]}


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    env: dict[str, str],
    at_our_death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a process that gets ``at_our_death`` when we die. To be called by the main thread."""
    us = os.getpid()

    def end_with_us() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, at_our_death)
        if os.getppid() != us:
            os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=log.parent,
            start_new_session=True,  # Ctrl-C is for us; we end the others in order
            preexec_fn=end_with_us,
        )


def guard(token: str = "=".join(_RUN)) -> subprocess.Popen[bytes]:
    """Ends all processes with ``token`` (`NAME=value`) in their environment when we die."""
    command = [sys.executable, "-IS", str(_GUARD), token]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def of_this_run() -> set[int]:
    """All processes that this run has started, and what those have started."""
    token = "=".join(_RUN).encode()
    return {pid for pid in _all() if token in _read(f"/proc/{pid}/environ").split(b"\0")}


def end_all_of_this_run() -> None:
    """kill -9, until none is left: some start others while we kill."""
    while left := of_this_run():
        for pid in sorted(left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


# ---------------------------------------------------------------- what there is


def variables(name: str) -> list[dict[str, str]]:
    """The environments of all processes that have this variable."""
    found = []
    for pid in _all():
        words = _read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
        found.append(dict(word.split("=", 1) for word in words if "=" in word))
    return [one for one in found if name in one]


def children(pid: int) -> set[int]:
    """Children of a process's main thread."""
    return {int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()}


def with_descendants(pids: Iterable[int]) -> set[int]:
    """These, their children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found, queue = set[int](), list(pids)
    while queue:
        pid = queue.pop()
        found.add(pid)
        queue += children.get(pid, [])
    return found


def command_line(pid: int) -> list[str]:
    """A process's words; empty if it is gone."""
    return _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")[:-1]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of all threads of these processes so far, to the nanosecond."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                total += int((_read(f"/proc/{pid}/task/{thread}/schedstat") or b"0").split()[0])
    return total / 1e9


def memory(pids: Iterable[int], kind: str = "Pss") -> float:
    """Of all these together, in MB (10^6 bytes): ``Pss``, where what several processes share
    counts in parts, or ``Rss``.
    """
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/smaps_rollup").decode().splitlines():
            name, _, rest = line.partition(":")
            if name == kind:
                total += int(rest.split()[0]) * 1024
    return total / 1e6


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
