"""The difference between what runs and what is wanted, each change with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from supervisor.core.instance import InstanceSpec


class Action(StrEnum):
    KEEP = "keep"
    START = "start"
    REPLACE = "replace"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Change:
    instance: str
    action: Action
    reason: str


def plan(running: Mapping[str, InstanceSpec], wanted: Mapping[str, InstanceSpec]) -> list[Change]:
    """One change for every instance of either side, in the order of the file."""
    changes = [_change(spec, running.get(name)) for name, spec in wanted.items()]
    for name in running:
        if name not in wanted:
            changes.append(Change(name, Action.STOP, "it is no longer in the file"))
    return changes


def _change(wanted: InstanceSpec, running: InstanceSpec | None) -> Change:
    if running is None:
        return Change(wanted.name, Action.START, "it is in the file and does not run")
    if running == wanted:
        return Change(wanted.name, Action.KEEP, "nothing changed")
    changed = [
        field.name.replace("secret_input", "api_keys")
        for field in fields(wanted)
        if getattr(wanted, field.name) != getattr(running, field.name)
    ]
    return Change(wanted.name, Action.REPLACE, f"{', '.join(changed)} changed")
