"""One of two replicas is killed under a steady load: for how long do requests fail?"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from itertools import pairwise

from clusters import Supervised, count_each_kill_as_the_first, supervised
from contestants import Ours
from results import Quantity, Results
from traffic import Answer, Traffic

_SIZED = "replicas, one killed under load"
LAST = Quantity("failover", "the last request that fails ends after the kill", "s", _SIZED)
FAILED = Quantity("failover failures", "requests that fail, per kill", "", _SIZED)

_CLIENTS = 8
_MODEL = "tiny-owl"
_REPLICAS = ("tiny-owl-0", "tiny-owl-1")
_STEADY = 3.0
"""Seconds of traffic before each kill, and after the last replica is back."""


def measure(rounds: int, results: Results) -> None:
    with supervised(count_each_kill_as_the_first) as cluster:
        traffic = Traffic(cluster.url, (_MODEL,))
        with traffic.running(_CLIENTS):
            kills = [_kill(cluster, _REPLICAS[i % 2]) for i in range(rounds)]
            time.sleep(_STEADY)
    failed = [one for one in traffic.answers if one.fault]
    print(f"  faults: {dict(Counter(one.fault for one in failed))}", file=sys.stderr)
    for window in pairwise([*kills, float("inf")]):
        results.add(LAST, Ours.name, len(_REPLICAS), _last(failed, window))
        results.add(FAILED, Ours.name, len(_REPLICAS), _count(failed, window))


def _kill(cluster: Supervised, replica: str) -> float:
    """Kill it once all is steady, and wait until it is back; the moment of the kill."""
    time.sleep(_STEADY)
    pid = cluster.pids()[replica]
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while cluster.pids().get(replica) in (None, pid):
        time.sleep(0.05)
    cluster.await_ready()
    return killed


def _last(failed: list[Answer], window: tuple[float, float]) -> float:
    """Seconds from the kill until the last request that failed had ended; 0 if none failed."""
    kill, _ = window
    return max((one.ended - kill for one in failed if _is_in(one, window)), default=0.0)


def _count(failed: list[Answer], window: tuple[float, float]) -> int:
    return sum(_is_in(one, window) for one in failed)


def _is_in(answer: Answer, window: tuple[float, float]) -> bool:
    return window[0] <= answer.ended < window[1]
