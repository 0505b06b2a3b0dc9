"""From `up` to the first answered chat completion, beside the same processes started by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise

from chat import time_first_answers
from clusters import SLOWEST_START, ByHand, Supervised, folder
from figures import Row

_MOMENTS = (
    "`up` is typed",
    "controller starts",
    "controller is ready",
    "first worker answers a prompt",
    "each model is ready",
    "each model has answered a client",
)


def measure(rounds: int) -> list[Row]:
    """Ours and by hand in turn; who goes first changes from round to round."""
    _supervised_start(), _by_hand_start()  # fills the page cache; not counted
    ours, by_hand, stages = [], [], []
    for i in range(rounds):
        if i % 2:
            by_hand.append(_by_hand_start())
        seconds, moments = _supervised_start()
        ours.append(seconds)
        stages.append([after - before for before, after in pairwise(moments)])
        if not i % 2:
            by_hand.append(_by_hand_start())
    ratios = [one / other for one, other in zip(ours, by_hand, strict=True)]
    return [
        Row("`up` → first answers", "s", ours),
        Row("the same processes by hand, all at once", "s", by_hand),
        Row("ratio, pair by pair", "×", ratios, goal=1.25, judged="median"),
        *_stage_rows(stages),
    ]


def measure_script(rounds: int) -> list[Row]:
    """The script is slow, and its sleeps make it steady: two rounds will do."""
    answered, done = [], []
    for _ in range(min(rounds, 2)):
        with _by_hand() as cluster:
            moments: list[float] = []

            def act(cluster: ByHand = cluster, moments: list[float] = moments) -> None:
                began = time.monotonic()
                cluster.start_one_by_one()
                moments.append(time.monotonic() - began)

            answered.append(time_first_answers(cluster.url, cluster.models, act, SLOWEST_START))
            done += moments
    return [
        Row("nohup and grep, one by one → first answers", "s", answered),
        Row("until the script says that it is done", "s", done),
    ]


# ---------------------------------------------------------------- one start


def _supervised_start() -> tuple[float, list[float]]:
    """Seconds until each model has answered, and the _MOMENTS on the way."""
    with folder() as place:
        cluster = Supervised(place)
        try:
            began = time.time()
            seconds = time_first_answers(cluster.url, cluster.models, cluster.up, SLOWEST_START)
            return seconds, [began, *_moments(cluster), began + seconds]
        finally:
            cluster.down()


def _by_hand_start() -> float:
    with _by_hand() as cluster:
        start = cluster.start_all_at_once
        return time_first_answers(cluster.url, cluster.models, start, SLOWEST_START)


@contextmanager
def _by_hand() -> Iterator[ByHand]:
    with folder() as place:
        cluster = ByHand(place)
        try:
            yield cluster
            cluster.check()
        finally:
            cluster.down()


# ---------------------------------------------------------------- where the time goes


def _moments(cluster: Supervised) -> Iterator[float]:
    """Seconds since the epoch, from the supervisor's events."""
    events = cluster.events()

    def first(state: str, name: str) -> float:
        found = (e for e in events if e["state"] == state and e["instance"].startswith(name))
        return datetime.fromisoformat(next(found)["time"]).timestamp()

    yield first("starting", "controller")
    yield first("ready", "controller")
    ready = [first("ready", model) for model in cluster.models]
    yield min(ready)
    yield max(ready)


def _stage_rows(stages: list[list[float]]) -> Iterator[Row]:
    names = [f"… {before} → {after}" for before, after in pairwise(_MOMENTS)]
    for name, values in zip(names, zip(*stages, strict=True), strict=True):
        yield Row(name, "s", values)
