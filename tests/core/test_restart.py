"""Whether and when to start again, as a table and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import RestartPolicy
from supervisor.core.restart import (
    HOPELESS_TRIES,
    LEAST_DELAY,
    Decision,
    Finished,
    GiveUp,
    RestartAfter,
    decide,
)

seconds = st.floats(0.0, 1e6)
fractions = st.floats(0.0, 1.0)


def decided(policy: RestartPolicy, **fields: object) -> Decision:
    given_fields: dict[str, object] = {
        "succeeded": False,
        "streak": 0,
        "hopeless": 0,
        "jitter": 0.0,
    }
    return decide(policy, **(given_fields | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "succeeded", "expected"),
    [
        ("always", True, RestartAfter),
        ("always", False, RestartAfter),
        ("on_failure", True, Finished),
        ("on_failure", False, RestartAfter),
        ("never", True, Finished),
        ("never", False, GiveUp),
    ],
)
def test_policy(policy: str, succeeded: bool, expected: type) -> None:
    assert isinstance(decided(RestartPolicy(policy), succeeded=succeeded), expected)


def test_the_delays_of_the_defaults() -> None:
    delays = [decided(RestartPolicy(), streak=streak).delay for streak in range(9)]  # type: ignore[union-attr]
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_limit_grants_exactly_that_many_restarts_in_a_row(limit: int) -> None:
    policy = RestartPolicy(limit=limit)
    given_up = [isinstance(decided(policy, streak=n), GiveUp) for n in range(limit + 2)]
    assert given_up == [False] * limit + [True, True]


def test_a_limit_is_told_in_good_english() -> None:
    told = [decided(RestartPolicy(limit=n), streak=n).reason for n in (0, 1, 2)]
    tail = "in a row is reached; mend the cause, then start it"
    assert told == [f"its limit of {n} {tail}" for n in ("0 restarts", "1 restart", "2 restarts")]


def test_hopeless_is_given_up_before_any_limit() -> None:
    assert isinstance(decided(RestartPolicy(), hopeless=HOPELESS_TRIES - 1), RestartAfter)
    decision = decided(RestartPolicy(limit=100), hopeless=HOPELESS_TRIES, streak=2)
    assert decision == GiveUp(
        "given up after 3 tries: no restart can help; set that right, then start it",
    )


def test_a_policy_without_backoff_cannot_spin() -> None:
    policy = RestartPolicy(backoff=0.0, backoff_max=0.0)
    assert decided(policy, streak=1) == RestartAfter(LEAST_DELAY, "restart 2 in a row, after 0.1 s")


@pytest.mark.parametrize(
    ("cause", "delays"),
    [
        (CauseClass.GPU_MEMORY, [0.0, 10.0, 20.0, 40.0, 60.0, 60.0]),
        (CauseClass.HOST_MEMORY, [0.0, 10.0, 20.0, 40.0, 60.0, 60.0]),
        (CauseClass.GPU_LOST, [0.0, 60.0, 60.0, 60.0, 60.0, 60.0]),
        (CauseClass.PORT_BUSY, [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]),
        (CauseClass.ENGINE_ERROR, [0.0, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (CauseClass.UNKNOWN, [0.0, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_the_cause_asks_for_a_least_wait(cause: CauseClass, delays: list[float]) -> None:
    hasty = RestartPolicy(backoff=0.0, backoff_max=60.0, jitter=0.0)
    found = [decided(hasty, streak=streak, cause=cause).delay for streak in range(6)]  # type: ignore[union-attr]
    assert found == delays


def test_a_policy_that_waits_longer_than_its_cause_asks_for_is_kept() -> None:
    patient = RestartPolicy(backoff=300.0, backoff_max=3600.0, jitter=0.0)
    for cause in CauseClass:
        decision = decided(patient, streak=1, cause=cause)
        assert isinstance(decision, RestartAfter)
        assert decision.delay == 300.0


def test_a_wait_says_what_for() -> None:
    reason = decided(RestartPolicy(), streak=2, cause=CauseClass.GPU_MEMORY).reason
    assert reason == "restart 3 in a row, after 20.0 s, to wait for GPU memory"


@given(seconds, seconds, fractions, fractions, st.integers(1, 10**9))
def test_a_delay_keeps_to_its_bounds(
    backoff: float, cap: float, part: float, luck: float, streak: int
) -> None:
    policy = RestartPolicy(backoff=backoff, backoff_max=cap, jitter=part)
    decision = decided(policy, streak=streak, jitter=luck)
    assert isinstance(decision, RestartAfter)
    assert LEAST_DELAY <= decision.delay <= max(LEAST_DELAY, cap)
    assert decision.delay <= max(LEAST_DELAY, backoff * 2.0 ** min(streak - 1, 64))


@given(seconds, seconds, st.integers(1, 200))
def test_a_delay_never_shrinks_from_one_crash_to_the_next(
    backoff: float, cap: float, streak: int
) -> None:
    policy = RestartPolicy(backoff=backoff, backoff_max=cap, jitter=0.0)
    first, second = (decided(policy, streak=n) for n in (streak, streak + 1))
    assert isinstance(first, RestartAfter)
    assert isinstance(second, RestartAfter)
    assert first.delay <= second.delay


@given(
    st.sampled_from(["always", "on_failure", "never"]),
    st.none() | st.integers(0, 5),
    st.booleans(),
    st.integers(0, 10),
    st.integers(0, 5),
)
def test_every_decision_says_why(
    policy: str, limit: int | None, succeeded: bool, streak: int, hopeless: int
) -> None:
    decision = decided(
        RestartPolicy(policy, limit=limit), succeeded=succeeded, streak=streak, hopeless=hopeless
    )
    assert decision.reason
