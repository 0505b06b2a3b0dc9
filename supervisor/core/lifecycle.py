"""The life of one instance: ``step(status, event) -> (status, effects)``.

Pure: time and chance are arguments, timers are data. A timer carries an epoch and a process a run
number, so that what fires or reports late changes nothing. Each function below is one event; in
it, every state is answered for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec
from supervisor.core.restart import (
    HOPELESS_TRIES,
    LEAST_DELAY,
    Finished,
    GiveUp,
    RestartAfter,
    decide,
)

INTERRUPT_GRACE = 5.0
"""Seconds between SIGINT and SIGKILL. A worker cuts its streams on SIGINT."""
FAULT_GRACE = 5.0
"""Seconds at most between SIGTERM and SIGINT for a worker that is at fault: the requests that its
``stop_grace`` is for do not get on."""
HURRIED_GRACE = 1.0
"""The same, for somebody who has asked twice."""
KILL_GRACE = 10.0
"""Seconds between two SIGKILLs: a process that survives one is stuck in the kernel."""
LATE = 5.0
"""Seconds: a timer that fires that much after its time tells of ourselves, not of the instance."""
_DEAF = "not even SIGKILL ends it"


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


RUNNING = frozenset({State.STARTING, State.READY, State.UNREADY})
"""States with a process (or one about to be) that nobody has told to stop."""


class Check(StrEnum):
    """What a probe is for."""

    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"
    PROGRESS = "progress"


LASTING_CHECKS = (Check.READINESS, Check.LIVENESS, Check.PROGRESS)
"""Those of an instance that has started."""


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNASKED = "could not be asked"
    CONDEMNED = "condemned"
    """No further answer is needed: it does nothing any more."""


class Stage(StrEnum):
    """How firmly it has been asked to stop."""

    DRAIN = "drain"
    """Not at all yet: it gets no new requests, and goes on with those it has."""
    TERM = "SIGTERM"
    INT = "SIGINT"
    KILL = "SIGKILL"


@dataclass(frozen=True, slots=True)
class Timer:
    at: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of an instance. Times are seconds of one clock that never jumps."""

    state: State = State.STOPPED
    wanted: bool = False
    reason: str = "not started"
    since: float = 0.0
    run: int = 0
    """Counts processes; what an older one reports is stale."""
    epoch: int = 0
    timer: Timer | None = None
    pid: int | None = None
    born: int = 0
    """Start time of the pid in the kernel's ticks: a pid may come again, the two together not."""
    started_at: float | None = None
    ready_at: float | None = None
    restarts: int = 0
    streak: int = 0
    """Restarts in a row since it was last stable."""
    hopeless: int = 0
    """Exits in a row that no restart can mend."""
    misses: int = 0
    """Readiness failures in a row."""
    dead_misses: int = 0
    """Liveness failures in a row."""
    fruitless: int = 0
    """Single tokens in a row that it was asked for, and could not generate."""
    in_rotation: bool = False
    """It gets requests, or is about to: told to enter, and not told to leave since."""
    asked_anew: bool = False
    """While unready: the startup questions are being asked again."""
    stage: Stage | None = None
    again: bool = False
    """While stopping: start it again afterwards."""
    drain: bool = True
    """Whether a stop waits for the requests it has."""
    stop_reason: str = "stopped"
    """Who or what asked for the last stop, or for the start after it."""
    fault: str | None = None
    """While stopping: why it had to be stopped, if that is its own doing."""
    detail: str = ""
    """The last answer to a probe."""
    last_exit: str = ""
    """Why the last process ended, or could not be started."""
    last_exit_class: CauseClass | None = None
    """The same as a class; until it is known, that of the one before. None: asked for, or none."""


def on_probation(status: Status) -> bool:
    """Ready only because it runs, after a crash: nothing says that it will not crash again at once.

    A startup probe would have said so; without one, it takes a stable while, and a timer ends that.
    """
    return status.state is State.READY and status.timer is not None


# ---------------------------------------------------------------- events: what happened


@dataclass(frozen=True, slots=True)
class StartRequested:
    reason: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    reason: str
    drain: bool = True
    """Whether it may first go on with the requests it has, for its ``drain_timeout``."""


@dataclass(frozen=True, slots=True)
class RestartRequested:
    reason: str


@dataclass(frozen=True, slots=True)
class DependenciesReady:
    """All that it depends on is ready; meant for a stopped instance that is wanted."""


@dataclass(frozen=True, slots=True)
class DependentsStopped:
    """Nothing that must stop before it runs any more; meant for one that is not wanted."""


@dataclass(frozen=True, slots=True)
class Hurried:
    """Somebody asks a second time: skip the grace. A third time: kill."""


@dataclass(frozen=True, slots=True)
class Spawned:
    run: int
    pid: int
    born: int = 0
    how: str = "started"


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    run: int
    cause: str
    kind: CauseClass


@dataclass(frozen=True, slots=True)
class Exited:
    run: int
    code: int | None
    signal: str | None

    def __str__(self) -> str:
        if self.signal:
            return f"was killed by {self.signal}"
        if self.code is None:  # not our child, and the kernel does not tell
            return "ended, nobody saw how"
        return f"exited with {self.code}"


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """The log of an exited process has been read: its cause, in words and as a class.

    It comes a moment after the exit, when the next process may be running already.
    """

    exited_run: int
    cause: str
    kind: CauseClass


@dataclass(frozen=True, slots=True)
class Probed:
    run: int
    check: Check
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class EnteredRotation:
    run: int


@dataclass(frozen=True, slots=True)
class Drained:
    """It has no request any more, and gets none."""

    run: int


@dataclass(frozen=True, slots=True)
class BlockersFound:
    """What is left of a tree that SIGKILL has not ended, in words: which processes, and why."""

    run: int
    left: str


@dataclass(frozen=True, slots=True)
class Adjusted:
    """It is supervised by another spec from now on; ``before`` is the one until now."""

    before: InstanceSpec


@dataclass(frozen=True, slots=True)
class TimerFired:
    epoch: int


Event = (
    StartRequested
    | StopRequested
    | RestartRequested
    | DependenciesReady
    | DependentsStopped
    | Hurried
    | Spawned
    | SpawnFailed
    | Exited
    | Diagnosed
    | Probed
    | EnteredRotation
    | Drained
    | BlockersFound
    | Adjusted
    | TimerFired
)


# ---------------------------------------------------------------- effects: what to do about it


@dataclass(frozen=True, slots=True)
class Spawn:
    run: int


@dataclass(frozen=True, slots=True)
class Signal:
    stage: Stage


@dataclass(frozen=True, slots=True)
class StartProbes:
    run: int
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class StopProbes:
    pass


@dataclass(frozen=True, slots=True)
class EnterRotation:
    run: int


@dataclass(frozen=True, slots=True)
class LeaveRotation:
    pass


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell when it has no request any more."""

    run: int


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Read the log of the process that exited and say why."""

    run: int


@dataclass(frozen=True, slots=True)
class FindBlockers:
    """Say what is left of its tree, and what it is doing."""

    run: int


Effect = (
    Spawn
    | Signal
    | StartProbes
    | StopProbes
    | EnterRotation
    | LeaveRotation
    | Drain
    | Diagnose
    | FindBlockers
)
Step = tuple[Status, tuple[Effect, ...]]


# ---------------------------------------------------------------- the step


@dataclass(frozen=True, slots=True)
class _Moment:
    """What a decision may look at besides the status."""

    spec: InstanceSpec
    now: float
    jitter: float


def step(
    status: Status, event: Event, spec: InstanceSpec, *, now: float, jitter: float = 0.0
) -> Step:
    """The next status and what to do. ``jitter`` is a random number from 0 to 1."""
    run = getattr(event, "run", status.run)
    if run != status.run:
        return status, ()
    return _HANDLERS[type(event)](status, event, _Moment(spec, now, jitter))


def _start_requested(status: Status, event: StartRequested, at: _Moment) -> Step:
    match status.state:
        case State.STOPPED | State.BACKOFF | State.FAILED:
            return _await_dependencies(status, event.reason, at), ()
        case State.STOPPING:
            return _start_after_stop(status, event.reason), ()
        case State.STARTING | State.READY | State.UNREADY:
            return replace(status, wanted=True), ()


def _stop_requested(status: Status, event: StopRequested, at: _Moment) -> Step:
    match status.state:
        case State.STOPPED:
            return replace(status, wanted=False, reason=event.reason), ()
        case State.BACKOFF | State.FAILED:
            return _move(status, State.STOPPED, event.reason, at, wanted=False), ()
        case State.STOPPING:
            told = replace(
                status,
                wanted=False,
                again=False,
                fault=None,
                reason=event.reason,
                stop_reason=event.reason,
            )
            if event.drain:
                return told, ()
            told = replace(told, drain=False)
            if status.stage is Stage.DRAIN:
                return _terminate(told, at)
            return (_hastened(told, at) if status.stage is Stage.TERM else told), ()
        case State.STARTING | State.READY | State.UNREADY:
            # It stops on DependentsStopped, which follows at once if nothing depends on it.
            return replace(status, wanted=False, stop_reason=event.reason, drain=event.drain), ()


def _restart_requested(status: Status, event: RestartRequested, at: _Moment) -> Step:
    match status.state:
        case State.STOPPED | State.BACKOFF | State.FAILED:
            return _await_dependencies(status, event.reason, at), ()
        case State.STOPPING:
            return _start_after_stop(status, event.reason), ()
        case State.STARTING | State.READY | State.UNREADY:
            status = replace(status, wanted=True, stop_reason=event.reason, drain=True)
            return _begin_stop(status, event.reason, at, again=True)


def _dependencies_ready(status: Status, event: DependenciesReady, at: _Moment) -> Step:
    if status.state is State.STOPPED and status.wanted:
        # Somebody wants it: whatever happened before has no say any more.
        return _spawn(replace(status, streak=0, hopeless=0), "starting", at)
    return status, ()


def _dependents_stopped(status: Status, event: DependentsStopped, at: _Moment) -> Step:
    if status.state in RUNNING and not status.wanted:
        return _begin_stop(status, status.stop_reason, at)
    return status, ()


def _hurried(status: Status, event: Hurried, at: _Moment) -> Step:
    match status.state:
        case State.STOPPING:
            return _hurry(status, at)
        case State.STARTING | State.READY | State.UNREADY if not status.wanted:
            begun, effects = _begin_stop(status, status.stop_reason, at)
            after, more = _hurry(begun, at)
            return after, tuple(one for one in effects if not isinstance(one, Drain)) + more
        case State.STARTING | State.READY | State.UNREADY:
            return status, ()
        case State.STOPPED | State.BACKOFF | State.FAILED:
            return status, ()


def _spawned(status: Status, event: Spawned, at: _Moment) -> Step:
    started_at = status.started_at or at.now  # told again after an adoption
    alive = replace(status, pid=event.pid, born=event.born, started_at=started_at)
    match status.state:
        case State.STARTING if at.spec.startup is None:
            return _answered(alive, "it runs, and has no startup probe", at)
        case State.STARTING:
            alive = replace(alive, reason=f"{event.how} as pid {event.pid}, not ready yet")
            return alive, (StartProbes(status.run, (Check.STARTUP,)),)
        case State.STOPPING:
            # Asked to stop between the decision to spawn it and its first breath.
            return alive, (Signal(status.stage or Stage.TERM),)
        case State.STOPPED | State.READY | State.UNREADY | State.BACKOFF | State.FAILED:
            return status, ()


def _spawn_failed(status: Status, event: SpawnFailed, at: _Moment) -> Step:
    hopeless = status.hopeless + 1 if event.kind.is_hopeless else 0
    what = f"could not be started: {event.cause}"
    status = replace(status, last_exit=what, last_exit_class=event.kind, hopeless=hopeless)
    return _ended(status, what, succeeded=False, at=at)


def _exited(status: Status, event: Exited, at: _Moment) -> Step:
    effects: tuple[Effect, ...] = (StopProbes(),)
    if status.in_rotation:
        effects += (LeaveRotation(),)
    # Until the diagnosis comes, it has probably ended as the one before.
    supposed = None
    if status.state in RUNNING and status.wanted:
        effects += (Diagnose(status.run),)
        supposed = status.last_exit_class
    status = _proven(status, at)
    status = replace(
        status, pid=None, in_rotation=False, last_exit=str(event), last_exit_class=supposed
    )
    after, more = _ended(status, str(event), succeeded=event.code == 0, at=at)
    return after, effects + more


def _diagnosed(status: Status, event: Diagnosed, at: _Moment) -> Step:
    is_older = event.exited_run < status.run
    started_since = is_older and status.state in RUNNING and status.streak == 0
    if event.exited_run < status.run - 1 or started_since:
        return status, ()  # by a person or a rollout: what was before has no say any more
    hopeless = status.hopeless + 1 if event.kind.is_hopeless else 0
    is_latest = event.exited_run == status.run
    decision, supposed = status.reason.removeprefix(status.last_exit), status.last_exit_class
    status = replace(status, hopeless=hopeless)
    if is_latest or status.state in RUNNING:
        status = replace(status, last_exit=event.cause, last_exit_class=event.kind)
    match status.state:
        case State.BACKOFF if hopeless >= HOPELESS_TRIES:
            verdict = decide(
                at.spec.restart, succeeded=False, streak=0, hopeless=hopeless, jitter=0
            )
            return _move(status, State.FAILED, f"{event.cause}; {verdict.reason}", at), ()
        case State.BACKOFF if is_latest and event.kind is not supposed:
            return _wait_anew(status, decision, at), ()
        case State.BACKOFF | State.FAILED if is_latest:
            return replace(status, reason=f"{event.cause}{decision}"), ()
        case State.STARTING:
            return replace(status, reason=f"{status.reason} (before: {event.cause})"), ()
        case State.READY | State.UNREADY:
            return (replace(status, hopeless=0) if at.spec.startup else status), ()
        case State.STOPPED | State.STOPPING | State.BACKOFF | State.FAILED:
            return status, ()


def _probed(status: Status, event: Probed, at: _Moment) -> Step:
    status = replace(status, detail=event.detail)
    if event.outcome is Outcome.UNASKED:
        return status, ()  # no answer is no evidence against the instance
    passed = event.outcome is Outcome.PASSED
    match event.check:
        case Check.STARTUP:
            return _startup_probed(status, passed, at)
        case Check.READINESS:
            return _readiness_probed(status, passed, event.detail, at)
        case Check.LIVENESS:
            return _liveness_probed(status, passed, event.detail, at)
        case Check.PROGRESS:
            return _progress_probed(status, event.outcome, event.detail, at)


def _startup_probed(status: Status, passed: bool, at: _Moment) -> Step:
    if not passed or status.state not in (State.STARTING, State.UNREADY):
        return status, ()
    return _answered(status, "it answers", at)


def _readiness_probed(status: Status, passed: bool, detail: str, at: _Moment) -> Step:
    if status.state not in (State.READY, State.UNREADY) or at.spec.readiness is None:
        return status, ()
    if passed:
        return _readiness_passed(replace(status, misses=0), at)
    status = replace(_proven(status, at), misses=status.misses + 1)
    limit = at.spec.readiness.failures
    if status.misses < limit or not (status.state is State.READY or status.in_rotation):
        return status, ()
    reason = f"readiness failed {_times(status.misses)}: {detail}"
    effects = (LeaveRotation(),) if status.in_rotation else ()
    return _move(status, State.UNREADY, reason, at, in_rotation=False), effects


def _readiness_passed(status: Status, at: _Moment) -> Step:
    if status.state is State.READY or status.in_rotation or status.asked_anew:
        return status, ()
    if at.spec.startup is None:
        return _answered(status, "it answers again", at)
    # Back after a silence: the startup questions decide, as they did the first time. They are
    # begun once only, since a model may take longer to answer them than until the next pass here.
    return replace(status, asked_anew=True), (StartProbes(status.run, (Check.STARTUP,)),)


def _liveness_probed(status: Status, passed: bool, detail: str, at: _Moment) -> Step:
    if status.state not in (State.READY, State.UNREADY) or at.spec.liveness is None:
        return status, ()
    status = replace(_proven(status, at), dead_misses=0 if passed else status.dead_misses + 1)
    if status.dead_misses < at.spec.liveness.failures:
        return status, ()
    fault = f"liveness failed {_times(status.dead_misses)}: {detail}"
    return _begin_stop(status, fault, at, fault=fault)


def _progress_probed(status: Status, outcome: Outcome, detail: str, at: _Moment) -> Step:
    progress = at.spec.progress
    if status.state not in (State.READY, State.UNREADY) or progress is None or not progress.enabled:
        return status, ()
    fruitless = 0 if outcome is Outcome.PASSED else status.fruitless + 1
    status = replace(_proven(status, at), fruitless=fruitless)
    if outcome is Outcome.CONDEMNED:
        fault = f"it hangs: {detail}"
    elif fruitless >= progress.failures:
        fault = f"asked for one token, it failed {_times(fruitless)}: {detail}"
    else:
        return status, ()
    return _begin_stop(status, fault, at, fault=fault)


def _entered_rotation(status: Status, event: EnteredRotation, at: _Moment) -> Step:
    if status.state in (State.STARTING, State.UNREADY) and status.in_rotation:
        return _ready(status, "it answered a prompt and is in rotation", at)
    return status, ()


def _drained(status: Status, event: Drained, at: _Moment) -> Step:
    if status.state is State.STOPPING and status.stage is Stage.DRAIN:
        return _terminate(replace(status, reason=f"no request is left; sending {Stage.TERM}"), at)
    return status, ()


def _blockers_found(status: Status, event: BlockersFound, at: _Moment) -> Step:
    if status.state is State.STOPPING and status.stage is Stage.KILL:
        return replace(status, reason=f"{_DEAF}: {event.left}"), ()
    return status, ()


def _adjusted(status: Status, event: Adjusted, at: _Moment) -> Step:
    """Ask what is to be asked now, and tell the controller of other names."""
    before, spec = event.before, at.spec
    checks: tuple[Check, ...] = ()
    if status.state in (State.READY, State.UNREADY):
        checks += (Check.READINESS,) if spec.readiness != before.readiness else ()
        checks += (Check.LIVENESS,) if spec.liveness != before.liveness else ()
        checks += (Check.PROGRESS,) if spec.progress != before.progress else ()
    elif status.state is State.STARTING and status.pid is not None and not status.in_rotation:
        checks += (Check.STARTUP,) if spec.startup and spec.startup != before.startup else ()
    effects: tuple[Effect, ...] = (StartProbes(status.run, checks),) if checks else ()
    known_as = (spec.models, spec.multimodal)
    if status.in_rotation and known_as != (before.models, before.multimodal):
        effects += (EnterRotation(status.run),)
    after, more = _asked_otherwise(status, before, at)
    return after, effects + more


def _asked_otherwise(status: Status, before: InstanceSpec, at: _Moment) -> Step:
    """What it waits for on its way back to ready may have changed, or may never come any more."""
    if status.state is not State.UNREADY:
        return status, ()
    was_asked = status.asked_anew
    status = replace(status, asked_anew=was_asked and at.spec.startup == before.startup)
    if at.spec.readiness is None or (was_asked and not status.asked_anew):
        return _readiness_passed(status, at)
    return status, ()


def _timer_fired(status: Status, event: TimerFired, at: _Moment) -> Step:
    if status.timer is None or status.timer.epoch != event.epoch:
        return status, ()
    late = at.now - status.timer.at > LATE
    status = replace(status, timer=None)
    match status.state:
        case State.STARTING if late and at.spec.startup:
            # We were suspended: it could not be asked, and gets the time for another question.
            return _with_timer(status, at.spec.startup.timeout + LATE, at), ()
        case State.STARTING:
            limit = at.spec.startup.deadline if at.spec.startup else 0.0
            fault = f"not ready after {limit:g} s ({status.detail or 'no answer'})"
            return _begin_stop(status, fault, at, fault=fault)
        case State.BACKOFF:
            return _spawn(status, "restarting", at, restart=True)
        case State.STOPPING:
            return _escalate(status, at)
        case State.READY:
            return _forgiven(status), ()
        case State.STOPPED | State.UNREADY | State.FAILED:
            return status, ()


_HANDLERS: dict[type[Any], Callable[[Status, Any, _Moment], Step]] = {
    StartRequested: _start_requested,
    StopRequested: _stop_requested,
    RestartRequested: _restart_requested,
    DependenciesReady: _dependencies_ready,
    DependentsStopped: _dependents_stopped,
    Hurried: _hurried,
    Spawned: _spawned,
    SpawnFailed: _spawn_failed,
    Exited: _exited,
    Diagnosed: _diagnosed,
    Probed: _probed,
    EnteredRotation: _entered_rotation,
    Drained: _drained,
    BlockersFound: _blockers_found,
    Adjusted: _adjusted,
    TimerFired: _timer_fired,
}


# ---------------------------------------------------------------- moves shared by the events


def _move(status: Status, state: State, reason: str, at: _Moment, **changes: Any) -> Status:
    """Into ``state``, without a timer, and without what belonged to the state before."""
    left = {"timer": None, "stage": None, "again": False, "fault": None, "asked_anew": False}
    return replace(status, state=state, reason=reason, since=at.now, **(left | changes))


def _with_timer(status: Status, delay: float, at: _Moment) -> Status:
    epoch = status.epoch + 1
    return replace(status, epoch=epoch, timer=Timer(at.now + delay, epoch))


def _await_dependencies(status: Status, reason: str, at: _Moment) -> Status:
    return _move(status, State.STOPPED, f"{reason}; waiting to start", at, wanted=True)


def _start_after_stop(status: Status, reason: str) -> Status:
    """The word of a person comes before what the restart policy would say."""
    return replace(status, wanted=True, again=True, fault=None, stop_reason=reason)


def _proven(status: Status, at: _Moment) -> Status:
    """Ready for a stable while, it is forgiven the crashes before."""
    stable = status.state is State.READY and at.now - status.since >= at.spec.restart.stable_after
    return _forgiven(status) if stable else status


def _forgiven(status: Status) -> Status:
    return replace(status, streak=0, hopeless=0, timer=None)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times in a row"


def _spawn(status: Status, reason: str, at: _Moment, *, restart: bool = False) -> Step:
    if not at.spec.is_launchable:
        why = f"{reason}; but how it was started is known to an earlier supervisor only"
        return _move(status, State.FAILED, why, at), ()
    status = _move(
        status,
        State.STARTING,
        reason,
        at,
        run=status.run + 1,
        pid=None,
        started_at=None,
        ready_at=None,
        restarts=status.restarts + restart,
        misses=0,
        dead_misses=0,
        detail="",
    )
    if at.spec.startup is not None:
        status = _with_timer(status, at.spec.startup.deadline, at)
    return status, (Spawn(status.run),)


def _answered(status: Status, reason: str, at: _Moment) -> Step:
    """All that was asked of it has passed: ready, or in line for rotation."""
    if not at.spec.in_rotation:
        return _ready(status, reason, at)
    # Its deadline is met: how long the controller takes is not its fault.
    reason = f"{reason}, and enters rotation"
    status = replace(status, in_rotation=True, reason=reason, timer=None)
    return status, (EnterRotation(status.run),)


def _ready(status: Status, reason: str, at: _Moment) -> Step:
    ready_at = status.ready_at or at.now
    status = _move(status, State.READY, reason, at, ready_at=ready_at)
    status = replace(status, misses=0, dead_misses=0, fruitless=0)
    if at.spec.startup is not None:
        status = replace(status, hopeless=0)  # it has answered; merely to run proves nothing
    elif status.streak:
        status = _with_timer(status, at.spec.restart.stable_after, at)  # see `on_probation`
    return status, (StartProbes(status.run, LASTING_CHECKS),)


def _begin_stop(
    status: Status, reason: str, at: _Moment, *, again: bool = False, fault: str | None = None
) -> Step:
    effects: tuple[Effect, ...] = (StopProbes(),)
    if status.in_rotation:
        effects += (LeaveRotation(),)
    serves = status.in_rotation and status.pid is not None and status.drain
    status = _move(status, State.STOPPING, reason, at, in_rotation=False, again=again, fault=fault)
    if serves and fault is None and at.spec.drain_timeout > 0:
        status = replace(status, stage=Stage.DRAIN, reason=f"{reason}; finishing its requests")
        return _with_timer(status, at.spec.drain_timeout, at), (*effects, Drain(status.run))
    after, more = _terminate(status, at)
    return after, effects + more


def _terminate(status: Status, at: _Moment) -> Step:
    status = replace(status, stage=Stage.TERM)
    effects = (Signal(Stage.TERM),)  # also to what is about to start, which then may not
    grace = at.spec.stop_grace
    if at.spec.in_rotation and status.fault is not None:
        grace = min(grace, FAULT_GRACE)
    if not at.spec.in_rotation and status.drain and status.fault is None:
        # A server of its own drains on SIGTERM: it accepts nobody, and goes on with its streams.
        grace = max(grace, at.spec.drain_timeout)
    return _with_timer(status, grace, at), effects


def _hastened(status: Status, at: _Moment) -> Status:
    """It has been asked to stop, and had time for its requests: now only its grace is left."""
    assert status.timer is not None
    sooner = status.timer.at > at.now + at.spec.stop_grace
    return _with_timer(status, at.spec.stop_grace, at) if sooner else status


def _escalate(status: Status, at: _Moment, interrupt_grace: float = INTERRUPT_GRACE) -> Step:
    if status.stage is Stage.DRAIN:
        return _terminate(replace(status, reason=_undrained(status, at)), at)
    stage = Stage.INT if status.stage is Stage.TERM else Stage.KILL
    stuck = status.stage is Stage.KILL
    text = f"pid {status.pid} is still there after {status.stage}; sending {stage}"
    if status.pid is None:
        text = f"its process is still about to start; it will get {stage}"
    elif stuck:
        known = status.reason.startswith(_DEAF)
        text = status.reason if known else f"{_DEAF}: stuck in the kernel, or being debugged"
    status = replace(status, stage=stage, reason=text)
    grace = interrupt_grace if stage is Stage.INT else KILL_GRACE
    effects: tuple[Effect, ...] = (Signal(stage),)
    if stuck and status.pid is not None:
        effects += (FindBlockers(status.run),)
    return _with_timer(status, grace, at), effects


def _hurry(status: Status, at: _Moment) -> Step:
    effects: tuple[Effect, ...] = ()
    if status.stage is Stage.DRAIN:
        status, effects = _terminate(status, at)
    after, more = _escalate(status, at, HURRIED_GRACE)
    return after, effects + more


def _undrained(status: Status, at: _Moment) -> str:
    return f"it still has requests after {at.now - status.since:.0f} s; sending {Stage.TERM}"


def _ended(status: Status, what: str, *, succeeded: bool, at: _Moment) -> Step:
    """Its process is gone (or never came to be): stopped, started again, or given up."""
    match status.state:
        case State.STARTING | State.READY | State.UNREADY if status.wanted:
            return _restart_or_not(status, what, succeeded=succeeded, at=at)
        case State.STOPPING if status.wanted and status.fault:
            return _restart_or_not(status, status.fault, succeeded=False, at=at)
        case State.STOPPING if status.wanted and status.again:
            return _await_dependencies(status, status.stop_reason, at), ()
        case State.STARTING | State.READY | State.UNREADY | State.STOPPING:
            # Its reason stays: who asked for the stop, not by which signal it ended.
            return _move(status, State.STOPPED, status.stop_reason, at), ()
        case State.STOPPED | State.BACKOFF | State.FAILED:
            return status, ()


def _wait_anew(status: Status, decided: str, at: _Moment) -> Status:
    """In backoff, when it turns out that it has ended for another reason than was supposed."""
    decision = decide(
        at.spec.restart,
        succeeded=False,
        streak=status.streak - 1,
        hopeless=status.hopeless,
        jitter=at.jitter,
        cause=status.last_exit_class,
    )
    if not isinstance(decision, RestartAfter):  # its policy was edited since
        return replace(status, reason=f"{status.last_exit}{decided}")
    left = max(LEAST_DELAY, status.since + decision.delay - at.now)
    status = replace(status, reason=f"{status.last_exit}; {decision.reason}")
    return _with_timer(status, left, at)


def _restart_or_not(status: Status, what: str, *, succeeded: bool, at: _Moment) -> Step:
    decision = decide(
        at.spec.restart,
        succeeded=succeeded,
        streak=status.streak,
        hopeless=status.hopeless,
        jitter=at.jitter,
        cause=status.last_exit_class,
    )
    reason = f"{what}; {decision.reason}"
    match decision:
        case Finished():
            return _move(status, State.STOPPED, reason, at, wanted=False), ()
        case GiveUp():
            return _move(status, State.FAILED, reason, at), ()
        case RestartAfter(delay=0.0):
            status = replace(status, streak=status.streak + 1)
            return _spawn(status, reason, at, restart=True)
        case RestartAfter(delay=delay):
            status = _move(status, State.BACKOFF, reason, at, streak=status.streak + 1)
            return _with_timer(status, delay, at), ()
