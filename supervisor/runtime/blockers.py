"""Why a process does not end: what it is doing, from /proc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.runtime import tree


@dataclass(frozen=True, slots=True)
class Blocker:
    """A process that is still there."""

    pid: int
    command: str
    doing: str
    """In words, as after "it is"."""

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command}), {self.doing}"


def blockers(pids: Iterable[int]) -> list[Blocker]:
    """Those of these processes that are still there, and what each is doing."""
    found = (_blocker(pid) for pid in pids)
    return [one for one in found if one is not None]


def _blocker(pid: int) -> Blocker | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    pairs = (line.partition(":") for line in text.splitlines())
    status = {key: value.strip() for key, _, value in pairs}
    # A zombie has no command line any more, only its name.
    command = tree.command_line(pid) or status.get("Name", "?")
    return Blocker(pid, command, _doing(pid, status))


def _doing(pid: int, status: dict[str, str]) -> str:
    """State and TracerPid are described in proc_pid_status(5)."""
    state, tracer = status.get("State", "?")[:1], int(status.get("TracerPid", "0"))
    held = f" by pid {tracer} ({tree.name_of(tracer)}), which traces it" if tracer else ""
    match state:
        case "t":
            return f"stopped{held or ' by a debugger'}"
        case "T":
            return "stopped (SIGSTOP)"
        case "Z" if tracer:
            return f"dead, but kept{held}"
        case "Z":
            return "dead, and about to be reaped"
        case "D":
            return (
                f"in an uninterruptible sleep{_where(pid)}: the kernel waits for a device or a disk"
            )
        case "R":
            return f"running{held and f', traced{held}'}"
        case _:
            return f"sleeping{_where(pid)}"


def _where(pid: int) -> str:
    """The kernel function that it sleeps in, as far as we may know."""
    try:
        function = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    return f" in {function}" if function not in ("", "0") else ""
