"""From what an earlier supervisor knew and what is found running to what to go on from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State, Status
from supervisor.core.plan import candidates
from supervisor.core.resume import found_running, stopped
from supervisor.core.rollout import Member
from supervisor.daemon.state import State as Known
from supervisor.runtime.leftovers import Leftover, runs


@dataclass(frozen=True, slots=True)
class Adoption:
    known: Known
    """With statuses that tell what runs."""
    strays: tuple[str, ...]
    """Instances that have no leader any more, but left something behind: to be killed."""
    unknown: tuple[Leftover, ...]
    """Nobody can say what it is: to be ended before anything starts."""

    @property
    def adopted(self) -> list[Member]:
        return [one for one in self.known.members if one.status.pid is not None]


def survey(
    known: Known,
    found: Sequence[Leftover],
    wanted: Mapping[str, InstanceSpec],
    born: Callable[[int], int | None],
    *,
    now: float,
) -> Adoption:
    """``known`` may be stale, or nothing at all: what runs has the last word.

    ``found`` is the oldest first; ``born`` tells the start time of a pid that lives.
    """
    return _Survey(known, found, wanted, born, now).adoption()


class _Survey:
    def __init__(
        self,
        known: Known,
        found: Sequence[Leftover],
        wanted: Mapping[str, InstanceSpec],
        born: Callable[[int], int | None],
        now: float,
    ) -> None:
        self._known = known
        self._found: dict[str, list[Leftover]] = {}
        for one in found:
            self._found.setdefault(one.instance, []).append(one)
        self._forms = {form.name: form for one in wanted.values() for form in candidates(one)}
        self._born = born
        self._now = now
        self._counts = dict(known.counts)
        """Also of what is let go here: the runs of a name only ever grow."""
        self._strays: list[str] = []
        self._unknown: list[Leftover] = []

    def adoption(self) -> Adoption:
        members = [self._noted(one) for one in self._known.members]
        members += [self._not_noted(name) for name in list(self._found)]
        kept = tuple(one for one in members if one is not None)
        known = replace(self._known, members=kept, counts=self._counts)
        return Adoption(known, tuple(self._strays), tuple(self._unknown))

    def _noted(self, member: Member) -> Member | None:
        """An instance that the state tells of."""
        status = member.status
        processes = self._found.pop(member.name, [])
        newest = _leader(processes)
        if newest is not None and newest.run > status.run:  # the note of it was not written
            return self._found_running(member, newest, processes)
        if status.pid is not None:  # if it has ended, whoever adopts it is told so
            return member
        awaited = status.state in (State.STARTING, State.STOPPING)
        if awaited and newest is not None and newest.run == status.run:
            there = replace(status, pid=newest.pid, born=newest.born, started_at=self._now)
            return replace(member, status=there)
        if processes:
            self._strays.append(member.name)
        if status.state is State.STOPPING:  # before it came to be, and whoever asked for it stays
            return replace(member, status=stopped(status))
        if awaited and not member.spec.is_launchable:
            self._counts[member.name] = (status.run, status.epoch)
            return None  # it never came to be; what is wanted in its place is started anew
        return member

    def _not_noted(self, name: str) -> Member | None:
        processes = self._found.pop(name)
        leader = _leader(processes)
        if leader is not None and name in self._forms:
            form = self._forms[name]
            run, epoch = self._counts.pop(name, (0, 0))
            return self._found_running(
                Member(form, Status(run=run, epoch=epoch)), leader, processes
            )
        self._is_unknown(name, Status(), processes)
        return None

    def _is_unknown(self, name: str, status: Status, processes: Sequence[Leftover]) -> None:
        run, epoch = self._counts.get(name, (0, 0))
        latest = max(one.run for one in processes)
        self._counts[name] = (max(run, status.run, latest), max(epoch, status.epoch))
        self._unknown += processes

    def _found_running(
        self, member: Member, leader: Leftover, processes: Sequence[Leftover]
    ) -> Member | None:
        """It is adopted if the file says what it is, by name and launch."""
        form = self._forms.get(member.name)
        if form is None or not _is(leader, form) or self._born(leader.pid) != leader.born:
            self._is_unknown(member.name, member.status, processes)
            return None
        status = found_running(
            member.status,
            leader.run,
            leader.pid,
            leader.born,
            form.startup.deadline if form.startup else None,
            now=self._now,
        )
        return replace(member, spec=form, status=status)


def _leader(processes: Sequence[Leftover]) -> Leftover | None:
    """The first process of the latest run."""
    leaders = [one for one in processes if one.is_leader]
    latest = max((one.run for one in leaders), default=0)
    return next((one for one in leaders if one.run == latest), None) if latest else None


def _is(leader: Leftover, form: InstanceSpec) -> bool:
    """The command line, if it is known, tells a leader from a stray that has outlived its own."""
    same_program = (
        not form.is_launchable
        or leader.command[:2] == form.argv[:2]
        or runs(leader.command, form.argv)
    )
    return leader.launch == form.launch and leader.port == form.port and same_program
