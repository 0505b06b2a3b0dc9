"""What ``why`` says: true sentences that repeat nothing and say what to do next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from instances import instance, worker

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, RestartPolicy
from supervisor.core.lifecycle import (
    DependenciesReady,
    Diagnosed,
    Exited,
    SpawnFailed,
    Stage,
    StartRequested,
    State,
    Status,
    Timer,
    TimerFired,
    step,
)
from supervisor.daemon.explain import explain

NOW = 1000.0
WAITING = Status(State.STOPPED, wanted=True, reason="asked to start; waiting to start", since=990.0)
SERVICE = instance("api_server", depends_on=("controller",))
SILENT = instance("tick", readiness=None, liveness=None)


def said(
    spec: InstanceSpec,
    status: Status,
    waiting_for: tuple[str, ...] = (),
    **blocked_by: State,
) -> list[str]:
    return explain(spec, status, waiting_for, blocked_by, now=NOW)


def last(spec: InstanceSpec, state: State, **fields: object) -> str:
    status = Status(state, wanted=True, since=990.0)
    return said(spec, replace(status, **fields))[-1]  # type: ignore[arg-type]


def test_who_waits_says_once_for_whom() -> None:
    assert said(SERVICE, WAITING, ("controller",)) == [
        "api_server is stopped, for 10s: asked to start; waiting to start.",
        "Next: it starts when controller is ready.",
    ]
    assert said(SERVICE, WAITING, ("a", "b", "c"))[-1] == (
        "Next: it starts when a, b and c are ready."
    )
    assert said(SERVICE, WAITING)[-1] == "Next: it starts."


def test_who_waits_for_a_place_says_who_has_it() -> None:
    why = "1 worker is starting (vicuna-0), max_parallel_starts is 1"
    waiting = replace(WAITING, reason="the cluster starts; waiting to start")
    assert explain(worker("owl-0"), waiting, (), held_back=why, now=NOW) == [
        "owl-0 is stopped, for 10s: the cluster starts; waiting to start.",
        "Next: it starts when there is a place: 1 worker is starting (vicuna-0), "
        "max_parallel_starts is 1.",
    ]


def test_who_waits_in_vain_says_for_whom_and_what_to_do() -> None:
    assert said(SERVICE, WAITING, ("a",), a=State.FAILED)[1:] == [
        "It waits for a, which has failed.",
        "Next: nothing; mend the cause, then `llm-supervisor start a`, and it starts as well.",
    ]
    assert said(SERVICE, WAITING, ("a",), a=State.STOPPED)[1:] == [
        "It waits for a, which is stopped on purpose.",
        "Next: nothing; `llm-supervisor start a`, and it starts as well.",
    ]


def test_who_waits_in_vain_at_a_remove_names_those_at_the_end_of_the_chain() -> None:
    sentences = said(SERVICE, WAITING, ("b",), a=State.FAILED, c=State.STOPPED)
    assert sentences[1] == (
        "It waits for b, and so for a, which has failed, and for c, which is stopped on purpose."
    )
    assert "`llm-supervisor start a c`" in sentences[2]


def test_what_could_not_be_started_had_no_process_that_did_anything() -> None:
    status, now = Status(), NOW
    for event in (StartRequested("asked"), DependenciesReady()):
        status, _ = step(status, event, SILENT, now=now)
    for run in (1, 2, 3):
        cause = "there is no program /x; install it or mend the path"
        status, _ = step(status, SpawnFailed(run, cause, CauseClass.WRONG_CONFIG), SILENT, now=now)
        if status.timer is not None and status.state is State.BACKOFF:
            now = status.timer.at
            status, _ = step(status, TimerFired(status.timer.epoch), SILENT, now=now)
    assert status.state is State.FAILED
    text = " ".join(explain(SILENT, status, (), now=now))
    assert "its last process could not be started: there is no program /x" in text
    assert text.endswith("Next: nothing, until `llm-supervisor start tick`; its log tells more.")


@pytest.mark.parametrize("state", [State.BACKOFF, State.STOPPING, State.STARTING])
@pytest.mark.parametrize("late", [-0.01, 0.0, 5.0])
def test_no_time_left_is_a_moment(state: State, late: float) -> None:
    text = last(SERVICE, state, timer=Timer(NOW - late, 1), pid=7)
    assert "a moment" in text
    assert "0.0s" not in text


def test_only_what_is_in_rotation_gets_requests_again() -> None:
    assert last(worker(), State.UNREADY) == ("Next: it gets requests again as soon as it answers.")
    assert last(SERVICE, State.UNREADY) == "Next: it is ready again as soon as it answers."


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("always", "Next: nothing, unless it exits; then it is restarted."),
        (
            "on_failure",
            "Next: nothing, unless it fails; then it is restarted. "
            "If it exits with 0, it stays down (restart: on_failure).",
        ),
        ("never", "Next: nothing; if it exits, it stays down (restart: never)."),
    ],
)
def test_ready_says_what_an_exit_would_mean(policy: str, sentence: str) -> None:
    spec = replace(SILENT, restart=RestartPolicy(policy))
    assert last(spec, State.READY) == sentence


def test_every_state_has_a_next_sentence() -> None:
    for state in State:
        for wanted in (True, False):
            for spec in (SERVICE, worker(), replace(SILENT, startup=None)):
                sentences = said(spec, Status(state, wanted=wanted, since=1.0))
                assert sentences[-1].startswith("Next: ")
                assert all(sentence.endswith(".") for sentence in sentences)


def test_a_restart_that_waits_for_something_says_for_what() -> None:
    status, now = Status(), NOW
    for event in (StartRequested("asked"), DependenciesReady()):
        status, _ = step(status, event, SILENT, now=now)
    for run in (1, 2):
        status, _ = step(status, Exited(run, 1, None), SILENT, now=now)
        diagnosed = Diagnosed(run, "exited with 1: the GPU is out of memory", CauseClass.GPU_MEMORY)
        status, _ = step(status, diagnosed, SILENT, now=now)
    assert explain(SILENT, status, (), now=now + 4.0) == [
        "tick is backoff, for 4.0s: exited with 1: the GPU is out of memory; restart 2 in a row, "
        "after 10.0 s, to wait for GPU memory.",
        "It was restarted once; its last process exited with 1: the GPU is out of memory.",
        "Its last end counts as: out of GPU memory.",
        "Next: it is started again in 6.0s; others may have freed GPU memory by then "
        "(who has it: `nvidia-smi`).",
    ]


def test_what_is_to_end_is_told_with_what_is_left_of_it() -> None:
    status = Status(state=State.STOPPING, stage=Stage.INT, since=NOW - 1, timer=Timer(NOW + 5, 1))
    sentences = explain(SERVICE, status, (), left=["pid 7 (sleep 9), sleeping"], now=NOW)
    assert sentences[-2:] == [
        "Still there: pid 7 (sleep 9), sleeping.",
        "Next: a sterner signal in 5.0s.",
    ]
