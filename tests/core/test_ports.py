"""Ports: distinct, free, within the range, and the same as last time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.ports import NoPortLeft, assign

FIRST, LAST = 21002, 21012


def assigned(
    instances: list[str],
    *,
    taken: set[int] | None = None,
    remembered: dict[str, int] | None = None,
    is_free: Callable[[int], bool] = lambda _: True,
    last: int = LAST,
) -> dict[str, int]:
    return assign(
        instances,
        taken=taken or set(),
        remembered=remembered or {},
        first=FIRST,
        last=last,
        is_free=lambda _, port: is_free(port),
    )


def test_the_first_time_they_follow_each_other() -> None:
    assert assigned(["a", "b", "c"]) == {"a": 21002, "b": 21003, "c": 21004}


def test_ports_of_the_file_and_of_strangers_are_left_alone() -> None:
    ports = assigned(["a", "b"], taken={21002}, is_free=lambda port: port != 21003)
    assert ports == {"a": 21004, "b": 21005}


def test_a_model_more_in_the_file_moves_nobody() -> None:
    before = assigned(["a", "c"])
    assert assigned(["a", "b", "c"], remembered=before) == before | {"b": 21004}


def test_what_is_away_for_now_finds_its_port_again() -> None:
    before = assigned(["a", "b"])
    without = assigned(["b", "new"], remembered=before)
    assert without == {"b": 21003, "new": 21004}
    assert assigned(["a", "b", "new"], remembered=before | without) == before | without


def test_a_port_kept_for_the_absent_is_given_out_when_no_other_is_left() -> None:
    assert assigned(["b"], remembered={"a": 21002}, last=21002) == {"b": 21002}


@pytest.mark.parametrize("why", ["a stranger has it", "the file gives it away", "out of range"])
def test_a_remembered_port_that_cannot_be_had_is_replaced(why: str) -> None:
    wish = 1234 if why == "out of range" else 21005
    ports = assigned(
        ["a"],
        remembered={"a": wish},
        taken={wish} if why == "the file gives it away" else set(),
        is_free=lambda port: why != "a stranger has it" or port != wish,
    )
    assert ports == {"a": 21002}


def test_no_port_left_names_who_is_left_without() -> None:
    with pytest.raises(NoPortLeft) as caught:
        assigned(["a", "b"], last=21002)
    assert caught.value.instance == "b"


names = st.lists(st.sampled_from("abcdefgh"), unique=True)
some_ports = st.integers(FIRST - 2, LAST + 2)


@given(names, st.sets(some_ports), st.dictionaries(st.sampled_from("abcdefgh"), some_ports),
       st.sets(some_ports))  # fmt: skip
def test_ports_are_distinct_and_free_or_there_are_too_few(
    instances: list[str], taken: set[int], remembered: dict[str, int], strangers: set[int]
) -> None:
    usable = set(range(FIRST, LAST + 1)) - taken - strangers

    def is_free(port: int) -> bool:
        return port not in strangers

    try:
        ports = assigned(instances, taken=taken, remembered=remembered, is_free=is_free)
    except NoPortLeft:
        assert len(usable) < len(instances)
        return
    assert list(ports) == instances
    assert len(set(ports.values())) == len(ports)
    assert set(ports.values()) <= usable
    again = assigned(instances, taken=taken, remembered=remembered | ports, is_free=is_free)
    assert again == ports, "the same file gets the same ports"
