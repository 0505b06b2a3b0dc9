"""How many workers may be starting at once: what the file says, or what the machine bears."""

from __future__ import annotations

import os

import pytest

from supervisor.core.order import StartLimit
from supervisor.daemon.prepare import start_limit
from supervisor.runtime import memory
from supervisor.spec.model import Cluster


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (16, 16)])
def test_by_itself_it_is_one_per_core_that_we_may_use_and_what_fits_into_memory(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(memory, "available", lambda: 7)
    assert start_limit(Cluster()) == StartLimit(workers, memory=7)


def test_a_number_in_the_file_is_the_only_thing_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 7)
    assert start_limit(Cluster(max_parallel_starts=3)) == StartLimit(3)
