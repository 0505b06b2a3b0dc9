"""Random lives in a simulated world, watched by a slow oracle that knows nothing of the code.

``World`` is the outside: a process that lives or does not, probes that run, the controller's list,
a clock, and the reconciler's inbox, in which everything arrives a little late. ``Oracle`` derives
from the history of events and effects alone what must hold, and never looks at the counters and
flags by which the code itself remembers things.

A life is a string of bytes, each a choice: hypothesis shrinks it when it finds a bad one.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field, replace
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import instance, worker

from supervisor.core.instance import InstanceSpec, Probe, RestartPolicy, Startup
from supervisor.core.lifecycle import (
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Diagnosed,
    Effect,
    EnteredRotation,
    EnterRotation,
    Event,
    Exited,
    Hurried,
    LeaveRotation,
    Outcome,
    Probed,
    RestartRequested,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Stage,
    StartProbes,
    StartRequested,
    State,
    Status,
    StopProbes,
    StopRequested,
    Timer,
    TimerFired,
    step,
)
from supervisor.core.restart import HOPELESS_TRIES, LEAST_DELAY

DOWN = (State.STOPPED, State.BACKOFF, State.FAILED)
UP = (State.READY, State.UNREADY)
STABLE = 60.0


def _specs() -> list[InstanceSpec]:
    def policy(**fields: object) -> RestartPolicy:
        return RestartPolicy(backoff=2.0, backoff_max=20.0, stable_after=STABLE, **fields)  # type: ignore[arg-type]

    plain = worker(restart=policy())
    assert plain.readiness is not None
    assert plain.startup is not None
    touchy = replace(plain.readiness, failures=1)
    return [
        plain,
        replace(plain, readiness=touchy, liveness=touchy),
        replace(plain, restart=policy(limit=3)),
        replace(plain, restart=policy(policy="on_failure")),
        replace(plain, restart=policy(policy="never")),
        instance("api_server", restart=policy()),
        instance("once", startup=None, readiness=None, liveness=None, restart=policy()),
        instance("odd", startup=None, restart=policy(limit=0)),
    ]


SPECS = _specs()


# ---------------------------------------------------------------- the world


@dataclass
class World:
    """Carries effects out, as a well-behaved engine does, at moments that the choices decide."""

    spec: InstanceSpec
    now: float = 1000.0
    process: int | None = None
    """The run of the process that lives, or is about to."""
    spawning: bool = False
    known: bool = False
    """``Spawned`` has been handled, and ``Exited`` has not."""
    told: Stage | None = None
    probes: set[Check] = field(default_factory=set)
    probed_run: int = 0
    entering: bool = False
    member: bool = False
    """The controller has been told to have it, and not told otherwise since."""
    inbox: deque[Event] = field(default_factory=deque)
    diagnoses: list[int] = field(default_factory=list)
    timer: Timer | None = None
    pids: itertools.count[int] = field(default_factory=lambda: itertools.count(100))

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Spawn(run):
                self.process, self.spawning, self.told = run, True, None
            case Signal(stage):
                self.told = stage
            case StartProbes(run, checks):
                self.probed_run = run
                asked = {
                    Check.STARTUP: self.spec.startup,
                    Check.READINESS: self.spec.readiness,
                    Check.LIVENESS: self.spec.liveness,
                }
                self.probes |= {check for check in checks if asked[check] is not None}
            case StopProbes():
                self.probes.clear()
            case EnterRotation():
                self.entering = self.member = True
            case LeaveRotation():
                self.entering = self.member = False
            case Diagnose(run):
                self.diagnoses.append(run)

    def spawns(self, succeeds: bool, hopeless: bool = False) -> None:
        assert self.process is not None
        if not self.spawning:
            return
        self.spawning = False
        if succeeds:
            self.inbox.append(Spawned(self.process, next(self.pids)))
        else:
            self.inbox.append(SpawnFailed(self.process, "cannot fork", hopeless))
            self.process = None

    def dies(self, code: int | None, signal: str | None = None) -> None:
        if self.process is not None and not self.spawning:
            self.inbox.append(Exited(self.process, code, signal))
            self.process = None

    def answers(self, check: Check, outcome: Outcome) -> None:
        if check in self.probes:
            self.inbox.append(Probed(self.probed_run, check, outcome, "an answer"))
            if check is Check.STARTUP and outcome is Outcome.PASSED:
                self.probes.discard(check)

    def controller_has_it(self, run: int) -> None:
        if self.entering:
            self.entering = False
            self.inbox.append(EnteredRotation(run))

    def is_diagnosed(self, hopeless: bool) -> None:
        if self.diagnoses:
            self.inbox.append(Diagnosed(self.diagnoses.pop(0), "boom", hopeless))

    def timer_is_due(self) -> None:
        if self.timer is not None:
            self.now = max(self.now, self.timer.at)
            self.inbox.append(TimerFired(self.timer.epoch))


# ---------------------------------------------------------------- the oracle


@dataclass
class Oracle:
    """What must hold, from what has happened. Each fact below is re-derived from the history."""

    spec: InstanceSpec
    wanted: bool = False
    run: int = 0
    stopping: bool = False
    """It was told to end (its probes were stopped while it lived), since it was spawned."""
    fault: bool = False
    """...for a reason of its own, and nobody has said anything since."""
    answered: bool = False
    """The startup questions have passed in this run, since it was last out of rotation."""
    crashes: int = 0
    """Ends in a row that nobody asked for, since a person started it, or it was stable."""
    hopeless: int = 0
    ready_since: float | None = None

    def check(
        self,
        world: World,
        event: Event,
        before: Status,
        after: Status,
        effects: tuple[Effect, ...],
        luck: float,
    ) -> None:
        """To be called before the effects are carried out."""
        if self._is_stale(event, before):
            assert (after, effects) == (before, ())
            return
        ended = isinstance(event, Exited | SpawnFailed) and before.state not in DOWN
        unasked = ended and self.wanted and (not self.stopping or self.fault)
        self._learn(world, event, ended, unasked)
        self._check_effects(world, effects)
        if unasked:
            self._check_decision(world, event, after, effects, luck)
        elif ended:
            assert after.state is State.STOPPED
            assert Spawn not in map(type, effects)
        if self.ready_since is None and after.state is State.READY:
            self.ready_since = world.now
        elif after.state is not State.READY:
            self._forgive(world)
        assert after.wanted is self.wanted, "nothing else loses what is wanted"
        if after.state is not before.state:
            assert after.reason
            assert after.since == world.now
            assert isinstance(event, Spawned) or after.reason != before.reason or ended
        self._check_timer(world, after)

    def _is_stale(self, event: Event, before: Status) -> bool:
        if isinstance(event, TimerFired):
            return before.timer is None or event.epoch != before.timer.epoch
        if isinstance(event, Diagnosed):
            return event.exited_run < self.run - 1
        return getattr(event, "run", self.run) != self.run

    def _learn(self, world: World, event: Event, ended: bool, unasked: bool) -> None:
        match event:
            case StartRequested() | RestartRequested():
                from_scratch = isinstance(event, RestartRequested) or world.process is None
                self.wanted = True
                self.fault = False
                if from_scratch or self.stopping:
                    self.crashes = self.hopeless = 0
                    self.ready_since = None
            case StopRequested():
                self.wanted = self.fault = False
            case Exited(_, code):
                self._forgive(world)
                finished = self.spec.restart.policy != "always" and code == 0
                if unasked and finished and not self.stopping:
                    self.wanted = False
            case SpawnFailed(_, _, hopeless):
                self.hopeless = self.hopeless + 1 if hopeless else 0
            case Diagnosed(_, _, hopeless):
                self.hopeless = self.hopeless + 1 if hopeless else 0
                if world.known and self.ready_since is not None:
                    self.hopeless = 0
            case Probed(_, Check.STARTUP, Outcome.PASSED):
                self.answered = True
        if unasked:
            self.crashes += 1

    def _forgive(self, world: World) -> None:
        """Stable means: ready for a while without a break."""
        if self.ready_since is not None:
            if world.now - self.ready_since >= STABLE:
                self.crashes = 0
            self.ready_since = None

    def _check_effects(self, world: World, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Spawn(run):
                    assert world.process is None, "two processes of one instance"
                    assert run == self.run + 1
                    self.run, self.stopping = run, False
                    self.fault = self.answered = False
                case Signal():
                    assert world.known
                case StartProbes(run):
                    assert world.known
                    assert run == self.run
                case EnterRotation(run):
                    assert world.known
                    assert run == self.run
                    assert self.answered or self.spec.startup is None
                    assert self.spec.in_rotation
                case LeaveRotation():
                    assert world.member
                    self.answered = False
                case StopProbes():
                    self.stopping = True
                case Diagnose(run):
                    assert run == self.run

    def _check_decision(
        self,
        world: World,
        event: Event,
        after: Status,
        effects: tuple[Effect, ...],
        luck: float,
    ) -> None:
        """It ended, and nobody had asked for that: what does its policy say?"""
        policy = self.spec.restart
        if not self.wanted:
            assert after.state is State.STOPPED
        elif (
            policy.policy == "never"
            or self.hopeless >= HOPELESS_TRIES
            or (policy.limit is not None and self.crashes > policy.limit)
        ):
            assert after.state is State.FAILED
        elif self.crashes == 1:
            assert after.state is State.STARTING
            assert Spawn(self.run) in effects
        else:
            assert after.state is State.BACKOFF
            assert after.timer is not None
            full = policy.backoff
            for _ in range(self.crashes - 2):
                full = min(policy.backoff_max, full * 2)
            delay = max(LEAST_DELAY, full * (1 - policy.jitter * luck))
            assert after.timer.at - world.now == pytest.approx(delay)

    def _check_timer(self, world: World, after: Status) -> None:
        waits = after.state in (State.BACKOFF, State.STOPPING)
        if after.state is State.STARTING:
            waits = self.spec.startup is not None and not after.in_rotation
        assert (after.timer is not None) is waits
        assert after.timer is None or after.timer.at > world.now

    def check_world(self, world: World, status: Status) -> None:
        """To be called after the effects have been carried out."""
        if status.state in DOWN:
            assert world.process is None
            assert not world.known
            assert not world.probes
            assert status.pid is None
        if status.state in UP:
            assert world.known
            assert status.pid is not None
        if world.member:
            assert world.known
            assert self.answered or self.spec.startup is None
            assert status.state in (State.STARTING, *UP)
        if status.state is State.READY and self.spec.in_rotation:
            assert world.member
        if status.state is State.STOPPING and world.process is not None and world.known:
            assert world.told is not None, "it waits for an end that it has not asked for"
        if world.probes:
            assert world.known
            assert world.probed_run == self.run


# ---------------------------------------------------------------- a life


class Life:
    def __init__(self, spec: InstanceSpec) -> None:
        self.spec = spec
        self.status = Status()
        self.world = World(spec)
        self.oracle = Oracle(spec)
        self.told: list[str] = []

    def handle(self, event: Event, luck: float = 0.0) -> None:
        world, before = self.world, self.status
        self.told.append(f"{world.now:g} {before.state}: {event}")
        if isinstance(event, Probed) and event.run == self.oracle.run and world.known:
            self._fault_ahead(event)
        after, effects = step(before, event, self.spec, now=world.now, jitter=luck)
        self._fault_found(event, before, after)
        if isinstance(event, Spawned) and event.run == self.oracle.run:
            world.known = True
        if isinstance(event, Exited) and event.run == self.oracle.run:
            world.known = False
        self.oracle.check(world, event, before, after, effects, luck)
        for effect in effects:
            world.carry_out(effect)
        self.status, world.timer = after, after.timer
        self.oracle.check_world(world, after)

    def _fault_ahead(self, event: Probed) -> None:
        pass

    def _fault_found(self, event: Event, before: Status, after: Status) -> None:
        """A stop that follows a timer or an answer is nobody's wish: its own fault."""
        begun = after.state is State.STOPPING and before.state is not State.STOPPING
        if begun and isinstance(event, TimerFired | Probed):
            self.oracle.fault = self.oracle.wanted

    def handle_next(self, luck: float = 0.0) -> bool:
        if not self.world.inbox:
            return False
        self.handle(self.world.inbox.popleft(), luck)
        return True

    def settle(self) -> None:
        """What the reconciler does when its inbox is empty."""
        if not self.status.wanted and self.status.state in (State.STARTING, *UP):
            self.handle(DependentsStopped())
        elif self.status.wanted and self.status.state is State.STOPPED:
            self.handle(DependenciesReady())
