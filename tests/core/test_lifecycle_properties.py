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
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import STATUS, instance, worker

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Probe, Progress, RestartPolicy
from supervisor.core.lifecycle import (
    Adjusted,
    BlockersFound,
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Diagnosed,
    Drain,
    Drained,
    Effect,
    EnteredRotation,
    EnterRotation,
    Event,
    Exited,
    FindBlockers,
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
HOPELESS = (CauseClass.WRONG_CONFIG,)


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
        replace(plain, drain_timeout=30.0),
        replace(plain, drain_timeout=30.0, readiness=touchy, restart=policy(policy="on_failure")),
        replace(plain, restart=policy(limit=3)),
        replace(plain, restart=policy(policy="on_failure")),
        replace(plain, restart=policy(policy="never")),
        instance("api_server", restart=policy()),
        instance("once", startup=None, readiness=None, liveness=None, restart=policy()),
        instance("odd", startup=None, restart=policy(limit=0)),
    ]


SPECS = _specs()


def _adjusted(spec: InstanceSpec, kind: int) -> InstanceSpec:
    """The same process, supervised in another way."""
    probe = spec.liveness or Probe(STATUS, interval=1.0, timeout=1.0)
    readiness = replace(probe, failures=1 + kind // 8 % 3)
    progress = spec.progress and replace(spec.progress, failures=1 + kind // 10 % 3)
    others: list[dict[str, Any]] = [
        {"models": ("renamed", str(kind))},
        {"drain_timeout": float(kind % 3 * 20)},
        {"readiness": None},
        {"readiness": readiness},
        {"liveness": None},
        {"liveness": readiness},
        {"progress": progress},
        {"progress": progress and replace(progress, enabled=kind // 10 % 2 == 0)},
        {"startup": spec.startup and replace(spec.startup, interval=float(kind))},
        {"stop_grace": 1.0 + kind, "env": (("NEW", "1"),)},
    ]
    return replace(spec, **others[kind % 10])


def progress_of(spec: InstanceSpec) -> Progress | None:
    """None: nobody looks for it."""
    return spec.progress if spec.progress and spec.progress.enabled else None


# ---------------------------------------------------------------- the world


@dataclass
class World:
    """Carries effects out, as a well-behaved engine does, at moments that the choices decide."""

    spec: InstanceSpec
    now: float = 1000.0
    process: int | None = None
    """The run of the process that lives, or is about to."""
    spawning: bool = False
    coming: bool = False
    """It is to be spawned, and how that went has not been handled."""
    known: bool = False
    """``Spawned`` has been handled, and ``Exited`` has not."""
    told: Stage | None = None
    probes: set[Check] = field(default_factory=set)
    probed_run: int = 0
    entering: int | None = None
    """The run that the controller is about to have."""
    draining: int | None = None
    """The run that is to tell when it has no request any more."""
    member: bool = False
    """The controller has been told to have it, and not told otherwise since."""
    inbox: deque[Event] = field(default_factory=deque)
    diagnoses: list[int] = field(default_factory=list)
    timer: Timer | None = None
    pids: itertools.count[int] = field(default_factory=lambda: itertools.count(100))

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Spawn(run):
                self.process, self.told, self.draining = run, None, None
                self.spawning = self.coming = True
            case Signal(stage):
                self.told = stage
            case StartProbes(run, checks):
                self.probed_run = run
                asked = {
                    Check.STARTUP: self.spec.startup,
                    Check.READINESS: self.spec.readiness,
                    Check.LIVENESS: self.spec.liveness,
                    Check.PROGRESS: progress_of(self.spec),
                }
                self.probes -= {*checks}
                self.probes |= {check for check in checks if asked[check] is not None}
            case StopProbes():
                self.probes.clear()
            case EnterRotation(run):
                self.entering, self.member = run, True
            case LeaveRotation():
                self.entering, self.member = None, False
            case Drain(run):
                self.draining = run
            case Diagnose(run):
                self.diagnoses.append(run)
            case FindBlockers(run):
                self.inbox.append(BlockersFound(run, "pid 100, deaf"))

    def spawns(self, succeeds: bool, kind: CauseClass = CauseClass.UNKNOWN) -> None:
        if not self.spawning or self.process is None:
            return
        self.spawning = False
        if succeeds:
            self.inbox.append(Spawned(self.process, next(self.pids)))
        else:
            self.inbox.append(SpawnFailed(self.process, "cannot fork", kind))
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

    def controller_has_it(self) -> None:
        if self.entering is not None:
            self.inbox.append(EnteredRotation(self.entering))
            self.entering = None

    def has_drained(self) -> None:
        if self.draining is not None:
            self.inbox.append(Drained(self.draining))
            self.draining = None

    def is_diagnosed(self, kind: CauseClass) -> None:
        if self.diagnoses:
            self.inbox.append(Diagnosed(self.diagnoses.pop(0), "boom", kind))

    def time_passes(self, seconds: float) -> None:
        if self.timer is not None and self.timer.at <= self.now + seconds:
            self.timer_is_due()
        else:
            self.now += seconds

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
    """It has been told to end (its probes were stopped) since it was spawned."""
    fault: bool = False
    """...for a reason of its own, and nobody has said anything since."""
    answered: bool = False
    """The startup questions have passed in this run, since it was last taken out of rotation."""
    crashes: int = 0
    """Ends in a row that nobody asked for, since a person started it, or it was stable."""
    hopeless: int = 0
    kind: CauseClass | None = None
    """Why it ended the last time that this was told, since it ended for another reason."""
    drains: bool = False
    adjusted_run: int = -1
    """Its startup questions may have been changed while the last answer was on its way."""
    ready_since: float | None = None
    misses: dict[Check, int] = field(default_factory=dict)
    """Failures in a row of this run."""

    def check_step(
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
        self._learn(world, event, before, unasked=unasked)
        if isinstance(event, Adjusted):
            self.adjusted_run = self.run
        self._check_effects(world, event, effects)
        self._check_drain(world, event, effects)
        if isinstance(event, Adjusted):
            self._check_adjustment(world, event, before, after, effects)
        if unasked:
            self._check_decision(world, after, effects, luck)
        elif ended:
            assert after.state is State.STOPPED
        assert after.wanted is self.wanted, "nothing else changes what is wanted"
        self._check_words(world, before, after)
        if isinstance(event, Probed):
            self._check_probe(event, before, after, effects)
        if isinstance(event, Diagnosed):
            self._check_waiting_anew(world, event, before, after, luck)
            if self.ready_since is not None and world.now - self.ready_since >= STABLE:
                self.kind = after.last_exit_class  # it may be forgiven already: no matter
        assert after.last_exit_class is self.kind
        self._check_timer(world, before, after)
        if after.state is not State.READY:
            self._is_ready_no_more(world)
        elif self.ready_since is None:
            self.ready_since, self.misses = world.now, {}
            if self.spec.startup is not None:
                self.hopeless = 0

    def _check_probe(
        self, event: Probed, before: Status, after: Status, effects: tuple[Effect, ...]
    ) -> None:
        if event.outcome is Outcome.UNASKED or before.state not in UP:
            assert event.outcome is Outcome.PASSED or (after.state, effects) == (before.state, ())
            return
        asked = {
            Check.READINESS: self.spec.readiness,
            Check.LIVENESS: self.spec.liveness,
            Check.PROGRESS: progress_of(self.spec),
        }
        if event.check in asked and asked[event.check] is None:
            assert (after.state, effects) == (before.state, ()), "nobody asks that any more"
            return
        failed = event.outcome is not Outcome.PASSED
        count = self.misses[event.check] = self.misses.get(event.check, 0) + 1 if failed else 0
        if event.check is Check.READINESS and self.spec.readiness:
            too_many = failed and count >= self.spec.readiness.failures
            left = before.state is State.READY and after.state is State.UNREADY
            assert left is (too_many and before.state is State.READY)
            assert not (too_many and after.in_rotation)
        if event.check is Check.PROGRESS and self.spec.progress:
            too_many = failed and count >= self.spec.progress.failures
            condemned = event.outcome is Outcome.CONDEMNED
            assert (after.state is State.STOPPING) is (too_many or condemned)
        if event.check is Check.LIVENESS and self.spec.liveness:
            too_many = failed and count >= self.spec.liveness.failures
            assert (after.state is State.STOPPING) is too_many

    def _is_stale(self, event: Event, before: Status) -> bool:
        if isinstance(event, TimerFired):
            return before.timer is None or event.epoch != before.timer.epoch
        if isinstance(event, Diagnosed):
            is_older = event.exited_run < self.run
            started_since = before.state in (State.STARTING, *UP) and self.crashes == 0
            return event.exited_run < self.run - 1 or (is_older and started_since)
        return getattr(event, "run", self.run) != self.run

    def _learn(self, world: World, event: Event, before: Status, *, unasked: bool) -> None:
        match event:
            case StartRequested() | RestartRequested():
                self.wanted, self.fault = True, False
            case StopRequested():
                self.wanted = self.fault = False
            case Exited(_, code):
                self._is_ready_no_more(world)
                if not unasked or self.stopping:
                    self.kind = None
                finished = self.spec.restart.policy != "always" and code == 0
                if unasked and finished and not self.stopping:
                    self.wanted = False
            case SpawnFailed(_, _, kind):
                self.hopeless = self.hopeless + 1 if kind in HOPELESS else 0
                self.kind = kind
            case Diagnosed(exited_run, _, kind):
                has_answered_since = before.state in UP and self.spec.startup is not None
                counts = kind in HOPELESS and not has_answered_since
                self.hopeless = self.hopeless + 1 if counts else 0
                if exited_run == self.run or before.state in (State.STARTING, *UP):
                    self.kind = kind
            case Probed(_, Check.STARTUP, Outcome.PASSED):
                self.answered = True
            case TimerFired() if before.state is State.READY:
                assert self.ready_since is not None
                assert world.now - self.ready_since >= STABLE - 1e-6
                self.crashes = self.hopeless = 0
        if unasked:
            self.crashes += 1

    def _is_ready_no_more(self, world: World) -> None:
        if self.ready_since is not None and world.now - self.ready_since >= STABLE:
            self.crashes = self.hopeless = 0
        self.ready_since = None

    def _check_effects(self, world: World, event: Event, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Spawn(run):
                    assert world.process is None, "two processes of one instance"
                    assert run == self.run + 1
                    assert self.wanted
                    self.run, self.stopping = run, False
                    self.fault = self.answered = False
                    if isinstance(event, DependenciesReady):
                        self.crashes = self.hopeless = 0
                case Signal(stage):
                    assert world.known or world.coming
                    sterner = {None: {*Stage} - {Stage.DRAIN}, Stage.TERM: {Stage.INT}}
                    assert stage in sterner.get(world.told, {Stage.KILL})
                case StartProbes(run, checks):
                    assert world.known
                    assert run == self.run
                    again = world.probes & {*checks} & {Check.STARTUP}
                    assert not again or self.adjusted_run == run, "begun anew before they could end"
                case EnterRotation(run):
                    assert world.known
                    assert run == self.run
                    assert self.answered or self.spec.startup is None
                    assert self.spec.in_rotation
                case LeaveRotation():
                    assert world.member
                    self.answered = False
                case StopProbes():
                    own = Exited | TimerFired | Probed | RestartRequested
                    assert isinstance(event, own) or not self.wanted
                    self.stopping = True
                    self.fault = self.wanted and isinstance(event, TimerFired | Probed)
                case Diagnose(run):
                    assert run == self.run
                case FindBlockers(run):
                    assert run == self.run
                    assert world.told is Stage.KILL
                    assert isinstance(event, TimerFired | Hurried)

    def _check_drain(self, world: World, event: Event, effects: tuple[Effect, ...]) -> None:
        """Who serves ends its requests first, unless it is hung or somebody is in a hurry."""
        asked = isinstance(event, DependentsStopped | RestartRequested) and StopProbes() in effects
        serves = world.member and world.known and self.spec.drain_timeout > 0
        drains = any(isinstance(effect, Drain) for effect in effects)
        assert drains is (asked and serves)
        signals = [effect.stage for effect in effects if isinstance(effect, Signal)]
        assert not (drains and signals)
        if drains:
            self.drains = True
        elif self.drains and signals:
            assert isinstance(event, Drained | TimerFired | Hurried)
            assert signals[0] is Stage.TERM
            self.drains = False
        elif isinstance(event, Exited):
            self.drains = False

    def _check_adjustment(
        self,
        world: World,
        event: Adjusted,
        before: Status,
        after: Status,
        effects: tuple[Effect, ...],
    ) -> None:
        """Probes that ask otherwise are begun anew, a new name is told, and that is all."""
        is_same = {
            Check.STARTUP: event.before.startup == self.spec.startup,
            Check.READINESS: event.before.readiness == self.spec.readiness,
            Check.LIVENESS: event.before.liveness == self.spec.liveness,
            Check.PROGRESS: event.before.progress == self.spec.progress,
        }
        entered = [effect for effect in effects if isinstance(effect, EnterRotation)]
        if before.state is not State.UNREADY:
            assert after == before
            assert bool(entered) is (world.member and event.before.models != self.spec.models)
            for effect in effects:
                assert isinstance(effect, EnterRotation | StartProbes)
                if isinstance(effect, StartProbes):
                    assert not any(is_same[check] for check in effect.checks)
        if before.state in UP:
            begun = {c for e in effects if isinstance(e, StartProbes) for c in e.checks}
            assert begun >= {c for c, same in is_same.items() if not same} - {Check.STARTUP}

    def _check_decision(
        self, world: World, after: Status, effects: tuple[Effect, ...], luck: float
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
            assert Spawn(self.run) in effects
        else:
            assert after.state is State.BACKOFF
            assert after.timer is not None
            assert after.timer.at - world.now == pytest.approx(self._delay(luck))

    def _delay(self, luck: float) -> float:
        """What a policy asks for, and no less than what is waited for takes."""
        policy = self.spec.restart
        waits = {
            CauseClass.PORT_BUSY: 1.0,
            CauseClass.GPU_MEMORY: 10.0,
            CauseClass.HOST_MEMORY: 10.0,
            CauseClass.GPU_LOST: 60.0,
        }
        full, wait = policy.backoff, waits.get(self.kind or CauseClass.UNKNOWN, 0.0)
        most = max(policy.backoff_max, wait)
        for _ in range(self.crashes - 2):
            full, wait = min(policy.backoff_max, full * 2), min(most, wait * 2)
        return max(LEAST_DELAY, max(full, wait) * (1 - policy.jitter * luck))

    def _check_waiting_anew(
        self, world: World, event: Diagnosed, before: Status, after: Status, luck: float
    ) -> None:
        """A late diagnosis changes how long it is waited, and never what is done about it."""
        if before.state is not State.BACKOFF or self.hopeless >= HOPELESS_TRIES:
            return
        assert after.state is State.BACKOFF
        assert after.timer is not None
        if event.exited_run != self.run or event.kind is before.last_exit_class:
            assert after.timer == before.timer
        else:
            due = max(before.since + self._delay(luck), world.now + LEAST_DELAY)
            assert after.timer.at == pytest.approx(due)

    def _check_words(self, world: World, before: Status, after: Status) -> None:
        assert after.reason
        if after.state is not before.state:
            assert after.since == world.now
            assert after.reason != before.reason or before.state is State.STOPPING

    def _check_timer(self, world: World, before: Status, after: Status) -> None:
        waits = after.state in (State.BACKOFF, State.STOPPING)
        if after.state is State.STARTING:
            questions_left = not (self.answered and self.spec.in_rotation)
            waits = self.spec.startup is not None and questions_left
        if after.state is State.READY:
            waits = self.spec.startup is None and after.streak > 0
        assert (after.timer is not None) is waits
        if after.timer is not None and after.timer != before.timer:
            assert after.timer.at > world.now
            assert after.timer.epoch > before.epoch

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
        if status.state is State.STOPPING and world.known:
            waits = world.told is not None or status.stage is Stage.DRAIN
            assert waits, "it waits for an end that it has not asked for"
        if world.probes:
            assert world.known
            assert world.probed_run == self.run


# ---------------------------------------------------------------- a life


class Life:
    def __init__(
        self, spec: InstanceSpec, watch: Callable[[Status, Event], None] | None = None
    ) -> None:
        self.watch = watch
        self.status = Status()
        self.world = World(spec)
        self.oracle = Oracle(spec)
        self.requests = 0

    def handle(self, event: Event, luck: float = 0.0) -> None:
        world, before, run = self.world, self.status, self.oracle.run
        if self.watch is not None:
            self.watch(before, event)
        after, effects = step(before, event, world.spec, now=world.now, jitter=luck)
        if isinstance(event, Spawned | SpawnFailed) and event.run == run:
            world.coming = False
        if isinstance(event, Spawned) and event.run == run:
            world.known, world.told = True, None  # what was sent before may have come too early
        if isinstance(event, Exited) and event.run == run:
            world.known = False
        self.oracle.check_step(world, event, before, after, effects, luck)
        for effect in effects:
            world.carry_out(effect)
        self.status, world.timer = after, after.timer
        self.oracle.check_world(world, after)

    def handle_next(self, luck: float) -> None:
        if self.world.inbox:
            self.handle(self.world.inbox.popleft(), luck)

    def settle(self) -> bool:
        """What the reconciler does when its inbox is empty."""
        if self.world.inbox:
            return False
        if not self.status.wanted and self.status.state in (State.STARTING, *UP):
            self.handle(DependentsStopped())
        elif self.status.wanted and self.status.state is State.STOPPED:
            self.handle(DependenciesReady())
        else:
            return False
        return True

    def request(self, kind: int) -> None:
        self.requests += 1
        reason = f"request {self.requests}"
        requests = (StartRequested, StartRequested, StopRequested, RestartRequested)
        self.world.inbox.append(requests[kind % 4](reason))

    def something_old(self, kind: int) -> None:
        """What an older process, or an older timer, might have left in the inbox."""
        run = self.oracle.run - 1 - kind % 2
        events: tuple[Event, ...] = (
            Spawned(run, 99),
            SpawnFailed(run, "old", CauseClass.WRONG_CONFIG),
            BlockersFound(run, "old"),
            Exited(run, 1, None),
            EnteredRotation(run),
            Drained(run),
            TimerFired(self.status.epoch - 1),
            Diagnosed(self.oracle.run - 2, "old", CauseClass.WRONG_CONFIG),
            *(Probed(run, check, outcome, "old") for check in Check for outcome in Outcome),
        )
        self.world.inbox.append(events[kind // 2 % len(events)])

    def adjust(self, kind: int) -> None:
        before = self.world.spec
        self.world.spec = self.oracle.spec = _adjusted(before, kind)
        self.handle(Adjusted(before))

    def something_untimely(self, kind: int) -> None:
        """What the reconciler would not send now, and must do no harm."""
        self.world.inbox.append((Hurried(), DependenciesReady(), DependentsStopped())[kind % 3])

    def calm_down(self) -> None:
        """Nobody asks for anything any more, and the world behaves: it must come to rest."""
        world = self.world
        for _ in range(300):
            if world.inbox:
                self.handle_next(0.0)
            elif world.spawning:
                world.spawns(succeeds=True)
            elif self.settle():
                pass
            elif world.told is Stage.KILL:
                world.dies(None, "SIGKILL")
                world.told = None
            elif Check.STARTUP in world.probes:
                world.answers(Check.STARTUP, Outcome.PASSED)
            elif world.entering is not None:
                world.controller_has_it()
            elif world.draining is not None:
                world.has_drained()
            elif self.status.state is State.UNREADY:
                world.answers(Check.READINESS, Outcome.PASSED)
            elif world.timer is not None:
                world.timer_is_due()
            else:
                return
        pytest.fail(f"it never comes to rest: {self.status}")


OUTCOMES = (Outcome.PASSED, Outcome.PASSED, Outcome.FAILED, Outcome.FAILED, Outcome.UNASKED)
KINDS = (*CauseClass, CauseClass.WRONG_CONFIG, CauseClass.WRONG_CONFIG)
DECISIVE = (*OUTCOMES, Outcome.CONDEMNED)
EXITS = ((0, None), (1, None), (2, None), (None, "SIGKILL"))


def possible(life: Life) -> list[Callable[[int], object]]:
    """What may happen next, the frequent things more than once. Each takes a number: how."""
    world = life.world
    actions: list[Callable[[int], object]] = [
        life.request,
        life.something_old,
        life.something_untimely,
        life.adjust,
        world.time_passes,
    ]
    if world.inbox:
        actions += [lambda n: life.handle_next(n / 255)] * 16
    else:
        actions += [lambda _: life.settle()] * 8
    if world.spawning:
        actions += [
            lambda n: world.spawns(succeeds=n % 8 > 0, kind=KINDS[n // 8 % len(KINDS)])
        ] * 12
    elif world.process is not None:
        actions.append(lambda n: world.dies(*EXITS[n % 4]))
    for check in world.probes:
        outcomes = DECISIVE if check is Check.PROGRESS else OUTCOMES
        actions += [
            lambda n, check=check, outcomes=outcomes: world.answers(
                check, outcomes[n % len(outcomes)]
            )
        ] * (2 if check is Check.PROGRESS else 6)
    if world.entering is not None:
        actions += [lambda _: world.controller_has_it()] * 12
    if world.draining is not None:
        actions += [lambda _: world.has_drained()] * 3
    if world.diagnoses:
        actions.append(lambda n: world.is_diagnosed(KINDS[n % len(KINDS)]))
    if world.timer is not None:
        actions.append(lambda _: world.timer_is_due())
    return actions


def play(choices: bytes, watch: Callable[[Status, Event], None] | None = None) -> Life:
    """A life: the first byte says whose, each further pair what happens and how."""
    life = Life(SPECS[choices[0] % len(SPECS)], watch)
    life.request(0)
    for which, how in zip(choices[1::2], choices[2::2], strict=False):
        actions = possible(life)
        actions[which % len(actions)](how)
    return life


def come_to_rest(life: Life) -> State:
    life.calm_down()
    status, world = life.status, life.world
    if status.wanted:
        assert status.state in (State.READY, State.FAILED)
    else:
        assert status.state is State.STOPPED
    alive = status.state is State.READY
    assert (world.process is not None) is alive
    assert world.member is (alive and world.spec.in_rotation)
    assert status.timer is None
    return status.state


# ---------------------------------------------------------------- the properties


@settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=41, max_size=241))
def test_whatever_happens_the_invariants_hold_and_it_comes_to_rest(choices: bytes) -> None:
    come_to_rest(play(choices))


def test_thousands_of_longer_lives() -> None:
    """Plain chance finds what a search that prefers short and simple lives does not reach."""
    chance = random.Random(20361)
    ends = {come_to_rest(play(chance.randbytes(401))) for _ in range(1500)}
    assert ends == {State.READY, State.FAILED, State.STOPPED}


def test_asked_to_stop_it_always_stops() -> None:
    chance = random.Random(21001)
    for _ in range(500):
        life = play(chance.randbytes(201))
        life.world.inbox.append(StopRequested("the end"))
        assert come_to_rest(life) is State.STOPPED


def test_these_lives_are_eventful() -> None:
    """So that the properties above are about something: what can happen in a state, does."""
    seen: set[tuple[State, type]] = set()
    chance = random.Random(8888)
    for _ in range(600):
        play(chance.randbytes(401), lambda status, event: seen.add((status.state, type(event))))
    no_process = itertools.product(DOWN, (Spawned, SpawnFailed))
    spawned = itertools.product(UP, (Spawned, SpawnFailed))
    impossible = {*no_process, *spawned}
    assert set(itertools.product(State, get_args(Event))) - seen <= impossible
