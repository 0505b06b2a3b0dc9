"""How what runs becomes what is wanted, one step at a time and without a gap. Pure.

A *slot* is a replica of the file. One instance serves in it; during a surge a second one starts
beside it. ``next_steps`` looks at all that is there and says what can be done now. It remembers
nothing of how things came to be so: a new edit in the middle of a rollout, a crash, a restarted
supervisor are all just another state to go on from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State, Status
from supervisor.core.plan import candidates, form_of

ROLLOUT_TRIES = 3
"""Starts in a row that may fail before a rollout is given up."""

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
        if member.spec.slot not in wanted and not member.leaving:
            steps.append(Retire(member.name, "it is no longer in the file"))
    services: dict[str, list[_Slot]] = {}
    for slot in slots:
        services.setdefault(slot.target.service, []).append(slot)
    ports = {one.spec.port: one for one in members if one.state is not State.STOPPED}
    for group in services.values():
        steps += _of_service(group)
    return [step for step in steps if not _must_wait(step, ports)]


def serving(slot: str, members: Iterable[Member]) -> Member | None:
    """The instance that stands for a slot: the ready one, or whichever there is."""
    live = [one for one in members if one.spec.slot == slot and not one.leaving]
    return min(live, key=_rank, default=None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change has come: sentences for people."""

    under_way: list[str]
    failed: list[str]


def progress(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
) -> Progress:
    """What is not in service yet, and what cannot be."""
    under_way = [f"{one.name} finishes its requests and stops" for one in members if one.leaving]
    failed = []
    for slot in _slots(wanted, members, histories):
        if slot.failure is not None:
            failed.append(_failure_sentence(slot))
        for member in slot.live:
            if member.stopped_on_purpose:
                continue
            if slot.form_of(member) is None:
                under_way.append(f"{member.name} is to be replaced")
            elif slot.failure is None and _cannot_start(member.status):
                failed.append(f"{member.name} cannot be started: {member.status.reason}")
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
    failure: Failure | None
    good: InstanceSpec | None
    live: list[Member]
    leaving: list[Member]

    def form_of(self, member: Member) -> InstanceSpec | None:
        """What the member is of the target already; None if it must be replaced."""
        return None if member.outdated else form_of(member.spec, self.target)

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
    def is_surging(self) -> bool:
        return bool(self.fitting and self.others)

    def free(self, besides: str = "") -> InstanceSpec | None:
        """A form of the target whose name nobody has."""
        taken = {one.name for one in self.leaving} | {besides}
        forms = candidates(self.target) if self.target.surge else [self.target]
        return next((form for form in forms if form.name not in taken), None)


def _slots(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
) -> list[_Slot]:
    found = []
    for slot, target in wanted.items():
        history = histories.get(slot, History())
        failure = history.failure
        if failure is None or failure.launch != target.launch or history.good is None:
            failure = None
        here = [one for one in members if one.spec.slot == slot]
        found.append(
            _Slot(
                target=history.good if failure and history.good else target,
                failure=failure,
                good=history.good,
                live=[one for one in here if not one.leaving],
                leaving=[one for one in here if one.leaving],
            )
        )
    return found


def _of_service(slots: Sequence[_Slot]) -> Iterator[Step]:
    replaceable: list[tuple[_Slot, Member]] = []
    for slot in slots:
        if not slot.live:
            yield from _fill(slot)
        elif slot.fitting:
            yield from _finish(slot)
        else:
            base, *more = slot.others
            yield from (Retire(one.name, f"{base.name} is the one to go on") for one in more)
            if base.state in _WITHOUT_PROCESS:
                yield from _swap(slot, base)
            elif base.state in _SERVING:
                replaceable.append((slot, base))
            elif base.state is State.STARTING:  # it serves nobody yet
                yield Retire(base.name, "its successor starts instead")
    yield from _take_turns(slots, replaceable)


def _fill(slot: _Slot) -> Iterator[Step]:
    if slot.leaving and not slot.target.surge:
        return  # what it holds (a GPU's memory) may not be there twice
    form = slot.free()
    if form is not None:
        back = "started again as it was, since the new one cannot be started"
        yield Launch(form, back if slot.failure else "it is in the file")


def _finish(slot: _Slot) -> Iterator[Step]:
    """What is wanted is there; what else is there goes as soon as it is no longer needed."""
    keep, *more = slot.fitting
    form = slot.form_of(keep)
    if form is not None and form != keep.spec:
        yield Adjust(form)
    for one in more:
        yield Retire(one.name, f"{keep.name} is enough")
    others = slot.others
    if keep.state is State.READY or keep.stopped_on_purpose:
        for one in others:
            yield Retire(one.name, f"{keep.name} has taken over")
        return
    for one in others[1:]:
        yield Retire(one.name, f"{keep.name} is to take over")
    if _can_fall_back(slot) and _cannot_start(keep.status):
        yield Abandon(slot.target.slot, Failure(slot.target.launch, keep.name, keep.status.reason))


def _swap(slot: _Slot, base: Member) -> Iterator[Step]:
    form = next((one for one in candidates(slot.target) if one.name == base.name), None)
    if form is None:
        yield Retire(base.name, "its successor has another name")
    else:
        start = base.state is not State.STOPPED
        yield Swap(form, "its settings have changed" if start else base.status.reason, start)


def _take_turns(
    slots: Sequence[_Slot], replaceable: Sequence[tuple[_Slot, Member]]
) -> Iterator[Step]:
    """Replace serving instances: as few at a time as their service asks for."""
    failed = any(slot.failure for slot in slots)
    surging = any(slot.is_surging for slot in slots)
    missing = sum(slot.is_missing for slot in slots)
    for slot, base in replaceable:
        if failed and not slot.failure:
            continue
        beside = slot.free(besides=base.name) if slot.target.surge else None
        if beside is not None:
            if not surging or slot.failure:
                surging = True
                yield Launch(beside, f"to take over from {base.name}")
        elif slot.target.surge and slot.leaving:
            continue  # the name is still in use; a moment later it is not
        elif base.state is not State.READY:
            yield Retire(base.name, "its successor starts in its place")
        elif missing < slot.target.max_unavailable or slot.failure:
            missing += 1
            yield Retire(base.name, "its successor starts in its place")


def _can_fall_back(slot: _Slot) -> bool:
    """Whether there is something that has worked, and is not what fails now."""
    if slot.good is None or slot.failure is not None:
        return False
    return bool(slot.others) or slot.good.launch != slot.target.launch


def _cannot_start(status: Status) -> bool:
    """It has never been ready, and there is no sense in trying on."""
    if status.state is State.FAILED:
        return True
    failing = status.state in (State.BACKOFF, State.STARTING)
    return failing and (status.hopeless > 0 or status.streak >= ROLLOUT_TRIES)


def _must_wait(step: Step, ports: Mapping[int | None, Member]) -> bool:
    """Another slot's instance that is about to end may still hold the port."""
    if not isinstance(step, Launch) or step.spec.port is None:
        return False
    holder = ports.get(step.spec.port)
    return holder is not None and holder.spec.slot != step.spec.slot


def _is_gone(member: Member) -> bool:
    return member.leaving and member.state is State.STOPPED


def _rank(member: Member) -> int:
    """The most useful first."""
    order = (State.READY, State.UNREADY, State.STARTING)
    return order.index(member.state) if member.state in order else len(order)
