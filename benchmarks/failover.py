"""One of two replicas is killed under a steady load: for how long do requests fail?"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from itertools import pairwise

from chat import Load, Request
from clusters import Supervised, count_each_kill_as_the_first, supervised
from figures import Row

_THREADS = 8
_MODEL = "tiny-owl"
_REPLICAS = ("tiny-owl-0", "tiny-owl-1")
_STEADY = 3.0
"""Seconds of load before each kill, and after the last replica is back."""


def measure(rounds: int) -> list[Row]:
    with supervised(count_each_kill_as_the_first) as cluster:
        load = Load(cluster.url, _MODEL)
        with load.running(_THREADS):
            begin = time.monotonic()
            kills = [_kill(cluster, _REPLICAS[i % 2]) for i in range(rounds)]
            time.sleep(_STEADY)
        requests = load.requests()
    failed = [one for one in requests if one.fault]
    print(f"  faults: {dict(Counter(one.fault for one in failed))}", file=sys.stderr)
    windows = list(pairwise([*kills, float("inf")]))
    starts = [_last(failed, "began", window) for window in windows]
    ends = [_last(failed, "ended", window) for window in windows]
    early = sum(one.ended < kills[0] for one in failed)
    served = sum(one.ended < kills[0] for one in requests) / (kills[0] - begin)
    return [
        Row("last failed request: its end after the kill", "s", ends, goal=0.5),
        Row("last failed request: its begin after the kill", "s", starts),
        Row("failed requests per kill", "", [_count(failed, window) for window in windows]),
        Row("failed requests before the first kill", "", [early], goal=0),
        Row("requests per second before the first kill", "/s", [served]),
    ]


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


def _last(failed: list[Request], edge: str, window: tuple[float, float]) -> float:
    """Seconds from the kill to the last failure's begin or end; 0 if none failed."""
    kill, _ = window
    after = [getattr(one, edge) - kill for one in failed if _is_in(one, window)]
    return max(after, default=0.0)


def _count(failed: list[Request], window: tuple[float, float]) -> int:
    return sum(_is_in(one, window) for one in failed)


def _is_in(request: Request, window: tuple[float, float]) -> bool:
    return window[0] <= request.ended < window[1]
