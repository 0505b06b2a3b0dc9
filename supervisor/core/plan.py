"""The difference between what runs and what is wanted, each change with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from supervisor.core.instance import InstanceSpec, Role


class Action(StrEnum):
    KEEP = "keep"
    UPDATE = "update"
    """It goes on, and is supervised or registered in another way."""
    START = "start"
    RESTART = "restart"
    ROLL_OUT = "roll out"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one slot."""

    slot: str
    action: Action
    reason: str


def plan(running: Mapping[str, InstanceSpec], wanted: Mapping[str, InstanceSpec]) -> list[Change]:
    """One change for every slot of either side, in the order of the file.

    ``running`` has the instance that serves in each slot, under whichever name.
    """
    changes = [_change(target, running.get(slot)) for slot, target in wanted.items()]
    for slot in running:
        if slot not in wanted:
            changes.append(Change(slot, Action.STOP, "it is no longer in the file"))
    return changes


def candidates(target: InstanceSpec) -> list[InstanceSpec]:
    """The forms in which a target may run: under the slot's own name, and beside that."""
    return [target] if target.beside is None else [target, target.beside]


def form_of(running: InstanceSpec, target: InstanceSpec) -> InstanceSpec | None:
    """The form of ``target`` that this process is already; None if it takes another process."""
    for form in candidates(target):
        same_process = form.launch == running.launch and form.port == running.port
        if form.name == running.name and same_process:
            return form
    return None


def _change(target: InstanceSpec, running: InstanceSpec | None) -> Change:
    if running is None:
        return Change(target.slot, Action.START, "it is in the file and does not run")
    form = form_of(running, target)
    if form is None:
        beside = target.surge and target.port != running.port
        rolls = beside or target.role in (Role.WORKER, Role.API_SERVER)
        action = Action.ROLL_OUT if rolls else Action.RESTART
        moved = all(one.port != running.port for one in candidates(target))
        what = f"its port changed from {running.port}" if moved else "how it is started changed"
        return Change(target.slot, action, what)
    changed = changed_settings(running, form)
    if not changed:
        return Change(target.slot, Action.KEEP, "nothing changed")
    return Change(target.slot, Action.UPDATE, f"{', '.join(changed)} changed")


def changed_settings(running: InstanceSpec, form: InstanceSpec) -> list[str]:
    """What is another way of supervising it. Its command line counts when it is started again."""
    later = {"argv", "env", "beside", "template", "secret_input", "weights"}
    names = (one.name for one in fields(form) if one.name not in later)
    return [name for name in names if getattr(running, name) != getattr(form, name)]
