"""What a worker's record means: alive, busy, hung, suspect or idle."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.progress import (
    DOUBTFUL_FAILURES,
    EMBEDDING_PATIENCE,
    Condition,
    Judgement,
    Look,
    Record,
    excuse,
    judge,
)

STALL, IDLE = 120.0, 300.0
NOW = 10_000.0

AT_REST = Record(
    pid=7,
    began=NOW - 3600,
    in_flight=0,
    embeddings=0,
    oldest=None,
    progress=NOW - 20,
    success=NOW - 20,
    failures=0,
    error="",
)


def look(*, stopped: bool = False, worked: float = 3600, **fields: object) -> Look:
    """``worked``: seconds since it was last seen at work."""
    record = replace(AT_REST, **fields)  # type: ignore[arg-type]
    return Look(NOW, record, stopped=stopped, worked_at=NOW - worked)


def working(since: float, last_piece: float, **fields: object) -> Look:
    """A request that began ``since`` seconds ago, and the last piece of any answer."""
    values = {"in_flight": 1, "oldest": NOW - since, "progress": NOW - last_piece} | fields
    return look(**values)  # type: ignore[arg-type]


def judged(seen: Look) -> Judgement:
    return judge(seen, stall_after=STALL, idle_after=IDLE)


def condition(seen: Look) -> Condition:
    return judged(seen).condition


# ---------------------------------------------------------------- requests in flight


def test_it_is_hung_when_nothing_is_produced_for_the_whole_time_that_somebody_waits() -> None:
    assert condition(working(since=119, last_piece=500)) is Condition.BUSY
    found = judged(working(since=121, last_piece=500))
    assert found.condition is Condition.HUNG
    assert found.reason == "a request waits, and nothing has been produced for 2m 1s"


def test_a_request_after_a_long_rest_does_not_make_the_rest_a_hang() -> None:
    assert condition(working(since=1, last_piece=86400)) is Condition.BUSY


def test_busy_and_advancing_is_alive_however_long() -> None:
    assert condition(working(since=1e6, last_piece=3, success=NOW - 1e6)) is Condition.BUSY


def test_one_that_has_stopped_advancing_is_hung_however_far_it_came() -> None:
    assert condition(working(since=1000, last_piece=STALL, in_flight=3)) is Condition.HUNG


def test_a_hang_of_a_stopped_process_says_so() -> None:
    reason = judged(working(since=200, last_piece=200, stopped=True)).reason
    assert reason.endswith("nothing has been produced for 3m 20s, and its process is stopped")


def test_failures_do_not_hide_a_hang() -> None:
    assert condition(working(since=STALL, last_piece=500, failures=99)) is Condition.HUNG


# ---------------------------------------------------------------- embeddings


def test_an_embedding_that_uses_the_processor_is_no_hang() -> None:
    assert condition(working(since=500, last_piece=500, embeddings=1, worked=5)) is Condition.BUSY


def test_one_that_does_not_is_one() -> None:
    assert (
        condition(working(since=500, last_piece=500, embeddings=1, worked=STALL)) is Condition.HUNG
    )


def test_nor_may_it_go_on_for_ever() -> None:
    enough = EMBEDDING_PATIENCE * STALL
    seen = working(since=enough, last_piece=enough, embeddings=1, worked=0)
    assert condition(seen) is Condition.HUNG


def test_the_processor_excuses_no_generation() -> None:
    """A kernel that never ends spins just so."""
    assert condition(working(since=STALL, last_piece=500, worked=0)) is Condition.HUNG


# ---------------------------------------------------------------- nothing in flight


def test_recent_success_is_proof_enough() -> None:
    assert condition(look(success=NOW - IDLE + 1)) is Condition.ALIVE


def test_one_of_which_nobody_asks_anything_is_asked_for_a_token() -> None:
    assert condition(look(success=NOW - IDLE)) is Condition.IDLE


@pytest.mark.parametrize(("age", "found"), [(299, Condition.ALIVE), (301, Condition.IDLE)])
def test_a_new_process_need_not_prove_itself_at_once(age: float, found: Condition) -> None:
    assert condition(look(began=NOW - age, success=None)) is found


@pytest.mark.parametrize("seen", [look(), working(since=3, last_piece=1)])
def test_failures_in_a_row_are_a_doubt_and_no_more(seen: Look) -> None:
    few = replace(seen, record=replace(seen.record, failures=DOUBTFUL_FAILURES - 1))
    assert condition(few) in (Condition.ALIVE, Condition.BUSY)
    many = replace(seen.record, failures=DOUBTFUL_FAILURES, error="error 50001: CUDA error")
    found = judged(replace(seen, record=many))
    assert found.condition is Condition.SUSPECT
    assert found.reason == "3 requests in a row have failed (error 50001: CUDA error)"


# ---------------------------------------------------------------- a status question unanswered


def test_work_excuses_a_silence() -> None:
    seen = working(since=60, last_piece=500, embeddings=1, in_flight=2, worked=1)
    assert excuse(seen, stall_after=STALL) == "too busy to answer: works on 2 requests"


@pytest.mark.parametrize(
    "seen",
    [
        look(),
        working(since=60, last_piece=1, stopped=True),
        working(since=STALL, last_piece=STALL),
    ],
    ids=["at rest", "stopped", "hung"],
)
def test_nothing_else_does(seen: Look) -> None:
    assert excuse(seen, stall_after=STALL) is None


# ---------------------------------------------------------------- whatever the record says

AGE = st.floats(0, 1e6)
RECORDS = st.builds(
    look,
    stopped=st.booleans(),
    worked=AGE,
    in_flight=st.integers(0, 3),
    embeddings=st.integers(0, 3),
    oldest=st.none() | AGE.map(lambda age: NOW - age),
    progress=AGE.map(lambda age: NOW - age),
    success=st.none() | AGE.map(lambda age: NOW - age),
    failures=st.integers(0, 9),
)


@given(RECORDS)
def test_only_who_keeps_somebody_waiting_is_hung_and_never_soon_after_a_piece(seen: Look) -> None:
    record = seen.record
    if condition(seen) is Condition.HUNG:
        assert record.in_flight
        assert record.oldest is not None
        assert NOW - max(record.oldest, record.progress) >= STALL
    if record.in_flight and record.oldest is not None:
        assert (condition(seen) is Condition.HUNG) <= (excuse(seen, stall_after=STALL) is None)


@given(RECORDS)
def test_after_recent_success_nobody_is_asked_for_a_token(seen: Look) -> None:
    record = seen.record
    if record.success is not None and NOW - record.success < IDLE and record.failures == 0:
        assert condition(seen) not in (Condition.IDLE, Condition.SUSPECT)
