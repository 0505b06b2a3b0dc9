"""The difference between what runs and what is wanted."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import instance, worker

from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.plan import Action, Change, candidates, form_of, plan


def by_slot(*specs: InstanceSpec) -> dict[str, InstanceSpec]:
    return {spec.slot: spec for spec in specs}


def with_beside(spec: InstanceSpec) -> InstanceSpec:
    return replace(spec, surge=True, beside=replace(spec, name=f"{spec.slot}.b", port=22000))


def the_change(running: InstanceSpec, target: InstanceSpec) -> Change:
    (change,) = plan(by_slot(running), by_slot(target))
    return change


def test_all_actions_in_the_order_of_the_file_and_what_leaves_last() -> None:
    running = by_slot(
        worker("old-0"),
        instance("controller"),
        worker("vicuna-0"),
        worker("qwen-0"),
        instance("api_server"),
    )
    wanted = by_slot(
        instance("controller"),
        worker("new-0"),
        worker("vicuna-0", launch="with 8 bits"),
        worker("qwen-0", models=("qwen", "gpt-4"), drain_timeout=5.0),
        instance("api_server", launch="with a key"),
    )
    assert plan(running, wanted) == [
        Change("controller", Action.KEEP, "nothing changed"),
        Change("new-0", Action.START, "it is in the file and does not run"),
        Change("vicuna-0", Action.ROLL_OUT, "how it is started changed"),
        Change("qwen-0", Action.UPDATE, "models, drain_timeout changed"),
        Change("api_server", Action.RESTART, "how it is started changed"),
        Change("old-0", Action.STOP, "it is no longer in the file"),
    ]


def test_nothing_runs_and_nothing_is_wanted() -> None:
    assert plan({}, {}) == []


def test_a_moved_port_takes_another_process_and_is_told_as_that() -> None:
    change = the_change(worker(port=21002), worker(port=21003))
    assert change == Change("vicuna-0", Action.ROLL_OUT, "its port changed from 21002")


@pytest.mark.parametrize("role", list(Role))
def test_only_workers_and_the_api_server_are_rolled_out(role: Role) -> None:
    change = the_change(worker(role=role), worker(role=role, launch="another"))
    rolls = role in (Role.WORKER, Role.API_SERVER)
    assert change.action is (Action.ROLL_OUT if rolls else Action.RESTART)


def test_a_controller_that_moves_starts_beside_the_old_one() -> None:
    old, new = (instance("controller", port=port, surge=True) for port in (1, 2))
    assert the_change(old, new).action is Action.ROLL_OUT


# ---------------------------------------------------------------- the two forms of a target


def test_a_target_may_run_under_either_of_its_names() -> None:
    target = with_beside(worker())
    assert candidates(worker()) == [worker()]
    assert candidates(target) == [target, target.beside]
    for form in candidates(target):
        assert form_of(form, target) == form
        assert the_change(form, target).action is Action.KEEP


def test_what_runs_under_the_other_name_is_rolled_out_and_updated_like_any() -> None:
    running = with_beside(worker()).beside
    assert running is not None
    broken = with_beside(worker(launch="another"))
    assert the_change(running, broken).reason == "how it is started changed"
    renamed = with_beside(worker(models=("renamed",)))
    assert the_change(running, renamed) == Change("vicuna-0", Action.UPDATE, "models changed")
    form = form_of(running, renamed)
    assert form is not None
    assert (form.name, form.models) == ("vicuna-0.b", ("renamed",))


def test_a_form_is_told_by_name_launch_and_port_together() -> None:
    target = with_beside(worker())
    assert target.beside is not None
    for form in candidates(target):
        assert form_of(replace(form, launch="another"), target) is None
        assert form_of(replace(form, port=1), target) is None
        assert form_of(replace(form, name="another"), target) is None
    crossed = replace(target, port=target.beside.port)
    assert form_of(crossed, target) is None


# ---------------------------------------------------------------- no field goes unnoticed

PROCESS = {"launch", "port", "name"}
"""Another one is another process."""
LATER = {"argv", "env", "secret_input", "beside", "template", "weights"}
"""``launch`` stands for what matters of these. The rest counts when it is started again: addresses
and names that the supervisor tells in other ways, the hosts that need no proxy."""


@pytest.mark.parametrize("field", [field.name for field in fields(InstanceSpec)])
def test_no_field_of_an_instance_goes_unnoticed(field: str) -> None:
    """process-compose's hand-written comparison misses 15 of its fields."""
    old = worker()
    value: Any = getattr(old, field)
    other = not value if isinstance(value, bool) else f"not {value}"
    new = replace(old, **{field: other})
    (change,) = plan({"vicuna-0": old}, {"vicuna-0": new})
    if field in PROCESS:
        assert change.action is Action.ROLL_OUT
    elif field in LATER:
        assert change.action is Action.KEEP
        assert form_of(old, new) == new, "it is supervised by the new one all the same"
    else:
        assert (change.action, change.reason) == (Action.UPDATE, f"{field} changed")


def test_a_secret_is_not_told() -> None:
    old, new = (instance("api_server", secret_input=key, launch=str(key)) for key in (b"a", b"b"))
    assert the_change(old, new) == Change("api_server", Action.RESTART, "how it is started changed")
    assert "sk-" not in repr(instance(secret_input=b"sk-1"))


# ---------------------------------------------------------------- carrying it out

LAUNCHES = ["A", "B"]
PORTS = [21002, 21003]


@st.composite
def some_targets(draw: st.DrawFn) -> dict[str, InstanceSpec]:
    found = {}
    for slot in draw(st.sets(st.sampled_from("abcde"))):
        spec = worker(
            slot,
            launch=draw(st.sampled_from(LAUNCHES)),
            port=draw(st.sampled_from(PORTS)),
            models=(draw(st.sampled_from(["m", "n"])),),
        )
        found[slot] = with_beside(spec) if draw(st.booleans()) else spec
    return found


@st.composite
def what_runs(draw: st.DrawFn) -> dict[str, InstanceSpec]:
    targets = draw(some_targets())
    return {slot: draw(st.sampled_from(candidates(one))) for slot, one in targets.items()}


@given(what_runs(), some_targets())
def test_carrying_out_a_plan_leads_to_what_is_wanted(
    running: dict[str, InstanceSpec], wanted: dict[str, InstanceSpec]
) -> None:
    changes = plan(running, wanted)
    assert sorted(change.slot for change in changes) == sorted(running | wanted)
    assert all(change.reason for change in changes)
    after = dict(running)
    for change in changes:
        slot = change.slot
        match change.action:
            case Action.KEEP | Action.UPDATE:
                form = form_of(running[slot], wanted[slot])
                assert form is not None
                assert (form.launch, form.port) == (running[slot].launch, running[slot].port)
                assert (form.models == running[slot].models) is ("models" not in change.reason), (
                    "what changed is told"
                )
                after[slot] = form
            case Action.START:
                assert slot not in after
                after[slot] = wanted[slot]
            case Action.ROLL_OUT | Action.RESTART:
                assert form_of(running[slot], wanted[slot]) is None
                after[slot] = wanted[slot]
            case Action.STOP:
                del after[slot]
    assert after.keys() == wanted.keys()
    assert all(after[slot] in candidates(wanted[slot]) for slot in wanted)
    assert {change.action for change in plan(after, wanted)} <= {Action.KEEP}
