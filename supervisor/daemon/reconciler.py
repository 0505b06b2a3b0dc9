"""The one owner of all statuses: a single task with a single inbox.

Whatever comes from outside (processes, probes, timers, the API, signals) is a message. The owner
asks the pure ``step`` what it means, and carries the effects out. No locks, no shared state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from supervisor.core import lifecycle
from supervisor.core.cluster import ClusterState, cluster_state
from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.lifecycle import (
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Effect,
    EnterRotation,
    Event,
    Exited,
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
from supervisor.core.order import blocked, startable, stoppable, waiting_for
from supervisor.daemon.journal import Journal

log = logging.getLogger(__name__)


class Effects(Protocol):
    """Carries decisions out. None of these blocks; what comes of them arrives as an event."""

    def spawn(self, spec: InstanceSpec, run: int) -> None: ...
    def signal(self, spec: InstanceSpec, stage: lifecycle.Stage) -> None: ...
    def start_probes(
        self, spec: InstanceSpec, run: int, checks: tuple[lifecycle.Check, ...]
    ) -> None: ...
    def stop_probes(self, spec: InstanceSpec) -> None: ...
    def enter_rotation(self, spec: InstanceSpec, run: int) -> None: ...
    def leave_rotation(self, spec: InstanceSpec) -> None: ...
    def diagnose(self, spec: InstanceSpec, run: int, ended: str) -> None: ...
    def controller_is_new(self) -> None: ...
    def exited(self, spec: InstanceSpec, pid: int | None, event: Exited) -> None: ...


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """Something happened to one instance."""

    instance: str
    event: Event


@dataclass(frozen=True, slots=True)
class GoDown:
    """Stop everything, then end. A second one skips the grace, a third one kills."""

    reason: str


Message = InstanceEvent | GoDown


class Reconciler:
    def __init__(
        self, specs: Mapping[str, InstanceSpec], effects: Effects, journal: Journal
    ) -> None:
        self._specs = dict(specs)
        self._statuses = {name: Status() for name in specs}
        self._effects = effects
        self._journal = journal
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._dirty = True
        self._going_down = False
        self._cluster_state = ClusterState.STARTING
        self._blocked: dict[str, list[str]] | None = None
        """Asked of every instance after every change by those who wait; None: work it out anew."""
        self._changed = asyncio.Event()

    # ------------------------------------------------------------ what others may see and ask

    @property
    def specs(self) -> Mapping[str, InstanceSpec]:
        return self._specs

    @property
    def statuses(self) -> Mapping[str, Status]:
        """Immutable statuses; take a copy to look at them together later."""
        return self._statuses

    @property
    def state(self) -> ClusterState:
        return self._cluster_state

    def waiting_for(self, name: str) -> list[str]:
        """Services that it depends on and that are not ready."""
        return waiting_for(self._specs[name], self._entries())

    def blocked_by(self, name: str) -> list[str]:
        """Instances that it waits for, and that do not come unless a person starts them."""
        if self._blocked is None:
            self._blocked = blocked(self._entries())
        return self._blocked.get(name, [])

    def post(self, message: Message) -> None:
        """Put a message into the inbox; to be called from the event loop's thread."""
        self._inbox.put_nowait(message)

    def deliver(self, instance: str, event: Event) -> None:
        self.post(InstanceEvent(instance, event))

    def start_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.deliver(name, StartRequested(reason))

    def stop_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.deliver(name, StopRequested(reason))

    def restart_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.deliver(name, RestartRequested(reason))

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return when ``predicate`` holds; it is asked after every change, all messages done."""
        while not (self._inbox.empty() and predicate()):
            await self._changed.wait()

    # ------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Handle messages until a ``GoDown`` has been carried out."""
        while True:
            if self._inbox.empty():
                if self._dirty:
                    self._settle()
                if self._going_down and self._all_stopped():
                    self._tell_waiters()
                    return
                self._tell_waiters()
            message = await self._inbox.get()
            try:
                self._handle(message)
            except Exception:
                # A defect in one decision must not end the supervision of all the others.
                log.exception("cannot handle %r; please report this", message)

    def _handle(self, message: Message) -> None:
        match message:
            case InstanceEvent(_, StartRequested() | RestartRequested()) if self._going_down:
                log.warning("going down: %r is not heard", message)
            case InstanceEvent(instance, event):
                if instance in self._specs:
                    self._apply(instance, event)
            case GoDown(reason):
                self._go_down(reason)

    def _go_down(self, reason: str) -> None:
        hurry = self._going_down
        self._going_down = self._dirty = True
        if hurry:
            log.warning("asked again to stop: skipping the grace")
        for name in self._specs:
            self._apply(name, Hurried() if hurry else StopRequested(reason))

    def _settle(self) -> None:
        """Start what waits for nothing any more, and stop what nothing depends on any more."""
        while self._dirty:
            self._dirty = False
            for name in list(stoppable(self._entries())):
                self._apply(name, DependentsStopped())
            if not self._going_down:
                for name in list(startable(self._entries())):
                    self._apply(name, DependenciesReady())
        state = cluster_state(list(self._statuses.values()), going_down=self._going_down)
        if state is not self._cluster_state:
            self._cluster_state = state
            with _surviving("the cluster", state):
                self._journal.write("", state, f"the cluster is {state}{self._address(state)}")

    def _address(self, state: ClusterState) -> str:
        """Where a cluster that has become ready is asked, for whoever has just started it."""
        servers = [s.address for s in self._specs.values() if s.role is Role.API_SERVER]
        return f", ask it at {servers[0]}/v1" if servers and state is ClusterState.READY else ""

    def _apply(self, name: str, event: Event) -> None:
        spec, before = self._specs[name], self._statuses[name]
        now = asyncio.get_running_loop().time()
        after, effects = lifecycle.step(before, event, spec, now=now, jitter=random.random())
        self._statuses[name] = after
        if after.state is not before.state or after.wanted != before.wanted:
            self._dirty = True
            self._blocked = None
        if lifecycle.on_probation(after) is not lifecycle.on_probation(before):
            self._dirty = True
        if after.timer != before.timer:
            self._set_timer(name, after.timer)
        if isinstance(event, Exited) and after is not before:
            with _surviving(name, event):
                self._effects.exited(spec, before.pid, event)
        if _is_news(before, after):
            with _surviving(name, event):
                self._journal.write(name, after.state, after.reason, after.pid or before.pid)
        for effect in effects:
            with _surviving(name, effect, self._could_not(effect, name)):
                self._carry_out(effect, spec, after)
        is_new = after.state is State.READY and before.state is not State.READY
        if spec.role is Role.CONTROLLER and is_new:
            with _surviving(name, "controller_is_new"):
                self._effects.controller_is_new()

    def _could_not(self, effect: Effect, name: str) -> Callable[[Exception], None] | None:
        """Nobody would ever hear of a process that was not even tried to be spawned."""
        if not isinstance(effect, Spawn):
            return None
        return lambda error: self.deliver(name, SpawnFailed(effect.run, repr(error), False))

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
            case Diagnose(run):
                self._effects.diagnose(spec, run, status.last_exit)

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
