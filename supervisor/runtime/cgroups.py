"""A control group for each instance, where a service manager has delegated ours to us: cgroup v2.

A process can shed the mark in its environment, its session and its parent. Its control group stays
with it and with all that it forks. Nothing here touches a group that was not
delegated (systemd: `Delegate=yes`, which shows as an attribute of the folder).

    <delegated>/                    here systemd puts each new supervisor
    <delegated>/supervisor/         where it moves to
    <delegated>/instances/<name>/   one instance, with all that came of it

No controllers are enabled below: a group that hands controllers down cannot hold processes itself
(cgroups(7), "no internal processes"), and systemd before 254 could not put the next supervisor into
it then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from supervisor.runtime import tree
from supervisor.runtime.descriptors import is_exhaustion, with_reserve

log = logging.getLogger(__name__)

DELEGATED = "LLM_SUPERVISOR_DELEGATED"
"""Variable in which a unit names itself to say that it has `Delegate=yes`."""
_OWN = "supervisor"
_CONTROL = ".control"
"""Where systemd puts what it runs beside a delegated service's main process: ExecStopPost."""
_KILL_PATIENCE = 5.0
"""Seconds to wait for killed processes to be gone."""


class Cgroups:
    """The groups below ``base``, which is delegated to us. Nothing here raises OSError, as
    supervision has to go on without."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Cgroups | None:
        """Where we are; None if that is not cgroup v2, or not delegated to us."""
        own = own_group()
        if own is None:
            return None
        base = own.parent if own.name in (_OWN, _CONTROL) else own
        return cls(base) if _is_delegated(base, environ) else None

    def settle(self) -> bool:
        """Move ourselves out of the way; whether instances can have groups beside us."""
        try:
            (self.base / "instances").mkdir(exist_ok=True)
            _move(self._make(self.base / _OWN), os.getpid())
        except OSError as error:
            log.warning("cannot use the control group %s: %s; going on without", self.base, error)
            return False
        return True

    def open_entry(self, name: str) -> int | None:
        """A descriptor through which a process puts itself into an instance's group (``enter``),
        between fork and exec; None if there is none, and then ``place`` is what is left."""
        try:
            entry = self._make(self._group(name)) / "cgroup.procs"
            return with_reserve(lambda: os.open(entry, os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            return None  # ``place`` says why

    def place(self, name: str, pid: int) -> None:
        """Move a process that was just started, and what it has started since, into its group.

        What was forked and has left the tree before that is missed: see ``open_entry``.
        """
        try:
            group = self._make(self._group(name))
            _move(group, pid)
            # Whatever is forked from here on is born there; a moment ago it was not.
            moved = set(self.members(name))
            while strangers := set(tree.descendants(pid)) - moved:
                for stranger in strangers:
                    _move(group, stranger)
                moved |= strangers
        except OSError as error:
            log.warning("cannot give %s a control group: %s; going on without", name, error)

    def members(self, name: str) -> list[int]:
        """The processes in an instance's group; zombies are not among them."""
        return _processes(self._group(name))

    def instances(self) -> list[int]:
        """The same for all instances."""
        return _processes(self.base / "instances")

    def everything(self) -> list[int]:
        """All processes in the delegated group, ourselves too."""
        return _processes(self.base)

    def kill(self, name: str) -> None:
        """SIGKILL all in an instance's group, also what is being forked meanwhile."""
        try:
            with_reserve(lambda: (self._group(name) / "cgroup.kill").write_text("1"))
        except FileNotFoundError:  # no such group, or a kernel before 5.14
            self._kill_each(name)
        except OSError as error:
            log.warning("cannot kill the control group of %s: %s", name, error)
            self._kill_each(name)

    def remove(self, name: str) -> None:
        """Once it is empty; otherwise it stays."""
        for folder, _, _ in os.walk(self._group(name), topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _group(self, name: str) -> Path:
        # No file that the kernel puts there has a name that begins like this.
        return self.base / "instances" / f"@{name}"

    def _make(self, group: Path) -> Path:
        group.mkdir(parents=True, exist_ok=True)
        return group

    def _kill_each(self, name: str) -> None:
        end = time.monotonic() + _KILL_PATIENCE
        while (left := self.members(name)) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def enter(entry: int) -> None:
    """Called in a child between fork and exec: takes no lock, and never raises."""
    with contextlib.suppress(OSError):
        os.write(entry, b"0")


def own_group() -> Path | None:
    """The folder of our control group."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as stream:
            lines = [line.rstrip("\n") for line in stream]
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            mounts = [line.split() for line in stream]
    except OSError:
        return None
    place = next((line[3:] for line in lines if line.startswith("0::")), None)
    if place is None:
        return None
    for fields in mounts:  # proc(5): ... root, mount point, ..., "-", type, ...
        root, point, kind = fields[3], fields[4], fields[fields.index("-") + 1]
        if kind == "cgroup2" and Path(place).is_relative_to(root):
            return Path(point) / Path(place).relative_to(root)
    return None


def _is_delegated(group: Path, environ: Mapping[str, str]) -> bool:
    """systemd says so, to root (``trusted``) and to everybody (``user``, from 251 on). A user's own
    systemd does not, so there it is the unit that does."""
    said = environ.get(DELEGATED) == group.name
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            said = said or os.getxattr(group, name) == b"1"
    return said and os.access(group, os.W_OK)


def _move(group: Path, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        with_reserve(lambda: (group / "cgroup.procs").write_text(str(pid)))


def _processes(group: Path) -> list[int]:
    def look() -> list[int]:
        found: list[int] = []
        for folder, _, _ in os.walk(group, onerror=_raise_exhaustion):
            try:
                text = Path(folder, "cgroup.procs").read_text()
            except OSError as error:  # it is gone
                _raise_exhaustion(error)
            else:
                found += [int(pid) for pid in text.split() if pid != "0"]
        return found

    return with_reserve(look)


def _raise_exhaustion(error: OSError) -> None:
    if is_exhaustion(error):
        raise error
