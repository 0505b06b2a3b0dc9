"""The table of states and events: complete, and docs/lifecycle.md shows it as it is."""

from __future__ import annotations

import itertools
import runpy
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from instances import worker

from supervisor.core.diagnosis import CauseClass
from supervisor.core.lifecycle import (
    Adjusted,
    BlockersFound,
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnosed,
    Drained,
    EnteredRotation,
    Event,
    Exited,
    Hurried,
    Outcome,
    Probed,
    RestartRequested,
    Spawned,
    SpawnFailed,
    StartRequested,
    State,
    Status,
    StopRequested,
    TimerFired,
    step,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_lifecycle.py"


@pytest.fixture(scope="module")
def make() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def _all_events(status: Status) -> list[Event]:
    """Also those that cannot happen in this status."""
    run = status.run
    return [
        StartRequested("asked"),
        StopRequested("asked"),
        RestartRequested("asked"),
        DependenciesReady(),
        DependentsStopped(),
        Hurried(),
        Spawned(run, 7),
        *(SpawnFailed(run, "no", kind) for kind in CauseClass),
        *(Exited(run, code, None) for code in (0, 1)),
        Exited(run, None, "SIGKILL"),
        *(Diagnosed(run - late, "boom", kind) for late in (0, 1, 2) for kind in CauseClass),
        *(Probed(run, check, outcome, "") for check in Check for outcome in Outcome),
        EnteredRotation(run),
        Drained(run),
        BlockersFound(run, "pid 7"),
        Adjusted(worker(startup=None, readiness=None, models=("renamed",))),
        TimerFired(status.epoch),
    ]


def test_every_event_is_answered_for_in_every_status_that_can_be_reached(
    make: dict[str, Any],
) -> None:
    answered: set[tuple[State, type]] = set()
    for spec in make["SPECS"]:
        reached = {make["_kind"](status): status for status, _, _ in make["explore"](spec)}
        for status in reached.values():
            for event in _all_events(status):
                after, _ = step(status, event, spec, now=2.0, jitter=0.5)
                assert after.reason
                assert after.timer is None or after.state not in (State.STOPPED, State.FAILED)
                answered.add((status.state, type(event)))
    assert answered == set(itertools.product(State, get_args(Event)))


def test_the_page_says_what_the_code_does(
    make: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert make["main"]() == 0, "run: python scripts/make_lifecycle.py"


def test_the_page_leaves_no_event_out(make: dict[str, Any]) -> None:
    seen: set[type] = set()
    for before, _, _ in make["explore"](make["SPECS"][0]):
        seen |= {type(event) for event in make["events"](before).values()}
    assert seen == set(get_args(Event))
