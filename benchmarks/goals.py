"""What we want to be true, each as a figure or a ratio of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import failover
import resting
import trivial
import workers
from contestants import PEERS, Bare, Ours, OursCold, OursWarm
from results import Quantity, Results, ratios


@dataclass(frozen=True)
class Goal:
    """``values`` finds what is judged by its median; nothing if the run has not measured it."""

    what: str
    unit: str
    bound: float
    values: Callable[[Results], Sequence[float]]
    rivals: tuple[Quantity, int] | None = None
    """In what, and at which size, other supervisors have to be beaten."""
    at_least: bool = False

    def judge(self, results: Results) -> Verdict:
        found = list(self.values(results))
        return Verdict(self, found, self._best_peer(results))

    def _best_peer(self, results: Results) -> tuple[str, float] | None:
        if self.rivals is None:
            return None
        medians = [
            (peer.name, median(values))
            for peer in PEERS
            if (values := results.of(self.rivals[0], peer.name, self.rivals[1]))
        ]
        return min(medians, key=lambda one: one[1], default=None)


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    values: Sequence[float]
    best_peer: tuple[str, float] | None

    @property
    def met(self) -> bool | None:
        """None if it has not been measured."""
        if not self.values:
            return None
        found, bound = median(self.values), self.goal.bound
        return found >= bound if self.goal.at_least else found <= bound

    def as_json(self) -> dict[str, Any]:
        return {
            "goal": self.goal.what,
            "unit": self.goal.unit,
            "bound": self.goal.bound,
            "at_least": self.goal.at_least,
            "median": round(median(self.values), 4) if self.values else None,
            "met": self.met,
            "best_peer": self.best_peer,
        }


def judge(results: Results) -> list[Verdict]:
    return [goal.judge(results) for goal in GOALS]


def _figure(quantity: Quantity, size: int, one: type[Ours] = Ours) -> Callable[..., list[float]]:
    return lambda results: results.of(quantity, one.name, size)


def _ratio(
    quantity: Quantity, size: int, one: type[Any], other: type[Any]
) -> Callable[..., list[float]]:
    def values(results: Results) -> list[float]:
        ours, others = (results.of(quantity, who.name, size) for who in (one, other))
        return list(ratios(ours, others))

    return values


GOALS = (
    Goal(
        "a worker is killed → it answers a prompt again",
        "s",
        0.25,
        _figure(workers.PROMPT, 4, OursWarm),
        (workers.PROMPT, 4),
    ),
    Goal(
        "… → a chat completion is answered again",
        "s",
        0.25,
        _figure(workers.CHAT, 4, OursWarm),
        (workers.CHAT, 4),
    ),
    Goal(
        "… cold against warm, to the prompt",
        "×",
        12,
        _ratio(workers.PROMPT, 4, OursCold, OursWarm),
        at_least=True,
    ),
    Goal(
        "a trivial process is killed → exec'd again, one of 10",
        "ms",
        6,
        _figure(trivial.KILL, 10),
        (trivial.KILL, 10),
    ),
    Goal("… one of 1,000", "ms", 12, _figure(trivial.KILL, 1000), (trivial.KILL, 1000)),
    Goal(
        "4 workers ready, warm against a bare parallel start",
        "×",
        0.4,
        _ratio(workers.READY, 4, OursWarm, Bare),
    ),
    Goal(
        "memory of 4 workers, warm (all that helps to start them included) against cold",
        "×",
        0.5,
        _ratio(workers.WORKERS, 4, OursWarm, OursCold),
    ),
    Goal(
        "`up` → the first of 10 trivial processes is exec'd",
        "ms",
        250,
        _figure(trivial.FIRST, 10),
        (trivial.FIRST, 10),
    ),
    Goal(
        "supervisor of 10 processes with probes, RSS", "MB", 60, _figure(resting.RSS, resting.SIZE)
    ),
    Goal("… at rest, of one core", "%", 0.3, _figure(resting.CPU, resting.SIZE)),
    Goal("`status`, 10 processes", "ms", 150, _figure(trivial.STATUS, 10), (trivial.STATUS, 10)),
    Goal("`--help`", "ms", 150, _figure(resting.HELP, resting.SIZE)),
    Goal(
        "reload of a file that has not changed, 1,000 processes",
        "ms",
        300,
        _figure(trivial.RELOAD, 1000),
        (trivial.RELOAD, 1000),
    ),
    Goal(
        "one of two replicas killed under load: the last request that fails ends",
        "s",
        0.5,
        _figure(failover.LAST, 2),
    ),
)
