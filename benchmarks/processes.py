"""Processes that end when the benchmark does, however it ends, and what /proc says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_PATIENCE = 5.0
_TIGHT = 0.0001
"""Seconds between two looks; without any pause we would take a core from those we time."""


def environment() -> dict[str, str]:
    """Ours, without what would make Python compile every module anew, or point elsewhere."""
    left_out = ("LLM_SUPERVISOR_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


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


def guard(token: str) -> subprocess.Popen[bytes]:
    """Ends all processes with ``token`` (`NAME=value`) in their environment when we die."""
    script = Path(__file__).parent.parent / "tests" / "guard.py"
    return subprocess.Popen([sys.executable, "-IS", str(script), token], stdin=subprocess.PIPE)


def variables(name: str) -> list[dict[str, str]]:
    """The environments of all processes that have this variable."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(PermissionError):
                words = _read(f"/proc/{entry}/environ").decode(errors="replace").split("\0")
                found.append(dict(word.split("=", 1) for word in words if "=" in word))
    return [one for one in found if name in one]


def children(pid: int) -> set[int]:
    """Children of a process's main thread."""
    return {int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()}


def command_line(pid: int) -> bytes:
    """A process's words, NUL-separated; empty if it is gone."""
    return _read(f"/proc/{pid}/cmdline")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, without its children's."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, float]:
    """Resident and proportional set size in MB (10^6 bytes)."""
    sizes = {}
    for line in _read(f"/proc/{pid}/smaps_rollup").decode().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            sizes[name] = int(rest.split()[0]) * 1024 / 1e6
    return sizes


@dataclass(frozen=True)
class Succession:
    """A kill -9, in seconds from the kill: the death, and the exec of the successor."""

    died: float
    """When the kernel reports it: to free a model's memory takes it a while."""
    replaced: float
    successor: int


def kill_and_await_successor(parent: int, pid: int) -> Succession:
    """kill -9, and wait until a new child of ``parent`` runs the same command line."""
    wanted, before = command_line(pid), children(parent)
    pidfd = os.pidfd_open(pid)
    try:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        died = None
        while (now := time.monotonic() - began) < _PATIENCE:
            if died is None and select.select([pidfd], [], [], 0)[0]:
                died = now
            for child in children(parent) - before:
                # Until it has called exec, a child shows the command line of its parent.
                if command_line(child) == wanted:
                    replaced = time.monotonic() - began
                    return Succession(died or replaced, replaced, child)
            time.sleep(_TIGHT)
    finally:
        os.close(pidfd)
    raise RuntimeError(f"no successor within {_PATIENCE:g} s for {wanted!r}")


def _read(path: str) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "rb") as stream:
        return stream.read()
    return b""
