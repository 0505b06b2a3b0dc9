"""Whether, and after how long, an instance that has exited is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import RestartPolicy

HOPELESS_TRIES = 3
"""Tries granted to a start that can never work (argument error, missing model), before `failed`."""

LEAST_DELAY = 0.1
"""Seconds. Not even ``backoff: 0`` lets a process that cannot run be started without a pause."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """Seconds before the first restart, which grow as a backoff does, and what for."""

    seconds: float
    what_for: str


_WAITS = {
    CauseClass.PORT_BUSY: _Wait(1.0, "the port"),
    CauseClass.GPU_MEMORY: _Wait(10.0, "GPU memory"),
    CauseClass.HOST_MEMORY: _Wait(10.0, "memory"),
    CauseClass.GPU_LOST: _Wait(60.0, "the GPU"),
}
"""What somebody else has to give back first: asking for it more often only disturbs them."""


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start it again after ``delay`` seconds (0: at once)."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """It did what it was for; leave it stopped."""

    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it down until somebody says otherwise."""

    reason: str


Decision = RestartAfter | Finished | GiveUp


def decide(
    policy: RestartPolicy,
    *,
    succeeded: bool,
    streak: int,
    hopeless: int,
    jitter: float,
    cause: CauseClass | None = None,
) -> Decision:
    """What to do after an exit.

    ``streak`` counts the restarts in a row since it was last stable, ``hopeless`` the exits in a
    row that no restart can mend; ``jitter`` is a random number from 0 to 1; ``cause`` is why it
    has ended, as far as that is known.
    """
    if policy.policy == "never" or (policy.policy == "on_failure" and succeeded):
        if succeeded:
            return Finished("it finished, and its restart policy leaves it so")
        return GiveUp(f"its restart policy is {policy.policy}")
    if hopeless >= HOPELESS_TRIES:
        return GiveUp(
            f"given up after {hopeless} tries: no restart can help; set that right, then start it"
        )
    if policy.limit is not None and streak >= policy.limit:
        return GiveUp(
            f"its limit of {policy.limit} restart{'' if policy.limit == 1 else 's'} in a row is "
            "reached; mend the cause, then start it"
        )
    if streak == 0:
        return RestartAfter(0.0, "restarting at once")
    full = _grown(policy.backoff, streak, policy.backoff_max)
    wait = _WAITS.get(cause) if cause else None
    if wait is not None:
        full = max(full, _grown(wait.seconds, streak, max(policy.backoff_max, wait.seconds)))
    delay = max(LEAST_DELAY, full * (1 - policy.jitter * jitter))
    what_for = f", to wait for {wait.what_for}" if wait else ""
    return RestartAfter(delay, f"restart {streak + 1} in a row, after {delay:.1f} s{what_for}")


def _grown(first: float, streak: int, most: float) -> float:
    # 2.0 ** 64 seconds is beyond any cap; the bound only keeps the power finite.
    return min(most, first * 2.0 ** min(streak - 1, 64))
