"""Whether, and after how long, an instance that has exited is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.instance import RestartPolicy

HOPELESS_TRIES = 3
"""Tries granted to a start that can never work (argument error, missing model), before `failed`."""

LEAST_DELAY = 0.1
"""Seconds. Not even ``backoff: 0`` lets a process that cannot run be started without a pause."""


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
    policy: RestartPolicy, *, succeeded: bool, streak: int, hopeless: int, jitter: float
) -> Decision:
    """What to do after an exit.

    ``streak`` counts the restarts in a row since it was last stable, ``hopeless`` the exits in a
    row that no restart can mend; ``jitter`` is a random number from 0 to 1.
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
    # 2.0 ** 64 seconds is beyond any cap; the bound only keeps the power finite.
    full = min(policy.backoff_max, policy.backoff * 2.0 ** min(streak - 1, 64))
    delay = max(LEAST_DELAY, full * (1 - policy.jitter * jitter))
    return RestartAfter(delay, f"restart {streak + 1} in a row, after {delay:.1f} s")
