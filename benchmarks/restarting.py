"""kill -9: until the successor's exec, and until a client is served again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from chat import client, first_answer
from clusters import SLOWEST_START, Supervised, count_each_kill_as_the_first, supervised
from figures import Row
from processes import Succession, kill_and_await_successor

_GOAL = 50.0
_TRIVIAL = 10
_PAUSE = 0.1
"""Seconds between two kills of trivial processes, so that each is met by a supervisor at rest."""
_REAL = {"worker": "tiny-fox-0", "controller": "controller", "API server": "api_server"}
_MODEL = "tiny-fox"
"""The model with one replica."""


def measure(rounds: int) -> list[Row]:
    with supervised(_with_trivial_services) as cluster:
        kills = {"trivial process": _kill_trivial(cluster, max(2, rounds))}
        backs: dict[str, list[float]] = {}
        for role, instance in _REAL.items():
            both = [_kill_real(cluster, instance) for _ in range(rounds)]
            kills[role] = [succession for succession, _ in both]
            backs[role] = [back for _, back in both]
    rows = [row for role, successions in kills.items() for row in _rows(role, successions)]
    return rows + [Row(f"{role}: kill → next answer", "s", times) for role, times in backs.items()]


def _rows(role: str, successions: list[Succession]) -> Iterator[Row]:
    whole = [1000 * one.replaced for one in successions]
    ours = [1000 * (one.replaced - one.died) for one in successions]
    yield Row(f"{role}: kill → exec of the successor", "ms", whole, goal=_GOAL)
    yield Row(f"{role}: … of which after the death", "ms", ours, goal=_GOAL)


def _with_trivial_services(content: dict[str, Any]) -> None:
    content["services"] = {f"nap-{i}": {"command": ["sleep", "inf"]} for i in range(_TRIVIAL)}
    count_each_kill_as_the_first(content)


def _kill_trivial(cluster: Supervised, times: int) -> list[Succession]:
    naps = [pid for name, pid in cluster.pids().items() if name.startswith("nap-")]
    found = []
    for _ in range(times):
        for i, pid in enumerate(naps):
            time.sleep(_PAUSE)
            found.append(kill_and_await_successor(cluster.pid, pid))
            naps[i] = found[-1].successor
    return found


def _kill_real(cluster: Supervised, instance: str) -> tuple[Succession, float]:
    """The kill, and seconds from it until the model answers again."""
    cluster.await_ready()
    pid = cluster.pids()[instance]
    with client() as session:
        began = time.monotonic()
        succession = kill_and_await_successor(cluster.pid, pid)
        back = first_answer(session, cluster.url, _MODEL, began + SLOWEST_START)
    return succession, back - began
