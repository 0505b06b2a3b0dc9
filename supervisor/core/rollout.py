"""How what runs becomes what is wanted, one step at a time and without a gap. Pure.

A *slot* is a replica of the file. One instance serves in it; during a surge a second one starts
beside it. ``next_steps`` looks at all that is there and says what can be done now. It remembers
nothing of how things came to be so: a new edit in the middle of a rollout, a crash, a restarted
supervisor are all just another state to go on from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State, Status
from supervisor.core.plan import candidates, form_of

ROLLOUT_TRIES = 3
"""Starts in a row that may fail before a rollout is given up."""

_BACK = "started again as it was, since the new one cannot be started"

_SERVING = frozenset({State.READY, State.UNREADY})
_WITHOUT_PROCESS = frozenset({State.STOPPED, State.BACKOFF, State.FAILED})


@dataclass(frozen=True, slots=True)
class Member:
    """One instance that is there."""

    spec: InstanceSpec
    status: Status
    leaving: bool = False
    """A rollout has told it to stop; it is forgotten when it has."""
    outdated: bool = False
    """It is to be replaced by its like: somebody asked for a restart."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> State:
        return self.status.state

    @property
    def stopped_on_purpose(self) -> bool:
        """By a person, or it has finished: a change of the file is no reason to start it."""
        return self.state is State.STOPPED and not self.status.wanted


@dataclass(frozen=True, slots=True)
class Failure:
    """A rollout that was given up in a slot."""

    launch: str
    """What could not be started; another one is another try."""
    instance: str
    """Whose log says more."""
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of a slot."""

    good: InstanceSpec | None = None
    """What was ready here last."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """A new instance."""

    spec: InstanceSpec
    reason: str


@dataclass(frozen=True, slots=True)
class Adjust:
    """The instance of that name is to be supervised by this; its process goes on."""

    spec: InstanceSpec


@dataclass(frozen=True, slots=True)
class Swap:
    """The instance of that name has no process: its next one is this."""

    spec: InstanceSpec
    reason: str
    start: bool
    """At once: it is down, and this may mend it."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Drain, stop and forget it."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """It has stopped, and nothing wants it any more."""

    instance: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give this slot's rollout up."""

    slot: str
    failure: Failure


Step = Launch | Adjust | Swap | Retire | Forget | Abandon


def next_steps(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
) -> list[Step]:
    """All that can be done now. Nothing to do is an empty list, and doing it leads nearer there."""
    slots = _slots(wanted, members, histories)
    steps: list[Step] = [Forget(one.name) for one in members if _is_gone(one)]
    for member in members:
        if member.leaving and member.status.wanted and not _is_gone(member):
            steps.append(Retire(member.name, "its successor has taken over"))
        elif member.spec.slot not in wanted and not member.leaving:
            steps.append(Retire(member.name, "it is no longer in the file"))
    services: dict[str, list[_Slot]] = {}
    for slot in slots:
        services.setdefault(slot.target.service, []).append(slot)
    for group in services.values():
        steps += _of_service(group)
    return list(_without_collisions(steps, members))


def serving(members: Iterable[Member]) -> dict[str, InstanceSpec]:
    """By slot, the instance that stands for it: the ready one, or whichever there is."""
    standing: dict[str, InstanceSpec] = {}
    for member in sorted(members, key=_rank):
        if not member.leaving:
            standing.setdefault(member.spec.slot, member.spec)
    return standing


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change has come: sentences for people."""

    under_way: list[str]
    failed: list[str]


def progress(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
    services: Collection[str] = (),
) -> Progress:
    """What is not in service yet, and what of these services (all, if none is named) cannot be."""
    under_way = [f"{one.name} finishes its requests and stops" for one in members if one.leaving]
    failed = []
    for slot in _slots(wanted, members, histories):
        concerned = not services or slot.target.service in services
        if slot.failure is not None and concerned:
            failed.append(_failure_sentence(slot))
        for member in slot.live:
            if member.stopped_on_purpose:
                continue
            if slot.form_of(member) is None:
                under_way.append(f"{member.name} is to be replaced")
            elif slot.failure is None and _cannot_start(member.status):
                if concerned:
                    failed.append(f"{member.name} cannot be started: {_why(member.status)}")
            elif member.state is not State.READY:
                under_way.append(f"{member.name} is {member.state}")
        if not slot.live:
            under_way.append(f"{slot.target.name} is to be started")
    return Progress(under_way, failed)


def _failure_sentence(slot: _Slot) -> str:
    assert slot.failure is not None
    kept = next((one.name for one in slot.live if one.state is State.READY), None)
    goes_on = f"; {kept} goes on as it was" if kept else ""
    return f"the rollout of {slot.target.slot} failed: {slot.failure.reason}{goes_on}"


# ---------------------------------------------------------------- one slot


@dataclass(frozen=True, slots=True)
class _Slot:
    target: InstanceSpec
    """What is to run here: what the file says or, if that cannot be started, what ran last."""
    asked: str
    """What the file says: its ``launch``."""
    goes_back: bool
    """The target is what ran last: here or in another replica, the new one cannot be started."""
    failure: Failure | None
    good: InstanceSpec | None
    live: list[Member]
    leaving: list[Member]

    def form_of(self, member: Member) -> InstanceSpec | None:
        """What the member is of the target already; None if it must be replaced."""
        has_process = member.state not in _WITHOUT_PROCESS  # else its next one is new anyway
        return None if member.outdated and has_process else form_of(member.spec, self.target)

    @property
    def fitting(self) -> list[Member]:
        return sorted((one for one in self.live if self.form_of(one)), key=_rank)

    @property
    def others(self) -> list[Member]:
        return sorted((one for one in self.live if not self.form_of(one)), key=_rank)

    @property
    def is_missing(self) -> bool:
        """Nothing is ready here that should be."""
        if any(one.state is State.READY for one in self.live):
            return False
        return not self.live or not all(one.stopped_on_purpose for one in self.live)

    @property
    def is_crowded(self) -> bool:
        """It has one instance more than it should, if only until that has stopped."""
        return len(self.live) + len(self.leaving) > 1

    def free(self) -> InstanceSpec | None:
        """A form of the target whose name nobody has."""
        taken = {one.name for one in (*self.live, *self.leaving)}
        forms = candidates(self.target) if self.target.surge else [self.target]
        return next((form for form in forms if form.name not in taken), None)


def _slots(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
) -> list[_Slot]:
    forms = [form for target in wanted.values() for form in candidates(target)]
    owners = {form.port: form.slot for form in forms if form.port is not None}
    known = {slot: histories.get(slot, History()) for slot in wanted}
    known = {slot: _usable(history, slot, owners) for slot, history in known.items()}
    failures = {slot: _failure(target, known[slot]) for slot, target in wanted.items()}
    stuck = {wanted[slot].service for slot, failure in failures.items() if failure is not None}
    by_slot: dict[str, list[Member]] = {}
    for member in members:
        by_slot.setdefault(member.spec.slot, []).append(member)
    found = []
    for slot, target in wanted.items():
        good = known[slot].good
        aim = target
        if target.service in stuck and good is not None and form_of(good, target) is None:
            aim = replace(good, max_unavailable=target.max_unavailable)
        here = by_slot.get(slot, [])
        found.append(
            _Slot(
                target=aim,
                asked=target.launch,
                goes_back=aim is not target,
                failure=failures[slot],
                good=good,
                live=[one for one in here if not one.leaving],
                leaving=[one for one in here if one.leaving],
            )
        )
    return found


def _usable(history: History, slot: str, owners: Mapping[int, str]) -> History:
    """Nobody can go back to a port that the file gives to another."""
    port = history.good.port if history.good else None
    lost = port is not None and owners.get(port, slot) != slot
    return replace(history, good=None) if lost else history


def _failure(target: InstanceSpec, history: History) -> Failure | None:
    """Why the target is not tried any more; None if it is, for there is nothing to go back to."""
    if history.failure is None or history.good is None:
        return None
    return history.failure if history.failure.launch == target.launch else None


def _of_service(slots: Sequence[_Slot]) -> Iterator[Step]:
    replaceable: list[tuple[_Slot, Member]] = []
    returning: list[_Slot] = []
    for slot in slots:
        if not slot.live:
            if slot.leaving:
                returning.append(slot)
            else:
                yield from _fill(slot)
        elif slot.fitting:
            yield from _finish(slot)
        else:
            base, *more = slot.others
            yield from (Retire(one.name, f"{base.name} is the one to go on") for one in more)
            if base.state in _WITHOUT_PROCESS:
                yield from _swap(slot, base)
            elif not base.status.wanted:
                continue  # a person is stopping it, and it is to stay so
            elif base.state in _SERVING:
                replaceable.append((slot, base))
            elif base.state is State.STARTING:  # it serves nobody yet
                yield Retire(base.name, "its successor starts instead")
    yield from _take_turns(slots, returning, replaceable)


def _fill(slot: _Slot) -> Iterator[Step]:
    form = slot.free()
    if form is not None:
        yield Launch(form, _BACK if slot.goes_back else "it is in the file")


def _finish(slot: _Slot) -> Iterator[Step]:
    """What is wanted is there; what else is there goes as soon as it is no longer needed."""
    keep, *more = slot.fitting
    form = slot.form_of(keep)
    if form is not None and form != keep.spec and not slot.goes_back:
        yield Adjust(form)
    for one in more:
        given_up = slot.failure is not None
        yield Retire(one.name, "given up" if given_up else f"{keep.name} is enough")
    others = slot.others
    gives_up = _cannot_start(keep.status)
    if keep.stopped_on_purpose:  # the new one alone: what serves goes on
        gives_up = any(one.state in _SERVING and one.status.wanted for one in others)
    if gives_up and _can_fall_back(slot):
        yield Abandon(slot.target.slot, Failure(slot.asked, keep.name, _why(keep.status)))
    elif keep.state is State.READY or keep.stopped_on_purpose:
        for one in others:
            yield Retire(one.name, "given up" if slot.failure else f"{keep.name} has taken over")


def _swap(slot: _Slot, base: Member) -> Iterator[Step]:
    form = next((one for one in candidates(slot.target) if one.name == base.name), None)
    if form is not None:
        start = base.state is not State.STOPPED
        why = _BACK if slot.goes_back else "its settings have changed"
        yield Swap(form, why if start else base.status.reason, start)
    elif not base.stopped_on_purpose:  # else its successor would be started
        yield Retire(base.name, "its successor has another name")


def _take_turns(
    slots: Sequence[_Slot],
    returning: Sequence[_Slot],
    replaceable: Sequence[tuple[_Slot, Member]],
) -> Iterator[Step]:
    """Replace serving instances: as few at a time as their service asks for."""
    failed = any(slot.failure for slot in slots)
    crowded = any(slot.is_crowded for slot in slots)
    missing = sum(slot.is_missing for slot in slots)
    for slot in returning:
        # What a recreated one holds (a GPU's memory) may not be there twice.
        if slot.target.surge and not crowded and slot.free() is not None:
            crowded = True
            yield from _fill(slot)
    for slot, base in replaceable:
        if failed and not slot.failure and not slot.goes_back:
            continue
        beside = slot.free() if slot.target.surge else None
        if beside is not None:
            if not crowded:
                crowded = True
                yield Launch(beside, f"to take over from {base.name}")
        elif slot.target.surge and slot.is_crowded:
            continue  # the name is still in use; a moment later it is not
        elif base.state is not State.READY:
            yield Retire(base.name, "its successor starts in its place")
        elif missing < slot.target.max_unavailable:
            missing += 1
            yield Retire(base.name, "its successor starts in its place")


def _can_fall_back(slot: _Slot) -> bool:
    """Whether there is something that has worked, and is not what fails now."""
    if slot.good is None:
        return False
    if slot.failure is not None:
        return any(one.outdated for one in slot.others)  # a restart asked for since
    return bool(slot.others) or slot.good.launch != slot.target.launch


def _cannot_start(status: Status) -> bool:
    """It has never been ready, and there is no sense in trying on."""
    if status.state is State.FAILED:
        return True
    failing = status.state in (State.BACKOFF, State.STARTING)
    return failing and (status.hopeless > 0 or status.streak >= ROLLOUT_TRIES)


def _without_collisions(steps: Iterable[Step], members: Sequence[Member]) -> Iterator[Step]:
    """What starts on a port waits until another slot's instance has left it."""
    waiting = {one.name for one in members if one.status.wanted}
    held = {
        (one.spec.port, one.spec.slot)
        for one in members
        if one.state is not State.STOPPED or one.name in waiting
    }

    def is_held(spec: InstanceSpec) -> bool:
        taken = any(spec.port == port and spec.slot != slot for port, slot in held)
        return taken and spec.port is not None

    for step in steps:
        match step:
            case Launch(spec) if is_held(spec):
                continue
            case Launch(spec):
                held.add((spec.port, spec.slot))
                yield step
            case Swap(spec, _, start) if (start or spec.name in waiting) and is_held(spec):
                yield Retire(spec.name, "its new port is still in use")
            case _:
                yield step


def _why(status: Status) -> str:
    """Why it cannot be started: what its last process said, rather than what is tried next."""
    stopped = status.state is State.STOPPED  # by a person, or it has finished
    return status.reason if stopped else status.last_exit or status.reason


def _is_gone(member: Member) -> bool:
    return member.leaving and member.state is State.STOPPED


def _rank(member: Member) -> tuple[bool, int]:
    """The most useful first, and last what somebody has told to stop."""
    order = (State.READY, State.UNREADY, State.STARTING)
    place = order.index(member.state) if member.state in order else len(order)
    return not member.status.wanted, place
