"""What decisions cost at two sizes: steps of the interpreter, so that no clock is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from instances import instance, worker

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State, Status
from supervisor.core.rollout import Failure, History, Launch, Member, Step, next_steps, progress

FEW, MANY = 100, 1000


def steps_of(act: Callable[[], object]) -> int:
    """Calls of functions and turns of generators, and their ends, that ``act`` takes."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def commands(count: int) -> list[InstanceSpec]:
    return [instance(f"nap-{i}", port=10_000 + i) for i in range(count)]


def replicas(count: int) -> list[InstanceSpec]:
    """Of one service, each with a port and a form of its own, all on one GPU."""
    found = []
    for i in range(count):
        one = worker(f"vicuna-{i}", port=10_000 + i, gpus=("0",), surge=True)
        beside = replace(one, name=f"{one.name}.b", port=20_000 + i)
        found.append(replace(one, beside=beside))
    return found


def ready(specs: Sequence[InstanceSpec]) -> list[Member]:
    return [Member(spec, Status(State.READY, wanted=True, pid=7)) for spec in specs]


def changed(spec: InstanceSpec) -> InstanceSpec:
    beside = spec.beside and replace(spec.beside, launch="changed")
    return replace(spec, launch="changed", beside=beside)


@pytest.mark.parametrize("make", [commands, replicas])
def test_a_death_among_many_costs_what_looking_at_them_costs(
    make: Callable[[int], list[InstanceSpec]],
):
    """Nobody thinks about those that are as they should be: a few calls each, to see that."""

    def cost(count: int) -> int:
        specs = make(count)
        members = ready(specs)
        members[3] = replace(members[3], status=Status(State.BACKOFF, wanted=True, restarts=1))
        wanted = {spec.slot: spec for spec in specs}
        histories = {spec.slot: History(spec) for spec in specs}
        assert next_steps(wanted, members, histories) == []
        return steps_of(lambda: next_steps(wanted, members, histories))

    assert cost(MANY) <= 15 * MANY
    assert cost(MANY) - cost(FEW) <= 15 * (MANY - FEW)


CHANGES: dict[str, Callable[[list[InstanceSpec]], tuple[list[Member], dict[str, History]]]] = {
    "all are new": lambda specs: ([], {}),
    "all have changed": lambda specs: (
        ready(specs),
        {spec.slot: History(spec) for spec in specs},
    ),
    "one could not be started": lambda specs: (
        ready(specs),
        {spec.slot: History(spec, Failure("changed", spec.name, "no")) for spec in specs[:1]},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [commands, replicas])
def test_a_change_of_all_costs_no_more_for_each_of_many(
    make: Callable[[int], list[InstanceSpec]], change: str
):
    def cost(count: int) -> int:
        specs = make(count)
        members, histories = CHANGES[change](specs)
        wanted = {spec.slot: changed(spec) for spec in specs}
        return steps_of(lambda: next_steps(wanted, members, histories))

    assert cost(MANY) <= 1.5 * cost(FEW) * MANY / FEW


def test_all_are_launched_at_once():
    specs = replicas(MANY)
    found: list[Step] = next_steps({spec.slot: spec for spec in specs}, [], {})
    assert [step.spec.name for step in found if isinstance(step, Launch)] == [
        spec.name for spec in specs
    ]


def test_who_waits_for_many_is_told_without_thinking_about_those_that_serve():
    def cost(count: int) -> int:
        specs = commands(count)
        members = ready(specs)
        members[3] = replace(members[3], status=Status(State.STARTING, wanted=True))
        wanted = {spec.slot: spec for spec in specs}
        histories = {spec.slot: History(spec) for spec in specs}
        assert progress(wanted, members, histories).under_way == ["nap-3 is starting"]
        return steps_of(lambda: progress(wanted, members, histories))

    assert cost(MANY) <= 25 * MANY
