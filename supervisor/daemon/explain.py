"""``why``: the state of an instance in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.durations import format_duration
from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State, Status


def explain(
    spec: InstanceSpec, status: Status, waiting_for: Sequence[str], *, now: float
) -> list[str]:
    """What state, since when, because of what, and what happens next."""
    since = format_duration(max(0.0, now - status.since)) if status.since else "the beginning"
    sentences = [f"{spec.name} is {status.state}, for {since}: {status.reason}."]
    if status.state is State.STOPPED and status.wanted and waiting_for:
        sentences.append(f"It waits for {', '.join(waiting_for)} to be ready.")
    if status.state in (State.STARTING, State.READY, State.UNREADY) and status.detail:
        sentences.append(f"Last answer to a probe: {status.detail}.")
    if status.restarts:
        times = "once" if status.restarts == 1 else f"{status.restarts} times"
        cause = f"; its last process {status.last_exit}" if status.last_exit else ""
        sentences.append(f"It was restarted {times}{cause}.")
    sentences.append(_next(spec, status, waiting_for, now))
    return sentences


def _next(spec: InstanceSpec, status: Status, waiting_for: Sequence[str], now: float) -> str:
    left = format_duration(max(0.0, status.timer.at - now)) if status.timer else ""
    match status.state:
        case State.STOPPED if status.wanted:
            return "Next: it starts when what it waits for is ready."
        case State.STOPPED:
            return f"Next: nothing, until `llm-supervisor start {spec.service}`."
        case State.STARTING if status.in_rotation:
            return "Next: it is ready when the controller has confirmed its registration."
        case State.STARTING if spec.startup is not None:
            asks = ", ".join(question.ask for question in spec.startup.questions)
            end = f"; after {left} more it counts as failed" if left else ""
            return f"Next: it is ready when it answers ({asks}){end}."
        case State.STARTING:
            return "Next: it is ready as soon as it runs."
        case State.READY if not status.wanted:
            return "Next: it stops when nothing depends on it any more."
        case State.READY if spec.restart.policy == "never":
            return "Next: nothing; if it exits, it stays down (restart: never)."
        case State.READY:
            liveness = "" if spec.liveness is None else ", or stays silent for too long"
            return f"Next: nothing, unless it exits{liveness}; then it is restarted."
        case State.UNREADY:
            return "Next: it gets requests again as soon as it answers."
        case State.STOPPING:
            return f"Next: a sterner signal in {left}." if left else "Next: it ends."
        case State.BACKOFF:
            return f"Next: it is started again in {left}."
        case State.FAILED:
            return (
                "Next: nothing; mend the cause, then "
                f"`llm-supervisor start {spec.service}` (its log tells more)."
            )
