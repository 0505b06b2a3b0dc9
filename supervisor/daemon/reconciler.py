"""The one owner of all statuses: a single task with a single inbox.

Whatever comes from outside (processes, probes, timers, the API, signals) is a message. The owner
asks the pure ``step`` what it means, and carries the effects out. No locks, no shared state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from supervisor.core import lifecycle
from supervisor.core.cluster import ClusterState, cluster_state
from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Role, Template
from supervisor.core.lifecycle import (
    RUNNING,
    Adjusted,
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Drain,
    Effect,
    EnterRotation,
    Event,
    Exited,
    FindBlockers,
    Hurried,
    LeaveRotation,
    RestartRequested,
    Signal,
    Spawn,
    SpawnFailed,
    StartProbes,
    StartRequested,
    State,
    Status,
    StopProbes,
    StopRequested,
    TimerFired,
)
from supervisor.core.order import (
    StartLimit,
    blocked,
    held_back,
    not_ready,
    startable,
    stoppable,
    takes_a_place,
)
from supervisor.core.plan import changed_settings, form_of
from supervisor.core.resume import resume
from supervisor.core.rollout import (
    ROLLOUT_TRIES,
    Abandon,
    Adjust,
    Failure,
    Forget,
    History,
    Launch,
    Member,
    Progress,
    Retire,
    Step,
    Swap,
    next_steps,
    progress,
)
from supervisor.daemon.adoption import Adoption
from supervisor.daemon.journal import Journal
from supervisor.daemon.state import State as Known

log = logging.getLogger(__name__)


class Effects(Protocol):
    """Carries decisions out. None of these blocks; what comes of them arrives as an event."""

    def spawn(self, spec: InstanceSpec, run: int) -> None: ...
    def adopt(self, spec: InstanceSpec, status: Status) -> None: ...
    def clear(self, name: str) -> None: ...
    def signal(self, spec: InstanceSpec, stage: lifecycle.Stage) -> None: ...
    def start_probes(
        self, spec: InstanceSpec, run: int, checks: tuple[lifecycle.Check, ...]
    ) -> None: ...
    def stop_probes(self, spec: InstanceSpec) -> None: ...
    def enter_rotation(self, spec: InstanceSpec, run: int) -> None: ...
    def leave_rotation(self, spec: InstanceSpec) -> None: ...
    def drain(self, spec: InstanceSpec, run: int) -> None: ...
    def diagnose(self, spec: InstanceSpec, run: int, ended: str) -> None: ...
    def find_blockers(self, spec: InstanceSpec, run: int) -> None: ...
    def controller_is_new(self, spec: InstanceSpec) -> None: ...
    def controller_goes_on(self, spec: InstanceSpec) -> None: ...
    def exited(self, spec: InstanceSpec, pid: int | None, event: Exited) -> None: ...
    def forget(self, spec: InstanceSpec) -> None: ...
    def keep_listening(self, addresses: Collection[tuple[str, int]]) -> None: ...
    def keep_templates(self, templates: Collection[Template]) -> None: ...


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """Something happened to one instance."""

    instance: str
    event: Event


@dataclass(frozen=True, slots=True)
class GoDown:
    """Stop everything, then end. A second one skips the grace, a third one kills."""

    reason: str


@dataclass(frozen=True, slots=True)
class Want:
    """From now on this is what should run, by slot. ``reasons`` say by slot what has changed."""

    specs: Mapping[str, InstanceSpec]
    reasons: Mapping[str, str]
    retry: bool = False
    """Try again what was given up."""
    limit: StartLimit | None = None
    """How many workers may be starting at once; None: any number."""


@dataclass(frozen=True, slots=True)
class StopSlot:
    """Whatever runs in this slot, now or after a rollout, is to stop until somebody starts it."""

    slot: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartSlot:
    """What runs in this slot is to run."""

    slot: str
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Leave off when all messages until now have been handled: another program goes on. Not while
    going down."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Whether messages are handled: ``answered`` is called if so."""

    answered: Callable[[], object]


Message = InstanceEvent | StopSlot | StartSlot | Want | GoDown | HandOver | Ping


class Reconciler:
    """``noted`` is called when there is something new in ``known`` that a successor should know."""

    def __init__(
        self,
        specs: Mapping[str, InstanceSpec],
        effects: Effects,
        journal: Journal,
        noted: Callable[[], None] = lambda: None,
        limit: StartLimit | None = None,
    ) -> None:
        self._wanted = dict(specs)
        self._limit = limit
        self._reasons: Mapping[str, str] = {}
        self._specs = dict(specs)
        self._statuses = {name: Status() for name in specs}
        self._of_slot: dict[str, list[str]] | None = None
        """Instances by slot; None: look anew."""
        self._leaving: set[str] = set()
        """Told to stop by a rollout, and forgotten when they have."""
        self._outdated: set[str] = set()
        """Running workers that somebody has asked to restart: their like takes over."""
        self._held: set[str] = set()
        """Slots that a person has stopped while nothing but what leaves was in them."""
        self._histories: dict[str, History] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        """Run and epoch of each instance that was forgotten: what is late must stay stale."""
        self._known_to_others: set[str] = set()
        """Adopted controllers that are not ready yet: an earlier supervisor may have told them of
        workers that are no more."""
        self._changing = False
        self._listening: set[tuple[str, int]] = set()
        self._effects = effects
        self._journal = journal
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._dirty = True
        self._noted = noted
        self._news = False
        """Something has happened that a successor should know."""
        self._going_down = False
        self._handing_over = False
        self._cluster_state = ClusterState.STARTING
        self._blocked: dict[str, list[str]] | None = None
        """Asked of every instance after every change by those who wait; None: work it out anew."""
        self._not_ready: Collection[str] | None = None
        """The same of services."""
        self._held_back: dict[str, str] | None = None
        """The same of who waits for a place among those that are starting, and why."""
        self._changed = asyncio.Event()
        self._asking = asyncio.Lock()
        self._altered = True
        self.changes = 0
        """As long as it stays, nothing has changed."""

    # ------------------------------------------------------------ what others may see and ask

    @property
    def specs(self) -> Mapping[str, InstanceSpec]:
        return self._specs

    @property
    def statuses(self) -> Mapping[str, Status]:
        """Immutable statuses; take a copy to look at them together later."""
        return self._statuses

    @property
    def wanted(self) -> Mapping[str, InstanceSpec]:
        """What should run, by slot."""
        return self._wanted

    @property
    def members(self) -> list[Member]:
        """All instances, with what a rollout makes of them."""
        return [
            Member(spec, self._statuses[name], name in self._leaving, name in self._outdated)
            for name, spec in self._specs.items()
        ]

    def is_leaving(self, name: str) -> bool:
        """Whether a rollout has told it to stop."""
        return name in self._leaving

    def is_short_of(self, services: Collection[str]) -> bool:
        """Whether a wanted slot of these services (all, if none is named) is empty for now."""
        filled = {s.slot for n, s in self._specs.items() if n not in self._leaving}
        asked = set(services)
        return any(
            slot not in filled
            for slot, spec in self._wanted.items()
            if not asked or spec.service in asked or slot in asked
        )

    def failure(self, slot: str) -> Failure | None:
        """The rollout that was given up in this slot, while nothing else is wanted of it."""
        failure = self._histories.get(slot, History()).failure
        wanted = self._wanted.get(slot)
        return failure if failure and wanted and failure.launch == wanted.launch else None

    def progress(self, services: Collection[str] = ()) -> Progress:
        """What of the last change is not in service yet, and what of these services cannot be."""
        return progress(self._wanted, self.members, self._histories, services, self._blocked_now())

    @property
    def state(self) -> ClusterState:
        return self._cluster_state

    def waiting_for(self, name: str) -> list[str]:
        """Services that it depends on and that are not ready."""
        if self._not_ready is None:
            self._not_ready = not_ready(self._entries(), self._expected())
        return [one for one in self._specs[name].depends_on if one in self._not_ready]

    def held_back(self, name: str) -> str | None:
        """Why it is not started though all that it depends on is ready: a clause for people."""
        if self._held_back is None:
            self._held_back = held_back(self._entries(), self._expected(), self._limit)
        return self._held_back.get(name)

    def blocked_by(self, name: str) -> list[str]:
        """Instances that it waits for, and that do not come unless a person starts them."""
        return self._blocked_now().get(name, [])

    def _blocked_now(self) -> Mapping[str, list[str]]:
        if self._blocked is None:
            # What leaves in a rollout is followed by its successor: it keeps nobody waiting.
            entries = self._entries()
            self._blocked = blocked(
                [
                    (spec, replace(st, wanted=True)) if spec.name in self._leaving else (spec, st)
                    for spec, st in entries
                ]
            )
        return self._blocked

    def post(self, message: Message) -> None:
        """Put a message into the inbox; to be called from the event loop's thread."""
        self._inbox.put_nowait(message)

    def deliver(self, instance: str, event: Event) -> None:
        self.post(InstanceEvent(instance, event))

    def slots(self, name: str) -> list[str]:
        """The slots of that name, or of the service of that name."""
        if name in self._wanted:
            return [name]
        return [slot for slot, spec in self._wanted.items() if spec.service == name]

    def start_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.deliver(name, StartRequested(reason))

    def restart_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.deliver(name, RestartRequested(reason))

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return when ``predicate`` holds; it is asked after every change, all messages done."""
        while True:
            # One after the other, and others between them: many who wait must not keep us busy.
            async with self._asking:
                changed = self._changed
                if self._inbox.empty() and predicate():
                    return
            await changed.wait()

    # ------------------------------------------------------------ one supervisor after another

    @property
    def known(self) -> Known:
        """All that a successor must know."""
        return Known(
            members=tuple(self.members),
            held=tuple(self._held),
            histories=dict(self._histories),
            counts=dict(self._counts),
            going_down=self._going_down,
            last_event=self._journal.number,
        )

    def adopt(self, adoption: Adoption) -> None:
        """Go on from there, instead of a first start. To be called before ``run``."""
        known = adoption.known
        self._journal.go_on_from(known.last_event)
        self._specs = {one.name: one.spec for one in known.members}
        self._of_slot = None
        self._statuses = {one.name: one.status for one in known.members}
        self._leaving = {one.name for one in known.members if one.leaving}
        self._outdated = {one.name for one in known.members if one.outdated}
        self._held = set(known.held)
        self._histories = dict(known.histories)
        self._counts = dict(known.counts)
        self._sort()
        self._keep_templates()
        for name in adoption.strays:
            with _surviving(name, "strays"):
                self._effects.clear(name)
        for spec, status in self._entries():
            self._go_on(spec, status)
        if known.going_down:  # which is over: whoever starts a supervisor wants the cluster up
            self._held.clear()
            self.start_instances(self._specs, "the cluster starts")

    def _go_on(self, spec: InstanceSpec, status: Status) -> None:
        self._set_timer(spec.name, status.timer)
        if status.pid is not None:
            with _surviving(spec.name, "adopt"):
                self._effects.adopt(spec, status)
            reason = f"adopted, pid {status.pid} goes on: {status.reason}"
            self._journal.write(spec.name, status.state, reason, status.pid)
        if spec.role is Role.CONTROLLER and status.state is State.READY:
            with _surviving(spec.name, "controller_goes_on"):
                self._effects.controller_goes_on(spec)
        elif spec.role is Role.CONTROLLER and status.pid is not None:
            self._known_to_others.add(spec.name)
        effects, events = resume(status, spec)
        for effect in effects:
            with _surviving(spec.name, effect, self._could_not(effect, spec.name)):
                self._carry_out(effect, spec, status)
        for event in events:
            self.deliver(spec.name, event)

    # ------------------------------------------------------------ the loop

    async def run(self) -> bool:
        """Handle messages until a ``GoDown`` has been carried out: True.

        False: a ``HandOver`` has come, and no message is left to handle; call it again to go on.
        """
        self._keep_templates()
        while True:
            if self._inbox.empty():
                if self._dirty:
                    self._settle()
                if self._news:
                    self._news = False
                    self._noted()
                self._tell_waiters()
                if self._going_down and self._all_stopped():
                    return True
                if self._handing_over and self._inbox.empty():
                    self._handing_over = False
                    return False
            message = await self._inbox.get()
            try:
                self._handle(message)
            except Exception:
                # A defect in one decision must not end the supervision of all the others.
                # Not the message itself: an environment may be in it.
                log.exception("cannot handle a %s; please report this", type(message).__name__)

    def _handle(self, message: Message) -> None:
        match message:
            case InstanceEvent(_, StartRequested() | RestartRequested()) | StartSlot() | Want() if (
                self._going_down
            ):
                log.warning("going down: nothing is started any more")
            case InstanceEvent(instance, StartRequested()) if instance in self._leaving:
                log.warning("%s is being replaced: it is not started again", instance)
            case InstanceEvent(instance, RestartRequested(reason)):
                if instance in self._specs and instance not in self._leaving:
                    self._restart(instance, reason)
            case InstanceEvent(instance, event):
                if instance in self._specs:
                    self._apply(instance, event)
            case StopSlot(slot, reason):
                self._stop_slot(slot, reason)
            case StartSlot(slot, reason):
                self._start_slot(slot, reason)
            case Want():
                self._want(message)
            case GoDown(reason):
                self._handing_over = False  # its successor would start all of it again
                self._go_down(reason)
            case HandOver() if self._going_down:
                log.warning("going down: no other program takes over any more")
            case HandOver():
                self._handing_over = True
            case Ping(answered):
                answered()
        if not isinstance(message, InstanceEvent | Ping):
            self._news = self._altered = True

    def _go_down(self, reason: str) -> None:
        hurry = self._going_down
        self._going_down = self._dirty = True
        if hurry:
            log.warning("asked again to stop: skipping the grace")
        for name in self._specs:
            self._apply(name, Hurried() if hurry else StopRequested(reason, drain=False))

    def _stop_slot(self, slot: str, reason: str) -> None:
        live = self._live(slot)
        if not live:
            self._held.add(slot)
        for name in live:
            self._apply(name, StopRequested(reason))

    def _start_slot(self, slot: str, reason: str) -> None:
        self._held.discard(slot)
        for name in self._live(slot):
            self._apply(name, StartRequested(reason))

    def _expected(self) -> set[str]:
        """Services that there should be, also while a rollout leaves a gap."""
        return {spec.service for spec in self._wanted.values()}

    def _live(self, slot: str) -> list[str]:
        if self._of_slot is None:
            self._of_slot = {}
            for name, spec in self._specs.items():
                self._of_slot.setdefault(spec.slot, []).append(name)
        return [name for name in self._of_slot.get(slot, ()) if name not in self._leaving]

    def _want(self, wish: Want) -> None:
        # What is equal stays the same object, which is seen at a glance.
        before = self._wanted
        self._wanted = {
            slot: before[slot] if before.get(slot) == spec else spec
            for slot, spec in wish.specs.items()
        }
        self._limit = wish.limit
        self._not_ready = None
        self._reasons = {**self._reasons, **wish.reasons}
        self._dirty = self._changing = True
        self._keep_templates()
        if wish.retry:
            for slot, history in self._histories.items():
                self._histories[slot] = replace(history, failure=None)
            for name, status in list(self._statuses.items()):
                if status.state is State.FAILED and name not in self._leaving:
                    self._apply(name, StartRequested("asked to try again"))

    def _restart(self, name: str, reason: str) -> None:
        """A running worker is replaced as a change of the file would: it is missed by nobody."""
        running = self._statuses[name].state in RUNNING and self._statuses[name].wanted
        rolls = self._specs[name].role in (Role.WORKER, Role.API_SERVER)
        if not (rolls and running):
            self._apply(name, RestartRequested(reason))
            return
        self._outdated.add(name)
        self._reasons = {**self._reasons, self._specs[name].slot: reason}
        self._dirty = self._changing = True

    # ------------------------------------------------------------ rollout

    def _take(self, step: Step) -> None:
        match step:
            case Launch(spec, reason):
                run, epoch = self._counts.pop(spec.name, (0, 0))
                self._statuses[spec.name] = Status(run=run, epoch=epoch)
                self._specs[spec.name] = spec
                self._of_slot = None
                self._tell(spec, "new", reason)
                if spec.slot in self._held:
                    self._held.discard(spec.slot)
                    self._apply(spec.name, StopRequested("asked to stop"))
                else:
                    self._apply(spec.name, StartRequested(self._with_cause(spec, reason)))
            case Adjust(spec):
                before = self._specs[spec.name]
                self._specs[spec.name] = spec
                if self._statuses[spec.name].state is State.READY:
                    history = self._histories.get(spec.slot, History())
                    self._histories[spec.slot] = replace(history, good=self._whole(spec))
                if changed_settings(before, spec):
                    self._tell(spec, "updated", "its process goes on")
                self._apply(spec.name, Adjusted(before))
                if not before.is_launchable and spec.is_launchable:
                    self._try_again(spec)
            case Swap(spec, reason, start):
                self._specs[spec.name] = spec
                self._outdated.discard(spec.name)
                self._tell(spec, "updated", reason)
                if start:
                    self._apply(spec.name, StartRequested(self._with_cause(spec, reason)))
            case Retire(name, reason):
                self._leaving.add(name)
                self._apply(name, StopRequested(self._with_cause(self._specs[name], reason)))
            case Forget(name):
                self._forget(name)
            case Abandon(slot, failure):
                history = self._histories.get(slot, History())
                self._histories[slot] = replace(history, failure=failure)
                service = self._wanted[slot].service
                self._outdated -= {n for n, s in self._specs.items() if s.service == service}
                reason = f"the rollout is given up: {failure.reason}"
                self._journal.write(failure.instance, "given up", reason)
        self._dirty = self._news = self._altered = True
        self._blocked = self._not_ready = None

    def _try_again(self, spec: InstanceSpec) -> None:
        """Nobody knew how to start it; now somebody does."""
        if self._statuses[spec.name].state is State.FAILED:
            self._apply(spec.name, StartRequested("it is known again how to start it"))

    def _forget(self, name: str) -> None:
        spec, status = self._specs.pop(name), self._statuses.pop(name)
        self._of_slot = None
        self._leaving.discard(name)
        self._outdated.discard(name)
        self._counts[name] = (status.run, status.epoch)
        self._set_timer(name, None)
        with _surviving(name, "forget"):
            self._effects.forget(spec)
        if spec.slot not in self._wanted:
            self._histories.pop(spec.slot, None)
            self._held.discard(spec.slot)
            self._tell(spec, "removed", "it has ended")

    def _whole(self, spec: InstanceSpec) -> InstanceSpec:
        """With both its forms, so that it can be replaced by its like without a gap."""
        target = self._wanted.get(spec.slot)
        return target if target is not None and form_of(spec, target) else spec

    def _sort(self) -> None:
        """In the order of the file; what leaves it comes last."""
        places = {slot: i for i, slot in enumerate(self._wanted)}
        last = len(places)
        names = sorted(self._specs, key=lambda n: places.get(self._specs[n].slot, last))
        self._specs = {name: self._specs[name] for name in names}

    def _with_cause(self, spec: InstanceSpec, reason: str) -> str:
        cause = self._reasons.get(spec.slot)
        return f"{reason} ({cause})" if cause and cause != reason else reason

    def _tell(self, spec: InstanceSpec, state: str, reason: str) -> None:
        with _surviving(spec.name, state):
            self._journal.write(spec.name, state, self._with_cause(spec, reason))

    # ------------------------------------------------------------ order

    def _settle(self) -> None:
        """Take the steps of a rollout that can be taken, start what waits for nothing any more,
        and stop what nothing depends on any more."""
        while self._dirty:
            self._dirty = False
            if not self._going_down:
                steps = next_steps(self._wanted, self.members, self._histories, self._limit)
                for step in steps:
                    self._take(step)
                if any(isinstance(step, Launch) for step in steps):
                    self._sort()
            for name in list(stoppable(self._entries())):
                self._apply(name, DependentsStopped())
            if not self._going_down:
                for name in list(startable(self._entries(), self._expected(), self._limit)):
                    self._apply(name, DependenciesReady())
        self._held_back = None
        self._keep_listening()
        state = self._state()
        if state is not self._cluster_state:
            self._cluster_state = state
            with _surviving("the cluster", state):
                self._journal.write("", state, f"the cluster is {state}{self._address(state)}")

    def _keep_listening(self) -> None:
        """A socket stays open as long as somebody is about to serve on it again, and no longer:
        clients are better refused than kept waiting for what crashes again and again."""
        addresses = {
            spec.listen
            for spec, status in self._entries()
            if spec.listen and status.wanted and not _keeps_crashing(status)
        }
        if addresses or self._listening:
            self._listening = addresses
            with _surviving("the cluster", addresses):
                self._effects.keep_listening(addresses)

    def _keep_templates(self) -> None:
        """They import while the instances wait for something else."""
        templates = dict.fromkeys(s.template for s in self._wanted.values() if s.template)
        with _surviving("the cluster", "templates"):
            self._effects.keep_templates(list(templates))

    def _state(self) -> ClusterState:
        staying = [st for name, st in self._statuses.items() if name not in self._leaving]
        state = cluster_state(staying, going_down=self._going_down)
        if self._changing and not self._going_down:
            self._changing = bool(self.progress().under_way)
        if self._changing and state in (ClusterState.READY, ClusterState.STARTING):
            return ClusterState.UPDATING
        return state

    def _address(self, state: ClusterState) -> str:
        """Where a cluster that has become ready is asked, for whoever has just started it."""
        servers = [s.address for s in self._specs.values() if s.role is Role.API_SERVER]
        return f", ask it at {servers[0]}/v1" if servers and state is ClusterState.READY else ""

    def _apply(self, name: str, event: Event) -> None:
        spec, before = self._specs[name], self._statuses[name]
        now = asyncio.get_running_loop().time()
        after, effects = lifecycle.step(before, event, spec, now=now, jitter=random.random())
        if after == before and not effects and not isinstance(event, Exited):
            return  # most answers to probes
        self._altered = True
        self._statuses[name] = after
        if after.state is not before.state or after.wanted != before.wanted:
            self._dirty = True
            self._blocked = self._not_ready = None
        if lifecycle.on_probation(after) is not lifecycle.on_probation(before):
            self._dirty = True
        if takes_a_place(spec, after) is not takes_a_place(spec, before):
            self._dirty = True  # another may start
        if after.hopeless != before.hopeless:
            self._dirty = True  # a rollout may have to be given up
        if after.run != before.run:
            self._outdated.discard(name)  # it is new now
        if after.timer != before.timer:
            self._set_timer(name, after.timer)
        if isinstance(event, Exited) and not spec.is_launchable:
            self._histories.pop(spec.slot, None)  # nobody can go back to it
        self._news = self._news or _is_worth_noting(before, after)
        if isinstance(event, Exited) and after is not before:
            with _surviving(name, event):
                self._effects.exited(spec, before.pid, event)
        if _is_news(before, after):
            with _surviving(name, event):
                self._journal.write(name, after.state, after.reason, after.pid or before.pid)
        for effect in effects:
            with _surviving(name, effect, self._could_not(effect, name)):
                self._carry_out(effect, spec, after)
        if after.state is State.READY and before.state is not State.READY:
            self._became_ready(spec)

    def _became_ready(self, spec: InstanceSpec) -> None:
        if spec.name not in self._leaving:
            failure = self._histories.get(spec.slot, History()).failure
            mended = failure is None or failure.launch == spec.launch
            self._histories[spec.slot] = History(self._whole(spec), None if mended else failure)
            self._dirty = True
        stays = spec.slot in self._wanted and spec.name not in self._leaving
        if spec.role is Role.CONTROLLER and stays and spec.name in self._known_to_others:
            self._known_to_others.discard(spec.name)
            with _surviving(spec.name, "controller_goes_on"):
                self._effects.controller_goes_on(spec)
        elif spec.role is Role.CONTROLLER and stays:
            with _surviving(spec.name, "controller_is_new"):
                self._effects.controller_is_new(spec)

    def _could_not(self, effect: Effect, name: str) -> Callable[[Exception], None] | None:
        """Nobody would ever hear of a process that was not even tried to be spawned."""
        if not isinstance(effect, Spawn):
            return None
        return lambda error: self.deliver(
            name, SpawnFailed(effect.run, repr(error), CauseClass.UNKNOWN)
        )

    def _carry_out(self, effect: Effect, spec: InstanceSpec, status: Status) -> None:
        match effect:
            case Spawn(run):
                self._effects.spawn(spec, run)
            case Signal(stage):
                self._effects.signal(spec, stage)
            case StartProbes(run, checks):
                self._effects.start_probes(spec, run, checks)
            case StopProbes():
                self._effects.stop_probes(spec)
            case EnterRotation(run):
                self._effects.enter_rotation(spec, run)
            case LeaveRotation():
                self._effects.leave_rotation(spec)
            case Drain(run):
                self._effects.drain(spec, run)
            case Diagnose(run):
                self._effects.diagnose(spec, run, status.last_exit)
            case FindBlockers(run):
                self._effects.find_blockers(spec, run)

    def _set_timer(self, name: str, timer: lifecycle.Timer | None) -> None:
        old = self._timers.pop(name, None)
        if old is not None:
            old.cancel()
        if timer is not None:
            fired = InstanceEvent(name, TimerFired(timer.epoch))
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_at(timer.at, self.post, fired)

    def _entries(self) -> list[tuple[InstanceSpec, Status]]:
        return [(spec, self._statuses[name]) for name, spec in self._specs.items()]

    def _all_stopped(self) -> bool:
        return all(status.state is State.STOPPED for status in self._statuses.values())

    def _tell_waiters(self) -> None:
        self.changes += self._altered
        self._altered = False
        self._changed.set()
        self._changed = asyncio.Event()


@contextlib.contextmanager
def _surviving(
    name: str, what: object, otherwise: Callable[[Exception], None] | None = None
) -> Iterator[None]:
    """One effect that fails must not undo the others, nor end the supervision of the others."""
    try:
        yield
    except Exception as error:
        log.exception("cannot carry out %r for %s; please report this", what, name)
        if otherwise is not None:
            otherwise(error)


def _keeps_crashing(status: Status) -> bool:
    coming = status.state in (State.BACKOFF, State.STARTING)
    return status.state is State.FAILED or (coming and status.streak > ROLLOUT_TRIES)


def _is_worth_noting(before: Status, after: Status) -> bool:
    """What probes have answered last is found out again soon."""
    return _lasting(before) != _lasting(after)


def _lasting(status: Status) -> Status:
    return replace(status, detail="", misses=0, dead_misses=0)


def _is_news(before: Status, after: Status) -> bool:
    """Whether people want to read of it. A spawn is told once its pid is known."""
    about_to_spawn = after.state is State.STARTING and after.pid is None
    if about_to_spawn and after.restarts == before.restarts:
        return False
    return (
        after.state is not before.state
        or after.run != before.run
        or (after.reason != before.reason and after.state is not State.STOPPED)
    )
