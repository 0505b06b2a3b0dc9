"""How what runs becomes what is wanted: stories in a simulated cluster, see ``rollout_world``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from instances import instance, worker
from rollout_world import Instance, Luck, World

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, RestartPolicy, Role
from supervisor.core.lifecycle import (
    Check,
    Diagnosed,
    Outcome,
    Probed,
    StartRequested,
    State,
    Status,
    StopRequested,
)
from supervisor.core.order import StartLimit
from supervisor.core.rollout import (
    Abandon,
    Adjust,
    Failure,
    Forget,
    History,
    Launch,
    Member,
    Retire,
    Step,
    Swap,
    next_steps,
    progress,
)


def surge(slot: str = "vicuna-0", launch: str = "A", port: int = 21002, **fields: Any) -> Any:
    """A replica whose successor starts beside it."""
    one = worker(slot, launch=launch, port=port, surge=True, depends_on=(), **fields)
    return replace(one, beside=replace(one, name=f"{slot}.b", port=port + 100))


def recreate(slot: str = "vicuna-0", launch: str = "A", port: int = 21002, **fields: Any) -> Any:
    """A replica whose successor starts in its place."""
    return worker(slot, launch=launch, port=port, depends_on=(), **fields)


def three(make: Any, launch: str = "A", **fields: Any) -> list[InstanceSpec]:
    return [make(f"vicuna-{i}", launch, 21002 + i, **fields) for i in range(3)]


def running(*targets: InstanceSpec) -> World:
    world = World()
    world.edit(*targets)
    world.run()
    assert all(one.state is State.READY for one in world.instances.values())
    world.log.clear()
    return world


def names(steps: list[Step], kind: type) -> list[str]:
    """Whom the steps of one kind are about."""
    return [
        step.spec.name if isinstance(step, Launch | Swap | Adjust) else step.instance  # type: ignore[union-attr]
        for step in steps
        if isinstance(step, kind)
    ]


def the(world: World, name: str) -> Instance:
    return world.instances[name]


# ---------------------------------------------------------------- what is kept


def test_from_nothing_all_is_started() -> None:
    world = World()
    world.edit(instance(launch="C"), *three(surge))
    assert names(world.settle(), Launch) == ["controller", "vicuna-0", "vicuna-1", "vicuna-2"]
    world.run()
    assert world.progress().under_way == []


def test_the_same_file_changes_nothing() -> None:
    world = running(*three(surge))
    before = world.runs()
    world.edit(*three(surge))
    world.run()
    assert (world.log, world.runs()) == ([], before)


@pytest.mark.parametrize("make", [surge, recreate])
def test_replicas_from_1_to_3_to_1_touch_no_other_replica(make: Any) -> None:
    first, *more = three(make)
    world = running(first)
    before = world.runs()
    world.edit(first, *more)
    world.run()
    assert names(world.log, Launch) == ["vicuna-1", "vicuna-2"]
    world.edit(first)
    world.run()
    assert names(world.log, Retire) == ["vicuna-1", "vicuna-2"]
    assert world.runs() == before
    assert len(world.log) == 6, "and the two are forgotten; nothing else"


def test_another_way_of_supervising_it_keeps_the_process() -> None:
    world = running(surge())
    before = world.runs()
    world.edit(surge(models=("other",), drain_timeout=5.0, argv=("same", "but", "--names")))
    world.run()
    assert names(world.log, Adjust) == ["vicuna-0"]
    assert len(world.log) == 1
    assert world.runs() == before
    assert the(world, "vicuna-0").spec.models == ("other",)


def test_what_is_no_longer_in_the_file_drains_and_is_forgotten() -> None:
    world = running(instance(launch="C"), surge(drain_timeout=60.0))
    world.edit(instance(launch="C"))
    world.settle()
    assert the(world, "vicuna-0").draining
    assert world.progress().under_way == ["vicuna-0 finishes its requests and stops"]
    world.run()
    assert set(world.instances) == {"controller"}


# ---------------------------------------------------------------- surge


def test_the_new_one_starts_beside_the_old_which_goes_when_it_is_ready() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    assert names(world.settle(), Launch) == ["vicuna-0.b"]
    assert world.progress().under_way == ["vicuna-0 is to be replaced", "vicuna-0.b is starting"]
    while the(world, "vicuna-0.b").state is not State.READY:
        assert the(world, "vicuna-0").state is State.READY
        world.one_thing()
    world.run()
    assert world.table() == {"vicuna-0.b": "ready B"}


def test_the_next_surge_takes_the_first_name_again() -> None:
    world = running(surge())
    for launch, name in (("B", "vicuna-0.b"), ("C", "vicuna-0"), ("D", "vicuna-0.b")):
        world.edit(surge(launch=launch))
        world.run()
        assert world.table() == {name: f"ready {launch}"}


def test_one_at_a_time_and_the_next_not_before_the_last_has_ended_its_requests() -> None:
    world = running(*three(surge, drain_timeout=300.0))
    world.edit(*three(surge, "B", drain_timeout=300.0))
    most = 0
    while world.one_thing():
        most = max(most, len(world.instances))
        assert sum(world.is_ready(f"vicuna-{i}") for i in range(3)) == 3
    assert most == 4
    assert set(world.table().values()) == {"ready B"}


def test_two_services_do_not_wait_for_each_other() -> None:
    world = running(surge(), surge("qwen-0", port=21005))
    world.edit(surge(launch="B"), surge("qwen-0", "B", 21005))
    assert names(world.settle(), Launch) == ["vicuna-0.b", "qwen-0.b"]


def test_where_a_surge_has_no_port_it_is_done_in_place() -> None:
    world = running(replace(surge(), beside=None))
    world.edit(replace(surge(launch="B"), beside=None))
    assert names(world.settle(), Retire) == ["vicuna-0"]
    world.run()
    assert world.table() == {"vicuna-0": "ready B"}


def test_a_new_edit_in_the_middle_of_a_surge_supersedes_it() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.settle()
    world.edit(surge(launch="C"))
    assert [type(step) for step in world.next_steps()] == [Retire], "its name is still in use"
    world.run()
    assert names(world.log, Launch) == ["vicuna-0.b", "vicuna-0.b"]
    assert world.table() == {"vicuna-0.b": "ready C"}


def test_an_edit_back_to_the_old_values_leaves_nothing_behind() -> None:
    world = running(surge())
    before = world.runs()
    world.edit(surge(launch="B"))
    world.settle()
    world.edit(surge())
    world.run()
    assert world.runs() == before
    assert set(world.instances) == {"vicuna-0"}


def test_what_only_starts_yet_is_not_waited_for() -> None:
    world = World()
    world.edit(surge())
    world.settle()
    world.edit(surge(launch="B"))
    steps = world.settle()
    assert (names(steps, Retire), names(steps, Launch)) == (["vicuna-0"], ["vicuna-0.b"])
    world.run()
    assert world.table() == {"vicuna-0.b": "ready B"}


def test_of_several_that_only_start_yet_one_at_a_time_gets_a_successor_beside_it() -> None:
    world = World()
    world.edit(*three(surge))
    world.settle()
    world.edit(*three(surge, "B"))
    steps = world.settle()
    assert (len(names(steps, Retire)), names(steps, Launch)) == (3, ["vicuna-0.b"])
    world.run()
    assert set(world.table().values()) == {"ready B"}


def test_a_replica_that_comes_back_does_not_wait_for_the_drain_of_its_like() -> None:
    world = running(*three(surge, drain_timeout=300.0))
    world.edit(surge(drain_timeout=300.0))
    world.settle()
    world.edit(*three(surge, drain_timeout=300.0))
    assert names(world.settle(), Launch) == ["vicuna-1.b"], "one at a time"
    world.run()
    assert len(world.instances) == 3


def test_an_old_one_that_serves_badly_is_replaced_like_one_that_serves_well() -> None:
    world = running(surge())
    world.turns_silent(the(world, "vicuna-0"))
    world.edit(surge(launch="B"))
    assert names(world.settle(), Launch) == ["vicuna-0.b"]


# ---------------------------------------------------------------- how many start at once


def test_nobody_is_taken_away_whose_successor_would_only_wait_for_others_to_start() -> None:
    """Services that are edited together: each may miss one replica, but not all start at once."""
    slots = ("a-0", "b-0", "c-0")
    world = running(*(recreate(slot, port=21002 + i) for i, slot in enumerate(slots)))
    world.limit = StartLimit(1)
    world.edit(*(recreate(slot, "B", 21002 + i) for i, slot in enumerate(slots)))
    assert names(world.settle(), Retire) == ["a-0"]
    while world.one_thing():
        away = [one for one in world.instances.values() if one.state is not State.READY]
        # Once it has answered, all that is left is to be registered.
        assert sum(not one.status.in_rotation for one in away) <= 1
    assert [one.spec.launch for one in world.instances.values()] == ["B", "B", "B"]


def test_beside_what_memory_does_not_hold_nobody_is_taken_away_either() -> None:
    big = (recreate(slot, "A", 21002 + i) for i, slot in enumerate(("a-0", "b-0", "c-0")))
    world = running(*big)
    world.limit = StartLimit(8, memory=64)
    sizes = {"a-0": 40, "b-0": 30, "c-0": 20}
    world.edit(
        *(recreate(slot, "B", 21002 + i, weights=w) for i, (slot, w) in enumerate(sizes.items()))
    )
    assert names(world.settle(), Retire) == ["a-0", "c-0"]
    world.run()
    assert [one.spec.launch for one in world.instances.values()] == ["B", "B", "B"]


def test_who_waits_for_the_gpu_of_one_that_serves_does_not_keep_it_from_giving_that_up() -> None:
    world = running(recreate("a-0", port=21002, gpus=("0",)))
    world.limit = StartLimit(1)
    world.edit(recreate("b-0", port=21003, gpus=("0",)), recreate("a-0", "B", 21002, gpus=("1",)))
    world.run()
    assert {one.name: one.spec.gpus for one in world.instances.values()} == {
        "a-0": ("1",),
        "b-0": ("0",),
    }


def test_the_old_ones_serve_while_their_successors_wait_for_their_turn_beside_them() -> None:
    one, other = surge("a-0", port=21002), surge("b-0", port=21003)
    world = running(one, other)
    world.limit = StartLimit(1)
    world.edit(surge("a-0", "B", 21002), surge("b-0", "B", 21003))
    world.settle()
    assert {name: (one.state, one.spec.launch) for name, one in world.instances.items()} == {
        "a-0": (State.READY, "A"),
        "b-0": (State.READY, "A"),
        "a-0.b": (State.STARTING, "B"),
        "b-0.b": (State.STOPPED, "B"),
    }
    world.run()
    assert sorted(world.instances) == ["a-0.b", "b-0.b"]


# ---------------------------------------------------------------- recreate


def test_the_old_one_is_gone_before_its_successor_starts() -> None:
    world = running(recreate())
    world.edit(recreate(launch="B"))
    assert names(world.settle(), Retire) == ["vicuna-0"]
    assert world.next_steps() == []
    assert the(world, "vicuna-0").launched == "A"
    world.run()
    assert [type(step) for step in world.log] == [Retire, Forget, Launch]
    assert world.table() == {"vicuna-0": "ready B"}


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_no_more_than_max_unavailable_are_taken_away_at_a_time(at_once: int) -> None:
    world = running(*three(recreate))
    world.edit(*three(recreate, "B", max_unavailable=at_once))
    least = 3
    while world.one_thing():
        least = min(least, sum(world.is_ready(f"vicuna-{i}") for i in range(3)))
    assert least == max(0, 3 - at_once)
    assert set(world.table().values()) == {"ready B"}


def test_what_is_down_already_counts() -> None:
    world = running(*three(recreate))
    world.turns_silent(the(world, "vicuna-2"))
    world.edit(*three(recreate, "B"))
    assert names(world.settle(), Retire) == ["vicuna-2"], "it serves nobody: no loss"


def test_new_replicas_are_ready_before_old_ones_are_taken_away() -> None:
    world = running(recreate())
    world.edit(*three(recreate, "B"))
    steps = world.settle()
    assert (names(steps, Launch), names(steps, Retire)) == (["vicuna-1", "vicuna-2"], [])
    world.run()
    assert set(world.table().values()) == {"ready B"}


def test_a_new_edit_in_the_middle_of_a_recreation_supersedes_it() -> None:
    world = running(*three(recreate))
    world.edit(*three(recreate, "B"))
    for _ in range(5):
        world.one_thing()
    world.edit(*three(recreate, "C"))
    world.run()
    assert world.table() == {f"vicuna-{i}": "ready C" for i in range(3)}


def test_the_way_of_replacing_may_change_in_the_middle() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.settle()
    world.edit(recreate(launch="B"))
    world.run()
    assert world.table() == {"vicuna-0": "ready B"}
    world.edit(recreate(launch="C"))
    world.settle()
    world.edit(surge(launch="C"))
    world.run()
    assert [one.spec.launch for one in world.instances.values()] == ["C"]


# ---------------------------------------------------------------- what has no process


def test_what_is_down_gets_the_new_settings_and_is_started_at_once() -> None:
    world = World()
    world.luck["A"] = Luck.FAILS
    world.edit(surge())
    world.run_for(20)
    assert the(world, "vicuna-0").state in (State.BACKOFF, State.STARTING)
    while the(world, "vicuna-0").state is not State.BACKOFF:
        world.one_thing()
    world.edit(surge(launch="B"))
    steps = world.settle()
    assert names(steps, Swap) == ["vicuna-0"]
    assert the(world, "vicuna-0").launched == "B"
    world.run()
    assert world.table() == {"vicuna-0": "ready B"}


def test_what_has_failed_for_good_is_mended_by_an_edit() -> None:
    world = World()
    world.luck["A"] = Luck.MISSING
    world.edit(recreate())
    world.run()
    assert the(world, "vicuna-0").state is State.FAILED
    (line,) = world.progress().failed
    assert line.startswith("vicuna-0 cannot be started: could not be started: no such program")
    world.edit(recreate(launch="B"))
    world.run()
    assert world.table() == {"vicuna-0": "ready B"}
    assert world.progress().failed == []


@pytest.mark.parametrize("make", [surge, recreate])
def test_what_a_person_has_stopped_stays_so_and_starts_as_the_file_says(make: Any) -> None:
    world = running(make())
    world.stop("vicuna-0")
    world.run()
    world.edit(make(launch="B"))
    (step,) = world.settle()
    assert isinstance(step, Swap)
    assert not step.start
    assert the(world, "vicuna-0").status.reason == "asked to stop"
    assert world.progress().under_way == []
    world.start("vicuna-0")
    world.run()
    assert world.table() == {"vicuna-0": "ready B"}


@pytest.mark.parametrize("make", [surge, recreate])
@pytest.mark.parametrize("begun", [0, 1])
def test_a_stop_and_an_edit_at_the_same_time_leave_it_stopped(make: Any, begun: int) -> None:
    world = World()
    world.edit(make())
    world.run() if begun else world.settle()
    world.stop("vicuna-0")
    world.edit(make(launch="B"))
    world.run()
    assert world.table() == {"vicuna-0": "stopped B"}


def test_a_stopped_one_whose_name_is_no_more_stays_stopped_all_the_same() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.run()
    world.stop("vicuna-0")
    world.run()
    world.edit(recreate(launch="C"))
    assert world.settle() == []
    world.start("vicuna-0")
    world.run()
    assert world.table() == {"vicuna-0": "ready C"}


def test_one_that_is_down_and_whose_name_is_no_more_makes_room() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.run()
    world.luck["B"] = Luck.FAILS
    world.exits(the(world, "vicuna-0.b"), 1)
    while the(world, "vicuna-0.b").state is not State.BACKOFF:
        world.one_thing()
    world.edit(recreate(launch="C"))
    assert names(world.settle(), Retire) == ["vicuna-0.b"]
    world.run()
    assert world.table() == {"vicuna-0": "ready C"}


def test_a_stop_in_the_middle_of_a_surge_stops_both_and_leaves_one() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.settle()
    world.stop("vicuna-0")
    world.run()
    assert world.table() == {"vicuna-0.b": "stopped B"}


# ---------------------------------------------------------------- a version that cannot be started

BROKEN = [Luck.FAILS, Luck.HOPELESS, Luck.MISSING]


@pytest.mark.parametrize("luck", BROKEN)
def test_a_surge_that_fails_touches_nobody(luck: Luck) -> None:
    world = running(*three(surge))
    before = world.runs()
    world.luck["B"] = luck
    world.edit(*three(surge, "B"))
    world.run()
    assert world.runs() == before
    assert len(world.instances) == 3
    assert names(world.log, Launch) == ["vicuna-0.b"], "one replica tries it, and no other"
    told = world.progress()
    assert told.under_way == []
    (line,) = told.failed
    assert line.startswith("the rollout of vicuna-0 failed: ")
    assert line.endswith("; vicuna-0 goes on as it was")


@pytest.mark.parametrize("luck", BROKEN)
def test_a_recreation_that_fails_is_taken_back(luck: Luck) -> None:
    world = running(*three(recreate))
    before = world.runs()
    world.luck["B"] = luck
    world.edit(*three(recreate, "B"))
    world.run()
    assert world.table() == {f"vicuna-{i}": "ready A" for i in range(3)}
    after = world.runs()
    assert [name for name in before if before[name] != after[name]] == ["vicuna-0"]
    assert world.progress().under_way == []
    assert len(world.progress().failed) == 1


def test_a_replica_that_crashes_after_the_rollout_failed_comes_back_as_it_was() -> None:
    """It would be lost to the version of which is known that it cannot be started."""
    world = running(*three(surge))
    world.luck["B"] = Luck.FAILS
    world.edit(*three(surge, "B"))
    world.run()
    for name in ("vicuna-1", "vicuna-2"):
        world.exits(the(world, name), 1)
        world.exits(the(world, name), 1)
    world.run()
    assert world.table() == {f"vicuna-{i}": "ready A" for i in range(3)}
    assert len(names(world.log, Launch)) == 1


def test_a_replica_that_was_taken_away_with_the_one_that_failed_comes_back_too() -> None:
    world = running(*three(recreate))
    world.luck["B"] = Luck.HOPELESS
    world.edit(*three(recreate, "B", max_unavailable=2))
    world.run()
    assert world.table() == {f"vicuna-{i}": "ready A" for i in range(3)}


@pytest.mark.parametrize("make", [surge, recreate])
def test_the_next_edit_is_tried_and_the_same_one_is_not(make: Any) -> None:
    world = running(make())
    world.luck["B"] = Luck.FAILS
    world.edit(make(launch="B"))
    world.run()
    world.log.clear()
    world.edit(make(launch="B", models=("renamed",)))
    world.run()
    assert world.log == [], "what cannot be started is not known under other names either"
    world.edit(make(launch="C"))
    world.run()
    assert [one.spec.launch for one in world.instances.values()] == ["C"]
    assert world.progress().failed == []


@pytest.mark.parametrize("make", [surge, recreate])
def test_an_edit_back_ends_the_failure_without_a_trace(make: Any) -> None:
    world = running(make())
    world.luck["B"] = Luck.FAILS
    world.edit(make(launch="B"))
    world.run()
    before = world.runs()
    world.edit(make())
    world.run()
    assert world.runs() == before
    assert world.progress().failed == []


def test_a_first_version_has_nothing_to_go_back_to_and_is_tried_on() -> None:
    world = World()
    world.luck["A"] = Luck.FAILS
    world.edit(recreate())
    world.run_for(200)
    assert not names(world.log, Retire)
    world.luck.clear()
    world.run()
    assert world.table() == {"vicuna-0": "ready A"}


def test_a_verdict_on_the_old_version_is_not_held_against_the_new_one() -> None:
    """Its log is read a moment later, when the next process runs already."""
    world = running(recreate())
    world.luck["B"] = Luck.HOPELESS
    world.edit(recreate(launch="B"))
    one = None
    while one is None or one.state is not State.BACKOFF:
        world.settle()
        one = world.instances.get("vicuna-0")
        if one is not None:
            one.diagnoses.clear()  # nobody has read its log yet
        next(world.possible())()
    one.diagnoses.clear()
    world.edit(recreate(launch="C"))
    world.settle()
    world.tell(one, Diagnosed(one.status.run - 1, "boom", CauseClass.WRONG_CONFIG))
    world.run()
    assert world.table() == {"vicuna-0": "ready C"}


def test_a_new_one_that_ends_well_without_ever_being_ready_has_not_taken_over() -> None:
    world = running(surge())
    world.luck["B"] = Luck.FINISHES
    world.edit(surge(launch="B", restart=RestartPolicy("on_failure")))
    world.run()
    assert world.table() == {"vicuna-0": "ready A"}
    assert len(world.progress().failed) == 1


def test_a_person_who_stops_the_new_one_alone_takes_the_rollout_back() -> None:
    world = running(surge())
    before = world.runs()
    world.edit(surge(launch="B"))
    world.settle()
    world.tell(the(world, "vicuna-0.b"), StopRequested("asked to stop"))
    world.run()
    assert world.runs() == before
    assert world.progress().failed == [
        "the rollout of vicuna-0 failed: asked to stop; vicuna-0 goes on as it was"
    ]


def test_going_back_does_not_take_the_port_that_another_has_by_now() -> None:
    world = running(recreate(port=21002), recreate("qwen-0", port=21005))
    world.luck["B"] = Luck.FAILS
    world.edit(recreate(launch="B", port=21006), recreate("qwen-0", "B2", port=21002))
    world.run_for(400)
    assert the(world, "qwen-0").state is State.READY
    assert the(world, "vicuna-0").spec.launch == "B"


# ---------------------------------------------------------------- restarts that a person asks for


def test_a_restart_of_all_is_a_rollout_like_any_other() -> None:
    world = running(*three(surge))
    for i in range(3):
        world.restart(f"vicuna-{i}")
    while world.one_thing():
        assert all(world.is_ready(f"vicuna-{i}") for i in range(3))
        assert len(world.instances) <= 4
    assert set(world.table()) == {f"vicuna-{i}.b" for i in range(3)}
    assert world.progress().under_way == []


def test_a_restart_in_place_comes_back_under_its_name() -> None:
    world = running(*three(recreate))
    before = world.runs()
    for i in range(3):
        world.restart(f"vicuna-{i}")
    world.run()
    assert set(world.table()) == {f"vicuna-{i}" for i in range(3)}
    assert not before.items() & world.runs().items()


def test_asked_again_in_the_middle_it_begins_anew_and_leaves_nothing() -> None:
    world = running(surge())
    world.restart("vicuna-0")
    world.settle()
    world.restart("vicuna-0")
    world.run()
    assert len(world.instances) == 1
    assert world.progress().under_way == []


def test_a_restart_that_fails_keeps_what_runs_and_may_be_asked_for_again() -> None:
    world = running(surge())
    before = world.runs()
    world.luck["A"] = Luck.FAILS
    for _ in range(2):
        world.restart("vicuna-0")
        world.run()
        assert world.runs() == before
        assert len(world.progress().failed) == 1
    world.edit(surge(models=("renamed",)))
    world.run()
    assert the(world, "vicuna-0").spec.models == ("renamed",), "that needs no start"
    world.luck.clear()
    world.restart("vicuna-0")
    world.run()
    assert world.table() == {"vicuna-0.b": "ready A"}
    assert world.progress().failed == []


def test_a_crash_before_its_turn_does_not_disturb_a_restart() -> None:
    world = running(*three(recreate))
    for i in range(3):
        world.restart(f"vicuna-{i}")
    world.settle()
    world.exits(the(world, "vicuna-2"), 1)
    world.run()
    assert set(world.table().values()) == {"ready A"}
    assert not any(one.outdated for one in world.instances.values())


def test_a_start_of_what_is_leaving_does_not_keep_it() -> None:
    world = running(surge(drain_timeout=60.0))
    world.edit(surge(launch="B", drain_timeout=60.0))
    while "vicuna-0.b" not in world.instances or not the(world, "vicuna-0").leaving:
        world.one_thing()
    world.tell(the(world, "vicuna-0"), StartRequested("asked to start"))
    world.run()
    assert world.table() == {"vicuna-0.b": "ready B"}


# ---------------------------------------------------------------- ports


def test_a_new_one_waits_for_the_port_that_another_is_about_to_leave() -> None:
    world = running(recreate("old-0", port=21002, drain_timeout=60.0))
    world.edit(recreate("new-0", port=21002))
    assert names(world.settle(), Launch) == []
    assert world.progress().under_way[-1] == "new-0 is to be started"
    world.run()
    assert world.table() == {"new-0": "ready A"}


def test_two_services_change_ports() -> None:
    world = running(recreate("a-0", port=21002), recreate("b-0", port=21003))
    world.edit(recreate("a-0", port=21003), recreate("b-0", port=21002))
    world.run()
    assert {name: one.spec.port for name, one in world.instances.items()} == {
        "a-0": 21003,
        "b-0": 21002,
    }


def test_what_is_down_waits_for_its_new_port_as_well() -> None:
    world = running(recreate("a-0", port=21002), recreate("b-0", port=21003, drain_timeout=60.0))
    world.luck["A"] = Luck.FAILS
    while the(world, "a-0").state is not State.BACKOFF:
        world.exits(the(world, "a-0"), 1)
        world.settle()
        if the(world, "a-0").spawning:
            next(world.possible())()
    world.luck.clear()
    world.edit(recreate("a-0", port=21003))
    steps = world.settle()
    assert (names(steps, Swap), names(steps, Launch)) == ([], [])
    world.run()
    assert world.table() == {"a-0": "ready A"}


def test_a_failed_rollout_does_not_keep_a_port_that_another_is_to_have() -> None:
    world = running(recreate("v-0", port=21002), recreate("v-1", port=21003))
    world.luck["B"] = Luck.FAILS
    moved = [recreate("v-0", "B", 21012), recreate("v-1", "B", 21013)]
    world.edit(*moved, recreate("w-0", port=21003))
    world.run_for(300)
    assert world.table()["v-0"] == "ready A"
    assert world.table()["w-0"] == "ready A"


# ---------------------------------------------------------------- GPUs

PORTS = {"v-0": 21002, "v-1": 21003, "w-0": 21005, "v-2": 21006, "w-1": 21007}


def on(slot: str, gpus: str, make: Any = recreate, launch: str = "A", **fields: Any) -> Any:
    """A replica on these GPUs, a letter each."""
    given = {"port": PORTS[slot], "gpus": tuple(gpus), **fields}
    return make(slot, f"{launch} on {gpus}", **given)


def most_on_a_gpu(world: World) -> int:
    gpus = [gpu for one in world.instances.values() if one.launched for gpu in one.spec.gpus]
    return max((gpus.count(gpu) for gpu in gpus), default=0)


def watched(world: World) -> int:
    """To the end; how many there were at most on one GPU."""
    most = most_on_a_gpu(world)
    while world.one_thing():
        most = max(most, most_on_a_gpu(world))
    return most


def test_a_second_replica_waits_until_the_first_has_left_it_a_gpu() -> None:
    world = running(on("v-0", "01"))
    world.edit(on("v-0", "0"), on("v-1", "1"))
    steps = world.settle()
    assert (names(steps, Launch), names(steps, Retire)) == ([], ["v-0"])
    assert watched(world) == 1
    assert world.table() == {"v-0": "ready A on 0", "v-1": "ready A on 1"}
    assert world.progress().under_way == []


def test_from_2_replicas_to_3_each_waits_for_its_gpus_and_one_serves() -> None:
    world = running(on("v-0", "012"), on("v-1", "345"))
    world.edit(on("v-0", "01"), on("v-1", "23"), on("v-2", "45"))
    assert watched(world) == 1
    assert len(world.table()) == 3
    assert world.progress().under_way == []


def test_two_that_wait_for_each_of_two_do_not_keep_both_for_ever() -> None:
    world = running(on("v-0", "02"), on("v-1", "13"))
    world.edit(on("v-0", "0"), on("v-1", "1"), on("v-2", "2"), on("w-0", "3", service="v"))
    assert watched(world) == 1
    assert len(world.table()) == 4


def test_new_replicas_of_two_services_that_each_wait_for_the_other_one_get_their_gpus() -> None:
    world = running(on("v-0", "0"), on("w-0", "1"))
    world.edit(on("v-0", "2"), on("v-1", "1"), on("w-0", "3"), on("w-1", "0"))
    assert watched(world) == 1
    assert len(world.table()) == 4
    assert world.progress().under_way == []


def test_two_replicas_on_halves_that_cannot_be_started_make_room_for_one_on_both() -> None:
    """Its model does not fit on one GPU: that is known when the old one is gone."""
    world = running(on("v-0", "01"))
    world.luck["B"] = Luck.FAILS
    world.edit(on("v-0", "0", launch="B"), on("v-1", "1", launch="B"))
    assert watched(world) == 1
    assert world.table() == {"v-0": "ready A on 01"}
    told = world.progress()
    assert told.under_way == []
    assert len(told.failed) == 1
    world.edit(on("v-0", "0", launch="C"), on("v-1", "1", launch="C"))
    world.run()
    assert world.table() == {"v-0": "ready C on 0", "v-1": "ready C on 1"}


def test_a_replica_that_works_is_not_taken_away_for_one_that_does_not() -> None:
    world = running(on("v-0", "01"))
    world.luck["B"] = Luck.FAILS
    world.edit(on("v-0", "0", launch="B"), on("v-1", "1"))
    world.run_for(300)
    assert the(world, "v-1").state is State.READY
    assert world.table()["v-0"].endswith("B on 0"), "it has nothing to go back to"


def test_a_service_under_another_name_waits_for_the_gpu() -> None:
    world = running(on("v-0", "0", drain_timeout=60.0))
    world.edit(on("w-0", "0"))
    steps = world.settle()
    assert (names(steps, Launch), names(steps, Retire)) == ([], ["v-0"])
    assert world.progress().under_way[-1] == "w-0 is to be started"
    assert watched(world) == 1
    assert world.table() == {"w-0": "ready A on 0"}


@pytest.mark.parametrize("first", [surge, recreate])
@pytest.mark.parametrize("second", [surge, recreate])
def test_two_services_change_gpus(first: Any, second: Any) -> None:
    world = running(on("v-0", "0", first), on("w-0", "1", second))
    world.edit(on("v-0", "1", first), on("w-0", "0", second))
    assert watched(world) == 1
    found = {one.spec.slot: one.spec.launch for one in world.instances.values()}
    assert found == {"v-0": "A on 1", "w-0": "A on 0"}
    assert world.progress().under_way == []


@pytest.mark.parametrize("make", [surge, recreate])
def test_two_replicas_change_gpus(make: Any) -> None:
    world = running(on("v-0", "0", make), on("v-1", "1", make))
    world.edit(on("v-0", "1", make), on("v-1", "0", make))
    assert watched(world) == 1
    found = {one.spec.slot: one.spec.launch for one in world.instances.values()}
    assert found == {"v-0": "A on 1", "v-1": "A on 0"}


@pytest.mark.parametrize("make", [surge, recreate])
def test_who_needs_the_gpu_of_one_that_leaves_serves_until_that_has_gone(make: Any) -> None:
    world = running(on("v-0", "0", make), on("v-1", "1", make))
    world.edit(on("v-0", "01", make))
    assert names(world.settle(), Retire) == ["v-1"]
    while "v-1" in world.instances:
        assert world.is_ready("v-0")
        assert "v-0.b" not in world.instances
        world.one_thing()
    world.run()
    assert [one.spec.launch for one in world.instances.values()] == ["A on 01"]


def test_a_surge_waits_for_the_gpu_that_another_moves_away_from() -> None:
    world = running(on("v-0", "0", surge), on("w-0", "1", surge))
    world.edit(on("v-0", "1", surge), on("w-0", "2", surge))
    assert names(world.settle(), Launch) == ["w-0.b"]
    while world.one_thing():
        assert world.is_ready("v-0")
        assert world.is_ready("w-0")
        assert most_on_a_gpu(world) == 1
    assert world.table() == {"v-0.b": "ready A on 1", "w-0.b": "ready A on 2"}


def test_what_the_file_lets_share_a_gpu_shares_it() -> None:
    world = running(on("v-0", "0"))
    world.edit(on("v-0", "0"), on("v-1", "0"), on("w-0", "0"))
    assert names(world.settle(), Launch) == ["v-1", "w-0"]


def test_a_surge_that_the_file_asks_for_may_be_on_the_same_gpu() -> None:
    world = running(on("v-0", "0", surge))
    world.edit(on("v-0", "0", surge, launch="B"))
    assert names(world.settle(), Launch) == ["v-0.b"]


def test_what_is_down_waits_for_its_new_gpu_as_well() -> None:
    world = running(on("v-0", "0"), on("w-0", "1", drain_timeout=60.0))
    world.luck["A"] = Luck.FAILS
    while the(world, "v-0").state is not State.BACKOFF:
        world.exits(the(world, "v-0"), 1)
        world.settle()
        if the(world, "v-0").spawning:
            next(world.possible())()
    world.luck.clear()
    world.edit(on("v-0", "1"))
    steps = world.settle()
    assert (names(steps, Swap), names(steps, Launch)) == ([], [])
    world.run()
    assert world.table() == {"v-0": "ready A on 1"}


# ---------------------------------------------------------------- the API server, the controller


def api(host: str = "127.0.0.1", launch: str = "A", **fields: Any) -> InstanceSpec:
    """Both of its forms are on one port, for they share a socket."""
    given = {"role": Role.API_SERVER, "port": 8000, "surge": True, "slot": "api_server", **fields}
    one = instance("api_server", launch=f"{launch} {host}", listen=(host, 8000), **given)
    return replace(one, beside=replace(one, name="api_server.b"))


def controller(port: int = 21001, launch: str = "C") -> InstanceSpec:
    one = instance("controller", launch=f"{launch} {port}", port=port, surge=True)
    return replace(one, beside=replace(one, name="controller.b"))


def test_an_api_server_hands_its_socket_on_to_the_one_beside_it() -> None:
    world = running(api())
    world.edit(api(launch="B"))
    assert names(world.settle(), Launch) == ["api_server.b"]


def test_an_api_server_on_another_host_and_the_same_port_takes_the_place_of_the_old_one() -> None:
    world = running(api())
    world.edit(api("0.0.0.0"))
    steps = world.settle()
    assert [type(step) for step in steps] == [Retire, Launch], "not before it leaves, but then"
    assert names(steps, Launch) == ["api_server.b"]
    assert the(world, "api_server").state is State.STOPPING
    world.run()
    assert world.table() == {"api_server.b": "ready A 0.0.0.0"}


def test_a_controller_that_moves_stays_until_the_api_server_asks_the_new_one() -> None:
    asks = {"depends_on": ("controller",)}
    world = running(controller(), api(**asks))
    world.edit(controller(21011), api(launch="of 21011", **asks))
    while world.one_thing():
        old, new = world.instances.get("controller"), world.instances.get("controller.b")
        if "api_server" in world.instances:
            assert old is not None
            assert old.state is State.READY
        if (server := world.instances.get("api_server.b")) and server.launched:
            assert new is not None
            assert new.state is State.READY
        assert world.is_ready("api_server")
    assert world.table() == {
        "controller.b": "ready C 21011",
        "api_server.b": "ready of 21011 127.0.0.1",
    }
    assert world.progress().under_way == []


def test_a_controller_that_is_no_longer_ours_stays_until_nobody_asks_it() -> None:
    world = running(controller(), api(depends_on=("controller",)))
    world.edit(api(launch="of another"))
    while world.one_thing():
        if "api_server" in world.instances:
            assert the(world, "controller").state is State.READY
    assert set(world.table()) == {"api_server.b"}


def test_a_controller_on_the_same_port_is_replaced_in_place() -> None:
    world = running(controller(), api(depends_on=("controller",)))
    world.edit(controller(launch="D"), api(depends_on=("controller",)))
    assert names(world.settle(), Launch) == []
    world.run()
    assert world.table()["controller"] == "ready D 21001"


# ---------------------------------------------------------------- what is told of it


def test_progress_of_some_services_says_nothing_of_the_others() -> None:
    world = running(surge(), surge("qwen-0", port=21005, drain_timeout=60.0))
    world.edit(surge(launch="B"))
    world.settle()
    assert world.progress().under_way[0] == "qwen-0 finishes its requests and stops"
    told = progress(world.wanted, world.members(), world.histories, ["vicuna"])
    assert told.under_way == ["vicuna-0 is to be replaced", "vicuna-0.b is starting"]
    told = progress(world.wanted, world.members(), world.histories, ["qwen"])
    assert told.under_way == ["qwen-0 finishes its requests and stops"]


def test_what_waits_in_vain_has_failed_and_is_not_under_way() -> None:
    world = World()
    world.luck["C"] = Luck.MISSING
    world.edit(instance(launch="C"), replace(surge(), depends_on=("controller",)))
    world.run()
    assert world.progress().under_way == ["vicuna-0 is stopped"]
    given = (world.wanted, world.members(), world.histories)
    told = progress(*given, blocked={"vicuna-0": ["controller"]})
    assert told.under_way == []
    assert told.failed[1:] == ["vicuna-0 waits for controller, which does not come by itself"]
    assert progress(*given, ["controller"], {"vicuna-0": ["controller"]}).failed == told.failed[:1]


# ---------------------------------------------------------------- who stands for a slot


def _member(spec: InstanceSpec, state: State, *, wanted: bool = True, **fields: Any) -> Member:
    return Member(spec, Status(state=state, wanted=wanted), **fields)


def test_of_two_that_are_wanted_as_they_are_the_more_useful_one_stays() -> None:
    target = surge()
    two = [_member(target.beside, State.STARTING), _member(target, State.READY)]
    steps = next_steps({"vicuna-0": target}, two, {})
    assert steps == [Retire("vicuna-0.b", "vicuna-0 is enough")]


def test_a_failure_of_another_launch_is_history() -> None:
    good, wanted = surge(), {"vicuna-0": surge(launch="C")}
    histories = {"vicuna-0": History(good, Failure("B", "vicuna-0.b", "boom"))}
    members = [_member(good, State.READY)]
    assert names(next_steps(wanted, members, histories), Launch) == ["vicuna-0.b"]
    assert progress(wanted, members, histories).failed == []


def test_an_abandoned_rollout_says_whose_log_to_read() -> None:
    world = running(surge())
    world.luck["B"] = Luck.FAILS
    world.edit(surge(launch="B"))
    world.run()
    (given_up,) = [step for step in world.log if isinstance(step, Abandon)]
    assert (given_up.slot, given_up.failure.instance) == ("vicuna-0", "vicuna-0.b")
    assert given_up.failure.launch == "B"


def test_probe_failures_of_the_old_one_do_not_stop_a_surge() -> None:
    world = running(surge())
    world.edit(surge(launch="B"))
    world.settle()
    old = the(world, "vicuna-0")
    for _ in range(5):
        world.tell(old, Probed(old.status.run, Check.LIVENESS, Outcome.FAILED, "silent"))
    world.run()
    assert world.table() == {"vicuna-0.b": "ready B"}
