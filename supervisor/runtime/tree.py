"""Which processes belong to an instance: Linux, /proc.

The supervisor is a child subreaper, so a process whose parent dies becomes a child of the
supervisor, however often it forked or called setsid. All processes of an instance are therefore
below its leader, or below a child of ours that bears the instance's mark.
"""

from __future__ import annotations

import ctypes
import os

MARK = "LLM_SUPERVISOR_INSTANCE"
"""Environment variable that every process of an instance inherits."""

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """From now on orphaned descendants become our children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children(pid: int) -> list[int]:
    """Direct children of a process; none if it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as stream:
                found += map(int, stream.read().split())
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


def mark_of(pid: int) -> str | None:
    """The mark in a process's environment; None if it has none, or is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            variables = stream.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = f"{MARK}=".encode()
    for variable in variables:
        if variable.startswith(prefix):
            return os.fsdecode(variable[len(prefix) :])
    return None


def marked(prefix: str) -> dict[int, str]:
    """All processes of this machine whose mark begins with ``prefix``: pid and mark."""
    marks = {int(pid): mark_of(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()}
    return {pid: mark for pid, mark in marks.items() if mark and mark.startswith(prefix)}


def name_of(pid: int) -> str:
    """The command of a process, for people."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = stream.read().replace(b"\0", b" ").decode(errors="replace").strip()
        return words[:80] or f"pid {pid}"
    except OSError:
        return f"pid {pid}"
