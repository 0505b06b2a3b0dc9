"""Who may start and who may stop, on a cluster such as ours and on random ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import instance, worker

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import RUNNING, State, Status
from supervisor.core.order import (
    Entry,
    StartLimit,
    blocked,
    held_back,
    not_ready,
    start_order,
    startable,
    stoppable,
    takes_a_place,
)

CONTROLLER = instance("controller")
FIRST = worker("vicuna-0")
SECOND = worker("vicuna-1")
API = instance("api_server", depends_on=("controller",))
WEBUI = instance("webui", depends_on=("api_server", "vicuna"))
ALL = (CONTROLLER, FIRST, SECOND, API, WEBUI)


def cluster(default: State = State.STOPPED, **states: State) -> list[Entry]:
    """All wanted and in the state ``default``, except where told otherwise."""
    states = {name.replace("__", "-"): state for name, state in states.items()}
    return [(spec, Status(states.get(spec.name, default), wanted=True)) for spec in ALL]


def waiting_for(
    spec: InstanceSpec, entries: list[Entry], expected: Collection[str] = ()
) -> list[str]:
    unready = not_ready(entries, expected)
    return [name for name in spec.depends_on if name in unready]


def unwanted(entries: list[Entry], *names: str) -> list[Entry]:
    """The same cluster, with these (or all) not wanted."""
    return [
        (spec, replace(status, wanted=status.wanted and bool(names) and spec.name not in names))
        for spec, status in entries
    ]


def test_first_the_controller() -> None:
    assert list(startable(cluster())) == ["controller"]


def test_a_controller_that_only_runs_is_not_enough() -> None:
    assert list(startable(cluster(controller=State.STARTING))) == []


def test_then_all_workers_and_the_api_server_at_once() -> None:
    assert list(startable(cluster(controller=State.READY))) == [
        "vicuna-0",
        "vicuna-1",
        "api_server",
    ]


def test_who_waits_says_for_whom() -> None:
    entries = cluster(controller=State.READY, api_server=State.READY)
    assert waiting_for(WEBUI, entries) == ["vicuna"]
    assert waiting_for(API, entries) == []


def test_a_service_is_waited_for_until_all_its_instances_are_ready() -> None:
    entries = cluster(State.READY, webui=State.STOPPED, vicuna__1=State.STARTING)
    assert list(startable(entries)) == []


@pytest.mark.parametrize("how", ["failed", "stopped on purpose"])
def test_a_replica_that_is_out_for_good_holds_nobody_up_while_another_serves(how: str) -> None:
    entries = cluster(State.READY, webui=State.STOPPED, vicuna__1=State.FAILED)
    if how == "stopped on purpose":
        entries = cluster(State.READY, webui=State.STOPPED, vicuna__1=State.STOPPED)
        entries = unwanted(entries, "vicuna-1")
    assert list(startable(entries)) == ["webui"]


def test_a_service_of_which_nothing_serves_is_waited_for() -> None:
    entries = cluster(State.STOPPED, controller=State.FAILED)
    assert list(startable(entries)) == []
    assert waiting_for(API, entries) == ["controller"]


def test_who_waits_for_what_has_failed_waits_in_vain_at_however_many_removes() -> None:
    entries = cluster(State.STOPPED, controller=State.FAILED)
    one = ["controller"]
    assert blocked(entries) == {"vicuna-0": one, "vicuna-1": one, "api_server": one, "webui": one}


def test_who_waits_for_what_was_stopped_on_purpose_waits_in_vain() -> None:
    entries = unwanted(cluster(State.READY, webui=State.STOPPED, api_server=State.STOPPED))
    entries = [
        (spec, replace(status, wanted=spec.name != "api_server")) for spec, status in entries
    ]
    assert blocked(entries) == {"webui": ["api_server"]}


def test_both_that_are_out_for_good_are_named_and_one_that_may_come_is_enough() -> None:
    out = cluster(State.READY, webui=State.STOPPED, vicuna__0=State.FAILED, vicuna__1=State.FAILED)
    assert blocked(out) == {"webui": ["vicuna-0", "vicuna-1"]}
    for hope in (State.STARTING, State.BACKOFF, State.UNREADY, State.STOPPING, State.READY):
        entries = cluster(State.READY, webui=State.STOPPED, vicuna__0=State.FAILED, vicuna__1=hope)
        assert blocked(entries) == {}, hope


def test_a_first_start_and_what_runs_wait_for_nothing_in_vain() -> None:
    assert blocked(cluster()) == {}
    assert blocked(cluster(State.READY, controller=State.FAILED)) == {}
    assert blocked(cluster(State.BACKOFF, controller=State.FAILED)) == {}
    assert blocked(unwanted(cluster(State.STOPPED, controller=State.FAILED))) == {}


def test_a_circle_which_no_file_can_have_blocks_without_end_nobody() -> None:
    one, other = instance("a", depends_on=("b",)), instance("b", depends_on=("a",))
    assert blocked([(one, Status(wanted=True)), (other, Status(wanted=True))]) == {}


def test_a_service_that_the_file_does_not_have_is_not_waited_for() -> None:
    """A worker of a cluster whose controller is on another machine depends on nothing here."""
    assert list(startable([(FIRST, Status(wanted=True))])) == ["vicuna-0"]


def test_an_expected_service_is_waited_for_while_it_has_no_instance() -> None:
    """A rollout has forgotten the old controller, and has not launched the new one yet."""
    entries: list[Entry] = [(FIRST, Status(wanted=True)), (API, Status(State.READY, wanted=True))]
    expected = {"controller", "vicuna", "api_server"}
    assert list(startable(entries, expected)) == []
    assert waiting_for(FIRST, entries, expected) == ["controller"]
    entries.append((CONTROLLER, Status(State.READY, wanted=True)))
    assert list(startable(entries, expected)) == ["vicuna-0"]
    assert waiting_for(FIRST, entries, expected) == []


def test_what_is_not_wanted_is_not_started() -> None:
    assert list(startable(unwanted(cluster(controller=State.READY), "vicuna-0", "api_server"))) == [
        "vicuna-1"
    ]


def test_stop_goes_in_reverse() -> None:
    waves = []
    states = {spec.name: State.READY for spec in ALL}
    while any(state is State.READY for state in states.values()):
        entries = [(spec, Status(states[spec.name])) for spec in ALL]
        wave = list(stoppable(entries))
        assert wave
        waves.append(wave)
        states |= dict.fromkeys(wave, State.STOPPED)
    assert waves == [["webui"], ["vicuna-0", "vicuna-1", "api_server"], ["controller"]]


def test_it_waits_for_those_that_are_still_stopping() -> None:
    entries = unwanted(cluster(State.STOPPED, controller=State.READY, api_server=State.STOPPING))
    assert list(stoppable(entries)) == []


def test_to_stop_the_controller_alone_stops_the_controller_alone() -> None:
    entries = unwanted(cluster(State.READY), "controller")
    assert list(stoppable(entries)) == ["controller"]


def test_a_controller_stopped_on_purpose_keeps_nobody_from_stopping() -> None:
    entries = unwanted(cluster(State.READY, controller=State.STOPPED))
    assert list(stoppable(entries)) == ["webui"]
    entries = unwanted(cluster(State.READY, controller=State.STOPPED, webui=State.STOPPED))
    assert list(stoppable(entries)) == ["vicuna-0", "vicuna-1", "api_server"]


# ---------------------------------------------------------------- how many start at once

GIB = 2**30
SMALL, LARGE, UNKNOWN = (
    worker("small-0", weights=GIB),
    worker("large-0", weights=40 * GIB),
    worker("unknown-0"),
)


def three(**states: State) -> list[Entry]:
    """Three workers whose controller is ready, all wanted, and stopped except where told."""
    entries: list[Entry] = [(CONTROLLER, Status(State.READY, wanted=True))]
    for spec in (UNKNOWN, SMALL, LARGE):
        state = states.get(spec.service, State.STOPPED)
        entries.append((spec, Status(state, wanted=True)))
    return entries


def test_the_largest_goes_first_and_what_nobody_knows_the_size_of_last() -> None:
    assert list(startable(three())) == ["large-0", "small-0", "unknown-0"]
    assert list(startable(three(), limit=StartLimit(2))) == ["large-0", "small-0"]


def test_equals_go_in_the_order_of_the_file() -> None:
    entries = [(worker(f"w-{i}"), Status(wanted=True)) for i in (3, 1, 2)]
    assert list(startable(entries, limit=StartLimit(2))) == ["w-3", "w-1"]


def test_who_has_no_place_says_who_is_starting() -> None:
    entries = three(large=State.STARTING, small=State.STARTING)
    assert list(startable(entries, limit=StartLimit(2))) == []
    assert held_back(entries, limit=StartLimit(2)) == {
        "unknown-0": "2 workers are starting (small-0, large-0), max_parallel_starts is 2"
    }
    one = three(large=State.STARTING, small=State.READY)
    assert held_back(one, limit=StartLimit(1)) == {
        "unknown-0": "1 worker is starting (large-0), max_parallel_starts is 1"
    }
    assert held_back(one, limit=StartLimit(2)) == {}
    assert held_back(one) == {}


def test_of_many_that_are_starting_a_few_are_named() -> None:
    many: list[Entry] = [(worker(f"w-{i}"), Status(State.STARTING, wanted=True)) for i in range(9)]
    entries = [*many, (SMALL, Status(wanted=True))]
    assert held_back(entries, limit=StartLimit(9)) == {
        "small-0": "9 workers are starting (w-0, w-1, w-2, ...), max_parallel_starts is 9"
    }


def test_two_that_memory_does_not_hold_start_one_after_the_other_and_nobody_overtakes() -> None:
    other = worker("other-0", weights=30 * GIB)
    limit = StartLimit(8, memory=64 * GIB)
    entries = [*three(), (other, Status(wanted=True))]
    assert list(startable(entries, limit=limit)) == ["large-0"]
    entries = [*three(large=State.STARTING), (other, Status(wanted=True))]
    assert held_back(entries, limit=limit) == {
        "other-0": "1 worker is starting (large-0), and 30.0 GiB of weights beside their 40.0 GiB "
        "are more than the 64.0 GiB of memory that are free",
        "small-0": "other-0 is larger and goes first",
        "unknown-0": "other-0 is larger and goes first",
    }
    entries = [*three(large=State.READY), (other, Status(wanted=True))]
    assert list(startable(entries, limit=limit)) == ["other-0", "small-0", "unknown-0"]


def test_what_memory_does_not_hold_at_all_starts_alone() -> None:
    assert list(startable(three(), limit=StartLimit(8, memory=GIB))) == ["large-0"]


@pytest.mark.parametrize("state", set(State) - {State.STARTING, State.STOPPED})
def test_only_what_is_starting_has_a_place(state: State) -> None:
    assert list(startable(three(large=state), limit=StartLimit(1))) == ["small-0"]


def test_one_that_has_answered_makes_room_however_long_the_controller_takes() -> None:
    answered = Status(State.STARTING, wanted=True, in_rotation=True)
    entries = [(LARGE, answered), (SMALL, Status(wanted=True))]
    assert list(startable(entries, limit=StartLimit(1))) == ["small-0"]


def test_only_workers_wait_for_a_place_and_only_workers_have_one() -> None:
    others = [instance("controller"), instance("api_server"), instance("tick")]
    starting: list[Entry] = [(one, Status(State.STARTING, wanted=True)) for one in others]
    waiting: list[Entry] = [(instance("tock"), Status(wanted=True)), (FIRST, Status(wanted=True))]
    running = replace(FIRST, name="vicuna-1", depends_on=())
    assert list(startable([*waiting, (running, Status(wanted=True))], limit=StartLimit(1))) == [
        "tock",
        "vicuna-0",
    ]
    free = replace(FIRST, depends_on=())
    assert list(startable([*starting, (free, Status(wanted=True))], limit=StartLimit(1))) == [
        "vicuna-0"
    ]


def test_who_waits_for_the_controller_keeps_no_place_and_nobody_waits_behind_it() -> None:
    entries = [(replace(LARGE, depends_on=("gone",)), Status(wanted=True)), *three()[1:3]]
    assert list(startable(entries, {"gone"}, StartLimit(1, memory=0))) == ["small-0"]


# ---------------------------------------------------------------- any cluster


@st.composite
def crowds(draw: st.DrawFn) -> tuple[list[InstanceSpec], StartLimit]:
    """Workers of all sizes and others, some of which depend on each other, and a limit."""
    sizes = st.lists(st.integers(0, 9), min_size=1, max_size=9)
    specs = [worker(f"w{i}-0", weights=n, depends_on=()) for i, n in enumerate(draw(sizes))]
    specs += [instance(f"c{i}", depends_on=()) for i in range(draw(st.integers(0, 2)))]
    for i, spec in enumerate(specs[1:], start=1):
        earlier = [one.service for one in specs[:i]]
        depends_on = tuple(draw(st.sets(st.sampled_from(earlier), max_size=1)))
        specs[i] = replace(spec, depends_on=depends_on)
    memory = draw(st.none() | st.integers(0, 20))
    return draw(st.permutations(specs)), StartLimit(draw(st.integers(1, 4)), memory)


@given(crowds(), st.data())
def test_never_more_than_the_limit_start_at_once_and_all_start_in_the_end(
    crowd: tuple[list[InstanceSpec], StartLimit], data: st.DataObject
) -> None:
    """Whatever becomes of each start. A restart after a crash waits for nobody, so it may bring
    more; then nobody else is started until they are few enough again."""
    specs, limit = crowd
    found = {spec.name: Status(wanted=True) for spec in specs}
    crashes = 6

    def entries() -> list[Entry]:
        return [(spec, found[spec.name]) for spec in specs]

    def starting() -> list[InstanceSpec]:
        return [spec for spec, status in entries() if takes_a_place(spec, status)]

    while any(status.state is not State.READY for status in found.values()):
        before = starting()
        could = set(startable(entries()))
        told = list(startable(entries(), limit=limit))
        waits = held_back(entries(), limit=limit)
        assert {*told, *waits} == could, "who waits for nothing else starts, or is told why not"
        assert not set(told) & set(waits)
        begun = [spec for spec in specs if spec.name in told]
        sizes = {spec.name: spec.weights for spec in specs}
        for spec in specs:
            if spec.name in waits:
                smaller = [one.name for one in begun if one.role is spec.role]
                assert all(sizes[name] >= spec.weights for name in smaller), "largest first"
        for name in told:
            found[name] = replace(found[name], state=State.STARTING)
        now = starting()
        if now != before:
            assert len(now) <= limit.workers
            fits = limit.memory is None or sum(one.weights for one in now) <= limit.memory
            assert fits or len(now) == 1
        under_way = [n for n, s in found.items() if s.state not in (State.STOPPED, State.READY)]
        assert under_way, "it is stuck"
        name = data.draw(st.sampled_from(under_way))
        state = found[name].state
        if state is State.STARTING and crashes and data.draw(st.booleans()):
            crashes -= 1
            ends = st.sampled_from((State.STARTING, State.BACKOFF, State.STOPPED, State.STOPPING))
            found[name] = Status(data.draw(ends), wanted=True)
        elif state is State.STARTING:
            goes_on = data.draw(st.booleans()) or found[name].in_rotation
            after = State.READY if goes_on else State.STARTING
            found[name] = Status(after, wanted=True, in_rotation=True)
        elif state is State.BACKOFF:
            found[name] = replace(found[name], state=State.STARTING)  # it waits for nobody
        else:
            found[name] = replace(found[name], state=State.STOPPED)


@st.composite
def dags(draw: st.DrawFn) -> list[InstanceSpec]:
    """Services that depend on earlier ones only, with one to three instances, shuffled."""
    specs = []
    for i in range(draw(st.integers(1, 7))):
        earlier = [f"s{j}" for j in range(i)]
        depends_on = tuple(draw(st.sets(st.sampled_from(earlier)))) if earlier else ()
        for replica in range(draw(st.integers(1, 3))):
            spec = instance(f"s{i}-{replica}", service=f"s{i}", depends_on=depends_on)
            specs.append(spec)
    return draw(st.permutations(specs))


@given(dags(), st.randoms(use_true_random=False))
def test_any_cluster_comes_up_in_order_as_parallel_as_it_can(
    specs: list[InstanceSpec], chance: object
) -> None:
    states = {spec.name: State.STOPPED for spec in specs}
    instances = {s.service: [o.name for o in specs if o.service == s.service] for s in specs}
    while State.STOPPED in states.values() or State.STARTING in states.values():
        entries = [(spec, Status(states[spec.name], wanted=True)) for spec in specs]
        may_start = set(startable(entries))
        for spec in specs:
            is_free = all(
                states[name] is State.READY for dep in spec.depends_on for name in instances[dep]
            )
            assert (spec.name in may_start) is (is_free and states[spec.name] is State.STOPPED)
            assert bool(waiting_for(spec, entries)) is not is_free
        states |= dict.fromkeys(may_start, State.STARTING)
        starting = [name for name, state in states.items() if state is State.STARTING]
        assert starting, "it is stuck"
        states[chance.choice(starting)] = State.READY  # type: ignore[attr-defined]


@given(dags(), st.randoms(use_true_random=False))
def test_any_cluster_goes_down_in_reverse_whatever_state_it_is_in(
    specs: list[InstanceSpec], chance: object
) -> None:
    states = {spec.name: chance.choice(list(State)) for spec in specs}  # type: ignore[attr-defined]
    for name, state in states.items():
        if state in (State.BACKOFF, State.FAILED):  # without a process, these stop at once
            states[name] = State.STOPPED
    up = RUNNING | {State.STOPPING}
    while set(states.values()) & up:
        told = set(stoppable([(spec, Status(states[spec.name])) for spec in specs]))
        for spec in specs:
            held = any(spec.service in o.depends_on and states[o.name] in up for o in specs)
            assert (spec.name in told) is (states[spec.name] in RUNNING and not held)
        states |= dict.fromkeys(told, State.STOPPING)
        stopping = [name for name, state in states.items() if state is State.STOPPING]
        assert stopping, "it is stuck"
        states[chance.choice(stopping)] = State.STOPPED  # type: ignore[attr-defined]


@given(dags(), st.randoms(use_true_random=False))
def test_who_is_blocked_is_exactly_who_never_comes_when_all_else_goes_well(
    specs: list[InstanceSpec], chance: object
) -> None:
    choice = chance.choice  # type: ignore[attr-defined]
    entries = [
        (spec, Status(choice((State.STOPPED, State.FAILED)), wanted=choice((True, True, False))))
        for spec in specs
    ]
    waiting = {s.name for s, t in entries if t.wanted and t.state is State.STOPPED}
    told = blocked(entries)
    given_up = {spec.name for spec, _ in entries} - waiting
    assert {name for names in told.values() for name in names} <= given_up
    while started := set(startable(entries)):
        entries = [
            (spec, replace(status, state=State.READY) if spec.name in started else status)
            for spec, status in entries
        ]
        assert {n: names for n, names in told.items() if n in blocked(entries)} == told
    stuck = {s.name for s, t in entries if t.wanted and t.state is State.STOPPED}
    assert set(told) == stuck


@given(dags())
def test_the_waves_of_a_plan_hold_everybody_once_and_each_after_its_dependencies(
    specs: list[InstanceSpec],
) -> None:
    waves = start_order({spec.name: spec for spec in specs})
    assert sorted(name for wave in waves for name in wave) == sorted(spec.name for spec in specs)
    number = {name: i for i, wave in enumerate(waves) for name in wave}
    wave_of = {
        spec.service: max(number[o.name] for o in specs if o.service == spec.service)
        for spec in specs
    }
    for spec in specs:
        before = [wave_of[service] for service in spec.depends_on]
        assert number[spec.name] == max(before, default=-1) + 1, "neither too early nor too late"


def test_a_circle_which_no_file_can_have_still_gives_a_plan() -> None:
    one, other = instance("a", depends_on=("b",)), instance("b", depends_on=("a",))
    assert start_order({"a": one, "b": other}) == [["a", "b"]]
