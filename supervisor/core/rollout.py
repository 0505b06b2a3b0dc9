"""How what runs becomes what is wanted, one step at a time and without a gap. Pure.

A *slot* is a replica of the file. One instance serves in it; during a surge a second one starts
beside it. ``next_steps`` looks at all that is there and says what can be done now. It remembers
nothing of how things came to be so: a new edit in the middle of a rollout, a crash, a restarted
supervisor are all just another state to go on from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.lifecycle import State, Status
from supervisor.core.order import StartLimit, takes_a_place
from supervisor.core.plan import candidates, form_of

ROLLOUT_TRIES = 3
"""Starts in a row that may fail before a rollout is given up."""

_BACK = "started again as it was, since the new one cannot be started"

_SERVING = frozenset({State.READY, State.UNREADY})
_WITHOUT_PROCESS = frozenset({State.STOPPED, State.BACKOFF, State.FAILED})
_CLIENTS = frozenset({Role.API_SERVER, Role.WEB_SERVER})
"""Who asks the controller, at the address that it was started with."""


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
    limit: StartLimit | None = None,
) -> list[Step]:
    """All that can be done now. Nothing to do is an empty list, and doing it leads nearer there.

    ``limit`` is how many workers may be starting at once; None: any number.
    """
    moving = _moving(wanted, members, histories)
    if not moving and not any(one.leaving or one.spec.slot not in wanted for one in members):
        return []
    slots = _slots(moving, wanted, members, histories)
    places = _Places(slots, moving, wanted, members)
    starts = _Starts(slots, moving, members, places, limit)
    steps: list[Step] = [Forget(one.name) for one in members if _is_gone(one)]
    for member in members:
        if member.leaving and member.status.wanted and not _is_gone(member):
            steps.append(Retire(member.name, "its successor has taken over"))
        elif member.spec.slot not in wanted and not member.leaving:
            steps.append(Retire(member.name, "it is no longer in the file"))
        elif member.spec.slot not in places.targets and not member.leaving and member.status.wanted:
            steps.append(Retire(member.name, "what ran before needs its GPU again"))
    services: dict[str, list[_Slot]] = {}
    for slot in slots:
        services.setdefault(slot.target.service, []).append(slot)
    for group in services.values():
        steps += _of_service(group, places, starts)
    needed = _needed_controllers(slots, members)
    steps = [one for one in steps if not isinstance(one, Retire) or one.instance not in needed]
    return list(_without_collisions(steps, places))


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
    blocked: Mapping[str, Sequence[str]] | None = None,
) -> Progress:
    """What of these services (all, if none is named) is not in service yet, and what cannot be.

    ``blocked`` is who waits in vain, and for whom: see ``order.blocked``.
    """
    blocked = blocked or {}

    def concerns(spec: InstanceSpec) -> bool:
        return not services or spec.service in services

    leaving = (one for one in members if one.leaving and concerns(one.spec))
    under_way = [f"{one.name} finishes its requests and stops" for one in leaving]
    failed = []
    moving = _moving(wanted, members, histories, if_also=lambda one: one.state is State.READY)
    for slot in _slots(moving, wanted, members, histories):
        if not concerns(slot.target):
            continue
        if slot.failure is not None:
            failed.append(_failure_sentence(slot))
        for member in slot.live:
            if member.stopped_on_purpose:
                continue
            if slot.form_of(member) is None:
                under_way.append(f"{member.name} is to be replaced")
            elif member.name in blocked:
                failed.append(_blocked_sentence(member.name, blocked[member.name]))
            elif slot.failure is None and _cannot_start(member.status):
                failed.append(f"{member.name} cannot be started: {_why(member.status)}")
            elif member.state is not State.READY:
                under_way.append(f"{member.name} is {member.state}")
        if not slot.live:
            under_way.append(f"{slot.target.name} is to be started")
    return Progress(under_way, failed)


def _blocked_sentence(name: str, others: Sequence[str]) -> str:
    come = "does not come by itself" if len(others) == 1 else "do not come by themselves"
    return f"{name} waits for {', '.join(others)}, which {come}"


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

    @property
    def starts_soon(self) -> bool:
        """Something is to start here that is only waited for, if by nothing but its turn."""
        return not self.live or any(_waits_its_turn(one) for one in self.live)

    def free(self) -> InstanceSpec | None:
        """A form of the target whose name nobody has."""
        taken = {one.name for one in (*self.live, *self.leaving)}
        forms = candidates(self.target) if self.target.surge else [self.target]
        return next((form for form in forms if form.name not in taken), None)

    def beside(self, base: Member) -> InstanceSpec | None:
        """A form of the target that can run while ``base`` does."""
        form = self.free() if self.target.surge else None
        return None if form is None or _wants_port_of(form, base) else form


def _moving(
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
    if_also: Callable[[Member], bool] = lambda _: True,
) -> Mapping[str, InstanceSpec]:
    """The slots of all services in which there may be something to do.

    A slot is at rest if its one instance is what it should be, whatever state that is in; nobody
    need think about a service of which all slots are. ``if_also`` asks more of such an instance.
    """
    by_slot: dict[str, Member | None] = {}
    for member in members:
        slot = member.spec.slot
        by_slot[slot] = None if slot in by_slot else member
    services = set()
    for slot, target in wanted.items():
        one = by_slot.get(slot)
        if one is None or not _is_at_rest(one, target, histories.get(slot)) or not if_also(one):
            services.add(target.service)
    if not services:
        return {}
    return {slot: target for slot, target in wanted.items() if target.service in services}


def _waits_its_turn(one: Member) -> bool:
    awaited = (State.STOPPED, State.STOPPING)
    return one.status.wanted and one.state in awaited and not one.leaving


def _is_at_rest(one: Member, target: InstanceSpec, history: History | None) -> bool:
    if one.leaving or one.outdated:
        return False
    # Almost always it is the very same: to compare two that are equal takes longer.
    if one.spec is not target and one.spec not in candidates(target):
        return False
    if history is None:
        return True
    has_worked = history.good is None or history.good.launch == target.launch
    return history.failure is None and has_worked


def _slots(
    moving: Mapping[str, InstanceSpec],
    wanted: Mapping[str, InstanceSpec],
    members: Sequence[Member],
    histories: Mapping[str, History],
) -> list[_Slot]:
    """Of ``moving``, which are all slots of some services."""
    if not moving:
        return []
    known = {slot: histories.get(slot, History()) for slot in moving}
    needs = _needs(wanted)
    known = {slot: _usable(history, wanted[slot], needs, known) for slot, history in known.items()}
    failures = {slot: _failure(target, known[slot]) for slot, target in moving.items()}
    stuck = {moving[slot].service for slot, failure in failures.items() if failure is not None}
    by_slot: dict[str, list[Member]] = {}
    for member in members:
        if member.spec.slot in moving:
            by_slot.setdefault(member.spec.slot, []).append(member)
    aims: dict[str, InstanceSpec] = {}
    retaken: dict[str, set[str]] = {name: set() for name in stuck}
    for slot, target in moving.items():
        good = known[slot].good
        aims[slot] = target
        if target.service in stuck and good is not None and form_of(good, target) is None:
            aims[slot] = replace(good, max_unavailable=target.max_unavailable)
            retaken[target.service] |= set(good.gpus) - set(target.gpus)
    found = []
    for slot, target in moving.items():
        aim, good = aims[slot], known[slot].good
        if good is None and retaken.get(target.service, set()) & set(target.gpus):
            continue  # a new replica, on a GPU that what ran before needs again
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


_Needs = Mapping[int | str, Sequence[InstanceSpec]]
"""Who is given a port or a GPU by the file."""


def _needs(wanted: Mapping[str, InstanceSpec]) -> _Needs:
    found: dict[int | str, list[InstanceSpec]] = {}
    for target in wanted.values():
        ports = {form.port for form in candidates(target) if form.port is not None}
        places: list[int | str] = [*ports, *target.gpus]
        for place in places:
            found.setdefault(place, []).append(target)
    return found


def _usable(
    history: History, target: InstanceSpec, needs: _Needs, known: Mapping[str, History]
) -> History:
    """Nobody can go back to a port that the file gives to another, nor to a GPU; but replicas of
    its own that have never been ready on theirs make room for it."""
    good = history.good
    if good is None:
        return history

    def makes_room(other: InstanceSpec) -> bool:
        return other.service == target.service and known[other.slot].good is None

    gpus = set(good.gpus) - set(target.gpus)
    on_port = [] if good.port is None else needs.get(good.port, [])
    on_gpu = (one for gpu in gpus for one in needs.get(gpu, ()) if not makes_room(one))
    taken = any(one.slot != target.slot for one in itertools.chain(on_port, on_gpu))
    return replace(history, good=None) if taken else history


def _failure(target: InstanceSpec, history: History) -> Failure | None:
    """Why the target is not tried any more; None if it is, for there is nothing to go back to."""
    if history.failure is None or history.good is None:
        return None
    return history.failure if history.failure.launch == target.launch else None


def _of_service(slots: Sequence[_Slot], places: _Places, starts: _Starts) -> Iterator[Step]:
    replaceable: list[tuple[_Slot, Member]] = []
    returning: list[_Slot] = []
    for slot in slots:
        if not slot.live:
            if not slot.leaving:
                yield from _fill(slot)
            elif not any(map(_is_gone, slot.leaving)):  # else its name is free in a moment
                returning.append(slot)
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
    yield from _take_turns(slots, returning, replaceable, places, starts)


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
    places: _Places,
    starts: _Starts,
) -> Iterator[Step]:
    """Replace serving instances: as few at a time as their service asks for."""
    failed = any(slot.failure for slot in slots)
    crowded = any(slot.is_crowded for slot in slots)
    missing = {slot.target.slot for slot in slots if slot.is_missing}
    taken = 0
    for slot in returning:
        # What a recreated one holds (a GPU's memory) may not be there twice.
        if slot.target.surge and not crowded and slot.free() is not None:
            crowded = True
            yield from _fill(slot)
    for slot, base in replaceable:
        may_stay = slot.good is not None  # else another is to have its place
        if failed and may_stay and not slot.failure and not slot.goes_back:
            continue
        name = slot.target.slot
        turns_in_circle = name in places.awaited_by(name, among_serving=True)
        if name in places.waits and not turns_in_circle:
            continue  # as long as its successor would have to wait, it serves
        beside = None if turns_in_circle else slot.beside(base)
        if beside is not None:
            if not crowded:
                crowded = True
                yield Launch(beside, f"to take over from {base.name}")
            continue
        if slot.target.surge and slot.is_crowded:
            continue  # the name is still in use; a moment later it is not
        # Those that wait for what it holds are no reason to keep it.
        short = missing - places.waiting if name in places.awaited else missing
        if base.state is not State.READY:
            yield Retire(base.name, "its successor starts in its place")
        elif len(short) + taken < slot.target.max_unavailable and starts.take(slot.target):
            taken += 1
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


def _needed_controllers(slots: Sequence[_Slot], members: Sequence[Member]) -> set[str]:
    """Old controllers that somebody still asks who is to be replaced himself.

    Where the new one takes the old one's place, both cannot be had: then it is not waited for.
    """
    if not any(
        one.spec.role in _CLIENTS and one.status.wanted and one.state not in _WITHOUT_PROCESS
        for slot in slots
        for one in slot.others
    ):
        return set()
    alone = {slot.target.slot for slot in slots if not slot.fitting}
    controllers = (one for one in members if one.spec.role is Role.CONTROLLER)
    return {one.name for one in controllers if not one.leaving and one.spec.slot not in alone}


# ---------------------------------------------------------------- ports and GPUs


class _Places:
    """Who has a port or a GPU that another needs."""

    def __init__(
        self,
        slots: Sequence[_Slot],
        moving: Mapping[str, InstanceSpec],
        wanted: Mapping[str, InstanceSpec],
        members: Sequence[Member],
    ) -> None:
        at_rest = {slot: target for slot, target in wanted.items() if slot not in moving}
        self.targets = at_rest | {slot.target.slot: slot.target for slot in slots}
        self.to_run = {one.name for one in members if one.status.wanted}
        self._holders: dict[int | str, list[Member]] = {}
        """Who has a port, or a GPU that it is to give up."""
        for one in members:
            if one.state is not State.STOPPED or one.name in self.to_run:
                self._hold(one)
        self._serving = {
            one.spec.slot for slot in slots for one in slot.live if one.state in _SERVING
        }
        needs = {slot.target.slot: slot.free() or slot.target for slot in slots if not slot.fitting}
        waits = {
            slot: {one.spec.slot for one in self._in_the_way(spec)} - {slot}
            for slot, spec in needs.items()
        }
        self.waits = {slot: others for slot, others in waits.items() if others}
        """By slot, the slots that must give something up before its next instance can start."""
        self.waiting = {slot.target.slot for slot in slots if not slot.live} & set(self.waits)
        """Slots in which nothing is there for that reason."""
        self.awaited = {other for slot in self.waiting for other in self.awaited_by(slot)}

    def is_taken(self, spec: InstanceSpec) -> bool:
        return any(True for _ in self._in_the_way(spec))

    def take(self, spec: InstanceSpec) -> None:
        self._hold(Member(spec, Status(wanted=True)))

    def awaited_by(self, slot: str, *, among_serving: bool = False) -> set[str]:
        """The slots that it waits for, at however many removes."""
        found: set[str] = set()
        ahead = [slot]
        while ahead:
            one = ahead.pop()
            if not among_serving or one in self._serving:
                new = self.waits.get(one, set()) - found
                found |= new
                ahead += new
        return found

    def _hold(self, member: Member) -> None:
        spec = member.spec
        target = self.targets.get(spec.slot)
        stays_on = target.gpus if target is not None else ()  # then the file lets them share it
        given_up = set(spec.gpus).difference(stays_on)
        for place in (*(() if spec.port is None else (spec.port,)), *given_up):
            self._holders.setdefault(place, []).append(member)

    def _in_the_way(self, spec: InstanceSpec) -> Iterator[Member]:
        on_port = () if spec.port is None else self._holders.get(spec.port, ())
        for member in on_port:
            old = member.spec
            # It accepts nobody any more, and its socket was the supervisor's.
            is_deaf = old.slot == spec.slot and old.listen and member.leaving
            if old.name != spec.name and _wants_port_of(spec, member) and not is_deaf:
                yield member
        for gpu in spec.gpus:
            yield from (one for one in self._holders.get(gpu, ()) if one.spec.slot != spec.slot)


class _Starts:
    """The workers that are starting, or about to: who serves is not taken away for a successor that
    would only wait for a place among them."""

    def __init__(
        self,
        slots: Sequence[_Slot],
        moving: Collection[str],
        members: Sequence[Member],
        places: _Places,
        limit: StartLimit | None,
    ) -> None:
        self._limit = limit
        self._sizes = [one.spec.weights for one in members if takes_a_place(one.spec, one.status)]
        self._sizes += [
            slot.target.weights
            for slot in slots
            if slot.target.role is Role.WORKER
            and slot.starts_soon
            and slot.target.slot not in places.waits  # or they would wait for each other
        ]
        self._sizes += [
            one.spec.weights
            for one in members
            if one.spec.role is Role.WORKER and one.spec.slot not in moving and _waits_its_turn(one)
        ]

    def take(self, spec: InstanceSpec) -> bool:
        """Whether it can be started as soon as it may; if so, its place is taken."""
        if self._limit is None or spec.role is not Role.WORKER:
            return True
        if not self._limit.admits(self._sizes, spec.weights):
            return False
        self._sizes.append(spec.weights)
        return True


def _wants_port_of(spec: InstanceSpec, member: Member) -> bool:
    """Whether both would bind one port; with a socket that is handed on, they do not."""
    old = member.spec
    handed_on = old.slot == spec.slot and old.listen is not None and old.listen == spec.listen
    return spec.port is not None and spec.port == old.port and not handed_on


def _without_collisions(steps: Iterable[Step], places: _Places) -> Iterator[Step]:
    """What starts on a port or a GPU waits until the instance before it has left it."""
    for step in steps:
        match step:
            case Launch(spec) if places.is_taken(spec):
                continue
            case Launch(spec):
                places.take(spec)
                yield step
            case Swap(spec, _, start) if (start or spec.name in places.to_run) and places.is_taken(
                spec
            ):
                yield Retire(spec.name, "what it needs is still in use")
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
