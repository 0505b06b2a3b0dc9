"""Which processes belong to an instance: Linux, /proc.

The supervisor is a child subreaper, so a process whose parent dies becomes a child of the
supervisor, however often it forked or called setsid. All processes of an instance are therefore
below its leader, or below a child of ours that bears the instance's mark.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass

from supervisor.runtime.descriptors import with_reserve

MARK = "LLM_SUPERVISOR_INSTANCE"
"""Variable that every process of an instance inherits: `<mark of the cluster>/<instance>`."""

_PR_SET_CHILD_SUBREAPER = 36
_PF_FORKNOEXEC = 0x40
"""Of the kernel's include/linux/sched.h."""


def become_subreaper() -> None:
    """From now on orphaned descendants become our children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children(pid: int) -> list[int]:
    """Direct children of a process; none if it is gone."""
    found: list[int] = []
    try:
        for thread in with_reserve(lambda: os.listdir(f"/proc/{pid}/task")):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, itself left out."""
    found: list[int] = []
    todo = children(pid)
    while todo:
        found += todo
        todo = [child for parent in todo for child in children(parent)]
    return found


def variable_of(pid: int, name: str) -> str | None:
    """A variable of the environment that a process was started with; None if it has none, is gone,
    or a zombie."""
    try:
        variables = _read(f"/proc/{pid}/environ").split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = f"{name}=".encode()
    for variable in variables:
        if variable.startswith(prefix):
            return os.fsdecode(variable[len(prefix) :])
    return None


def mark_of(pid: int) -> str | None:
    """The mark in a process's environment; None if it has none, or is gone, or a zombie."""
    return variable_of(pid, MARK)


def pids() -> list[int]:
    """Of all processes of this machine."""
    return [int(pid) for pid in with_reserve(lambda: os.listdir("/proc")) if pid.isdigit()]


def marked(prefix: str) -> dict[int, str]:
    """All processes of this machine whose mark begins with ``prefix``: pid and mark."""
    marks = {pid: mark_of(pid) for pid in pids()}
    return {pid: mark for pid, mark in marks.items() if mark and mark.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Stat:
    """What `/proc/PID/stat` says (proc_pid_stat(5))."""

    state: str
    """One letter: R, S, D, T, t, Z, ..."""
    parent: int
    session: int
    has_executed: bool
    """Since it was forked: it is a program of its own, and no mere copy of its parent."""
    born: int
    """Start time in clock ticks since the boot. A pid may be used again; the two together not."""
    exit_status: int
    """As of waitpid(2); of a zombie only, and where we may see it."""


def stat_of(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        has_executed=not int(fields[6]) & _PF_FORKNOEXEC,
        born=int(fields[19]),
        exit_status=int(fields[49]),
    )


def born(pid: int) -> int | None:
    """Start time of a living process (see ``Stat``); None for a zombie, and if there is none."""
    stat = stat_of(pid)
    return stat.born if stat is not None and stat.state not in "ZX" else None


def take_usual_oom_score(pid: int) -> None:
    """A supervisor that the kernel is to kill last (systemd: OOMScoreAdjust) does not want that for
    a child of its own, which inherits it."""
    with contextlib.suppress(OSError):
        with open("/proc/self/oom_score_adj", "rb") as stream:
            own = int(stream.read())
        if own < 0:
            with open(f"/proc/{pid}/oom_score_adj", "wb") as stream:
                stream.write(b"0")


def command_line(pid: int) -> str:
    """How a process was started, shortened for people; empty if it is gone, or a zombie."""
    try:
        words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
        return " ".join(words.split())[:80]
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """The command of a process, for people."""
    return command_line(pid) or f"pid {pid}"


def _read(path: str) -> bytes:
    def read() -> bytes:
        with open(path, "rb") as stream:
            return stream.read()

    return with_reserve(read)
