"""What an earlier supervisor has left running, found by the certificate that each process bears.

Every process of an instance inherits two variables: its mark (`tree.MARK`) and its birth. They tell
all that is needed to adopt it, also if nothing else has been noted of it anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.runtime import tree

BIRTH = "LLM_SUPERVISOR_BIRTH"
"""`<run>:<port or nothing>:<launch digest>` of the instance that a process belongs to."""
LISTEN_FD = "LLM_SUPERVISOR_LISTEN_FD"
"""Number under which an instance has inherited its listening socket."""

_LEADER = "LLM_SUPERVISOR_LEADER"
"""Its own pid, in what `/proc` shows of a leader that was forked from a template: what that forks
shows the same, and has another pid."""

_PIDFD_GETFD = 438
"""System call number, the same on x86-64 and arm64 (pidfd_getfd(2))."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One living process of an instance."""

    pid: int
    born: int
    instance: str
    run: int
    port: int | None
    launch: str
    is_leader: bool
    """It leads a session as a program of its own, or was forked to be one, and its parent is no
    process of this cluster's instances: the leader of its instance, or, seldom, a stray that looks
    like one."""
    command: tuple[str, ...]


def birth(run: int, port: int | None, launch: str) -> str:
    return f"{run}:{'' if port is None else port}:{launch}"


def find(mark: str) -> list[Leftover]:
    """All living processes of the cluster with this mark, the oldest first."""
    marks = tree.marked(f"{mark}/")
    found = [_look_at(pid, name.partition("/")[2], marks) for pid, name in marks.items()]
    return sorted((one for one in found if one is not None), key=lambda one: (one.born, one.pid))


def _look_at(pid: int, instance: str, marks: dict[int, str]) -> Leftover | None:
    stat = tree.stat_of(pid)
    if stat is None or stat.state in "ZX" or pid == os.getpid() or not _is_of_us(pid):
        return None
    run, port, launch = _read_birth(tree.variable_of(pid, BIRTH) or "")
    return Leftover(
        pid=pid,
        born=stat.born,
        instance=instance,
        run=run,
        port=port,
        launch=launch,
        is_leader=stat.session == pid and stat.parent not in marks and _began_as_it(pid, stat),
        command=_command(pid),
    )


def _began_as_it(pid: int, stat: tree.Stat) -> bool:
    return stat.has_executed or tree.variable_of(pid, _LEADER) == str(pid)


def _is_of_us(pid: int) -> bool:
    """Anybody can give a process of his own our mark; where root supervises, we could see it."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _read_birth(text: str) -> tuple[int, int | None, str]:
    """Nothing that could fit, where it says nonsense."""
    run, _, rest = text.partition(":")
    port, _, launch = rest.partition(":")
    try:
        return int(run), int(port) if port else None, launch
    except ValueError:
        return 0, None, ""


def _command(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return tuple(os.fsdecode(word) for word in stream.read().split(b"\0")[:-1])
    except OSError:
        return ()


def runs(command: Sequence[str], argv: Sequence[str]) -> bool:
    """Whether a process with this command line is what was started as ``argv``.

    A script's interpreter stands before it, and the script by its path.
    """
    if tuple(command) == tuple(argv):
        return True
    given = tuple(argv[1:])
    before = len(command) - len(given)
    return before > 0 and tuple(command[before:]) == given


def listening_socket(pid: int) -> socket.socket | None:
    """Our own copy of the listening socket that a process was started with; None if it has none.

    Raises OSError where the kernel does not let us (pidfd_getfd needs the rights of ptrace(2)).
    """
    given = tree.variable_of(pid, LISTEN_FD)
    if given is None or not given.isdigit():
        return None
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.syscall(_PIDFD_GETFD, process, int(given), 0)
        if descriptor < 0:
            cause = ctypes.get_errno()
            raise OSError(cause, os.strerror(cause))
    finally:
        os.close(process)
    os.set_inheritable(descriptor, False)
    found = socket.socket(fileno=descriptor)
    with contextlib.suppress(OSError):
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return found
    found.close()
    return None
