"""How supervision goes on where an earlier supervisor has left it. Pure.

The statuses are those that it had. Their times, timers and epochs still hold: they are of a clock
that goes on.
"""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import (
    LASTING_CHECKS,
    Check,
    Drain,
    Effect,
    EnterRotation,
    Event,
    LeaveRotation,
    Spawn,
    Spawned,
    Stage,
    StartProbes,
    State,
    Status,
    Timer,
)


def resume(status: Status, spec: InstanceSpec) -> tuple[tuple[Effect, ...], tuple[Event, ...]]:
    """What has to be done (again) for an instance in this status, and what it is to be told.

    A ``pid`` in it is taken to be alive; what is not will be told in an event, as always.
    """
    starts = status.state is State.STARTING and status.pid is not None and not status.in_rotation
    again = (Spawned(status.run, status.pid or 0, status.born),) if starts else ()
    return _effects(status, spec), again


def _effects(status: Status, spec: InstanceSpec) -> tuple[Effect, ...]:
    match status.state:
        case State.STARTING if status.pid is None:
            return (Spawn(status.run),)  # decided, and nothing has come of it
        case State.STARTING if status.in_rotation:
            return _rotation(status)
        case State.STARTING:
            # It may be registered all the same: of what was last done there may be no note.
            return (LeaveRotation(),) if spec.in_rotation else ()
        case State.READY:
            return (StartProbes(status.run, LASTING_CHECKS), *_rotation(status))
        case State.UNREADY:
            anew = (Check.STARTUP,) if status.asked_anew else ()
            return (StartProbes(status.run, (*anew, *LASTING_CHECKS)), *_rotation(status))
        case State.STOPPING if spec.in_rotation:
            drain = (Drain(status.run),) if status.stage is Stage.DRAIN else ()
            return (LeaveRotation(), *drain)
        case State.STOPPING:
            return ()  # its signal has been sent; if not, its timer brings the next one
        case State.STOPPED | State.BACKOFF | State.FAILED:
            return ()


def found_running(
    status: Status, run: int, pid: int, born: int, deadline: float | None, *, now: float
) -> Status:
    """The status of an instance of which nothing more is known than that this process runs.

    ``status`` is the last that was noted of it; ``deadline`` the seconds that its start may take.
    """
    epoch = status.epoch + 1
    return replace(
        Status(),
        state=State.STARTING,
        wanted=True,
        reason=f"found running as pid {pid}, and asked whether it answers",
        since=now,
        run=run,
        epoch=epoch,
        timer=None if deadline is None else Timer(now + deadline, epoch),
        pid=pid,
        born=born,
        started_at=now,
        restarts=status.restarts,
        streak=status.streak,
    )


def stopped(status: Status) -> Status:
    """The status of an instance that was told to stop, and whose process never came to be.

    If it is wanted all the same, it is started as soon as what it depends on is ready.
    """
    return replace(
        status,
        state=State.STOPPED,
        reason=status.stop_reason,
        timer=None,
        stage=None,
        again=False,
        fault=None,
    )


def _rotation(status: Status) -> tuple[Effect, ...]:
    return (EnterRotation(status.run),) if status.in_rotation else ()
