"""One word for the whole."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from supervisor.core.cluster import ClusterState, cluster_state
from supervisor.core.lifecycle import State, Status, Timer


def state_of(*states: State, restarts: int = 0, going_down: bool = False) -> ClusterState:
    statuses = [Status(state, wanted=True, restarts=restarts) for state in states]
    return cluster_state(statuses, going_down=going_down)


def test_all_ready() -> None:
    assert state_of(State.READY, State.READY) is ClusterState.READY


def test_the_first_start_is_a_start() -> None:
    assert state_of(State.STOPPED, State.STOPPED) is ClusterState.STARTING
    assert state_of(State.READY, State.STARTING, State.STOPPED) is ClusterState.STARTING


@pytest.mark.parametrize("bad", [State.FAILED, State.BACKOFF, State.UNREADY, State.STOPPING])
def test_one_that_is_broken_degrades_it(bad: State) -> None:
    assert state_of(State.READY, State.STARTING, bad) is ClusterState.DEGRADED


def test_one_that_comes_back_from_a_crash_degrades_it_until_it_is_ready() -> None:
    others = Status(State.READY, wanted=True)
    crashed = Status(State.STARTING, wanted=True, restarts=1)
    assert cluster_state([others, crashed], going_down=False) is ClusterState.DEGRADED
    back = Status(State.READY, wanted=True, restarts=1)
    assert cluster_state([others, back], going_down=False) is ClusterState.READY


def test_old_restarts_of_one_that_is_ready_do_not_make_a_first_start_look_bad() -> None:
    back, first = Status(State.READY, wanted=True, restarts=9), Status(State.STARTING, wanted=True)
    assert cluster_state([back, first], going_down=False) is ClusterState.STARTING


def test_one_that_is_ready_on_probation_degrades_it() -> None:
    """Or a crash loop without a startup probe would make the cluster ready once in each round."""
    others = Status(State.READY, wanted=True)
    again = Status(State.READY, wanted=True, restarts=3, streak=3, timer=Timer(60.0, 1))
    assert cluster_state([others, again], going_down=False) is ClusterState.DEGRADED
    unwanted = replace(again, wanted=False)
    assert cluster_state([others, unwanted], going_down=False) is ClusterState.READY


def test_all_stopped_on_purpose_is_ready() -> None:
    stopped = Status(State.STOPPED, wanted=False)
    assert cluster_state([stopped, stopped], going_down=False) is ClusterState.READY


@pytest.mark.parametrize("state", list(State))
def test_what_is_stopped_on_purpose_does_not_count(state: State) -> None:
    statuses = [Status(State.READY, wanted=True), Status(state, wanted=False)]
    assert cluster_state(statuses, going_down=False) is ClusterState.READY


def test_going_down_is_stopping_whatever_the_instances_do() -> None:
    for states in itertools.product(State, repeat=2):
        assert state_of(*states, going_down=True) is ClusterState.STOPPING
