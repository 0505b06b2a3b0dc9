"""The difference between what runs and what is wanted."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import instance, worker

from supervisor.core.instance import InstanceSpec
from supervisor.core.plan import Action, Change, plan


def by_name(*specs: InstanceSpec) -> dict[str, InstanceSpec]:
    return {spec.name: spec for spec in specs}


def test_all_four_actions_in_the_order_of_the_file_and_what_leaves_last() -> None:
    running = by_name(worker("old-0"), instance("controller"), worker("vicuna-0"))
    changed = worker("vicuna-0", argv=("run", "--load-8bit"), gpus=("1",))
    wanted = by_name(instance("controller"), worker("new-0"), changed)
    assert plan(running, wanted) == [
        Change("controller", Action.KEEP, "nothing changed"),
        Change("new-0", Action.START, "it is in the file and does not run"),
        Change("vicuna-0", Action.REPLACE, "argv, gpus changed"),
        Change("old-0", Action.STOP, "it is no longer in the file"),
    ]


def test_nothing_runs_and_nothing_is_wanted() -> None:
    assert plan({}, {}) == []


def test_a_changed_secret_is_noticed_and_not_told() -> None:
    old, new = (instance("api_server", secret_input=key) for key in (b"sk-old", b"sk-new"))
    (change,) = plan(by_name(old), by_name(new))
    assert change == Change("api_server", Action.REPLACE, "api_keys changed")


@pytest.mark.parametrize("field", [field.name for field in fields(InstanceSpec)][1:])
def test_no_field_of_an_instance_goes_unnoticed(field: str) -> None:
    """process-compose's hand-written comparison misses 15 of its fields."""
    old = worker()
    value = getattr(old, field)
    other = not value if isinstance(value, bool) else f"not {value}"
    (change,) = plan(by_name(old), by_name(replace(old, **{field: other})))
    assert change.action is Action.REPLACE
    assert change.reason == f"{field.replace('secret_input', 'api_keys')} changed"


some_instances = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "e"]), st.sampled_from(["/one", "/two"])
).map(lambda found: {name: instance(name, cwd=cwd) for name, cwd in found.items()})


@given(some_instances, some_instances)
def test_carrying_out_a_plan_leads_to_what_is_wanted(
    running: dict[str, InstanceSpec], wanted: dict[str, InstanceSpec]
) -> None:
    changes = plan(running, wanted)
    assert sorted(change.instance for change in changes) == sorted(running | wanted)
    assert all(change.reason for change in changes)
    after = dict(running)
    for change in changes:
        match change.action:
            case Action.KEEP:
                assert after[change.instance] == wanted[change.instance]
            case Action.START:
                assert change.instance not in after
                after[change.instance] = wanted[change.instance]
            case Action.REPLACE:
                assert after[change.instance] != wanted[change.instance]
                after[change.instance] = wanted[change.instance]
            case Action.STOP:
                del after[change.instance]
    assert after == wanted
    assert {change.action for change in plan(after, wanted)} <= {Action.KEEP}
