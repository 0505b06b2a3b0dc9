"""``why``: the state of an instance in sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.core.diagnosis import CauseClass
from supervisor.core.durations import format_duration
from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import Stage, State, Status
from supervisor.core.rollout import Failure

_HOPES = {
    CauseClass.PORT_BUSY: "the port may be free by then",
    CauseClass.GPU_MEMORY: "others may have freed GPU memory by then (who has it: `nvidia-smi`)",
    CauseClass.HOST_MEMORY: "others may have freed memory by then",
    CauseClass.GPU_LOST: "the GPU may be back by then; if not, `nvidia-smi` and `dmesg` tell more",
}
"""What a restart waits for."""


def explain(
    spec: InstanceSpec,
    status: Status,
    waiting_for: Sequence[str],
    blocked_by: Mapping[str, State] | None = None,
    failure: Failure | None = None,
    *,
    held_back: str | None = None,
    left: Sequence[object] = (),
    now: float,
) -> list[str]:
    """What state, since when, because of what, and what happens next.

    ``waiting_for`` names the services that it depends on and that are not ready; ``blocked_by``
    the instances among and behind them that do not come by themselves, with their states;
    ``failure`` is a rollout that was given up; ``held_back`` says why it has no place among those
    that are starting; ``left`` describes the processes of one that is to end.
    """
    waits = status.state is State.STOPPED and status.wanted
    blocked_by = blocked_by or {}
    since = _duration(now - status.since) if status.since else "the beginning"
    sentences = [f"{spec.name} is {status.state}, for {since}: {status.reason}."]
    if waits and blocked_by:
        sentences.append(_blockade(waiting_for, blocked_by))
    if status.state in (State.STARTING, State.READY, State.UNREADY) and status.detail:
        sentences.append(f"Last answer to a probe: {status.detail}.")
    if status.restarts:
        times = "once" if status.restarts == 1 else f"{status.restarts} times"
        cause = f"; its last process {status.last_exit}" if status.last_exit else ""
        sentences.append(f"It was restarted {times}{cause}.")
    if status.last_exit_class not in (None, CauseClass.UNKNOWN):
        sentences.append(f"Its last end counts as: {status.last_exit_class}.")
    if left:
        sentences.append(f"Still there: {'; '.join(map(str, left))}.")
    if failure is not None:
        sentences.append(
            f"It runs as it was before the last change: {failure.instance} could not be started "
            f"with that ({failure.reason}). Edit the file, or try again with "
            "`llm-supervisor reload`."
        )
    if waits:
        sentences.append(_next_start(waiting_for, blocked_by, held_back))
    else:
        sentences.append(_next(spec, status, now))
    return sentences


def _blockade(waiting_for: Sequence[str], blocked_by: Mapping[str, State]) -> str:
    direct = list(waiting_for) == list(blocked_by)
    chain = "" if direct else f"{_listed(waiting_for)}, and so for "
    culprits = [
        f"{name}, which {'has failed' if state is State.FAILED else 'is stopped on purpose'}"
        for name, state in blocked_by.items()
    ]
    return f"It waits for {chain}{', and for '.join(culprits)}."


def _next_start(
    waiting_for: Sequence[str], blocked_by: Mapping[str, State], held_back: str | None
) -> str:
    if blocked_by:
        cause = "mend the cause, then " if State.FAILED in blocked_by.values() else ""
        start = f"`llm-supervisor start {' '.join(blocked_by)}`"
        return f"Next: nothing; {cause}{start}, and it starts as well."
    if waiting_for:
        verb = "is" if len(waiting_for) == 1 else "are"
        return f"Next: it starts when {_listed(waiting_for)} {verb} ready."
    if held_back:
        return f"Next: it starts when there is a place: {held_back}."
    return "Next: it starts."


def _next(spec: InstanceSpec, status: Status, now: float) -> str:
    left = _duration(status.timer.at - now) if status.timer else ""
    silent = "" if spec.liveness is None else ", or stays silent for too long"
    if spec.progress is not None and spec.progress.enabled:
        silent += ", or gets no further with its work"
    match status.state:
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
        case State.READY if spec.restart.policy == "on_failure":
            return (
                f"Next: nothing, unless it fails{silent}; then it is restarted. "
                "If it exits with 0, it stays down (restart: on_failure)."
            )
        case State.READY if left:
            return f"Next: if it still runs in {left}, its crashes before are forgiven."
        case State.READY:
            return f"Next: nothing, unless it exits{silent}; then it is restarted."
        case State.UNREADY if spec.in_rotation:
            return "Next: it gets requests again as soon as it answers."
        case State.UNREADY:
            return "Next: it is ready again as soon as it answers."
        case State.STOPPING if status.stage is Stage.DRAIN:
            return f"Next: SIGTERM when it has no request any more, or in {left}."
        case State.STOPPING:
            return f"Next: a sterner signal in {left}." if left else "Next: it ends."
        case State.BACKOFF:
            hope = _HOPES.get(status.last_exit_class) if status.last_exit_class else None
            return f"Next: it is started again in {left}{f'; {hope}' if hope else ''}."
        case State.FAILED:
            return (
                f"Next: nothing, until `llm-supervisor start {spec.service}`; its log tells more."
            )


def _duration(seconds: float) -> str:
    return "a moment" if seconds < 0.05 else format_duration(seconds)


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
