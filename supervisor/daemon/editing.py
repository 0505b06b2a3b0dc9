"""Edits of the cluster file that come over the control API: checked, written, applied."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from supervisor.daemon.planning import changes_of
from supervisor.daemon.reload import Reloader
from supervisor.daemon.views import EditView
from supervisor.runtime.safewrite import replace
from supervisor.spec.masking import masked_diff


class Edit(BaseModel):
    """One edit, as the command line's verbs make them."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    verb: Literal["add", "remove", "set", "unset"]
    """What to do."""
    name: str
    """A service; `defaults` for that section, `.` for the top of the file."""
    fields: dict[str, Any] = {}
    """For `add` and `set`: values by dotted key, as `gptq.wbits`."""
    keys: list[str] = []
    """For `unset`: dotted keys."""


class Draft(BaseModel):
    """A file as it might be."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    text: str
    """The YAML."""


class Edits(BaseModel):
    """Edits that are made together or not at all."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    edits: list[Edit]
    """In this order."""
    dry_run: bool = False
    """Only say what would change."""


async def carry_out(wish: Edits, reloader: Reloader) -> EditView:
    """Raises EditError, SpecError (nothing was written), and WriteError."""
    path = reloader.file.path
    raw = path.read_bytes()
    old = raw.decode()
    new = await asyncio.to_thread(_edited, old, wish.edits)
    plan = await reloader.plan(new.removeprefix("\ufeff"))
    # In a thread: comparing two large texts may take seconds.
    lines = await asyncio.to_thread(masked_diff, old, new, str(path))
    diff = "".join(f"{line}\n" for line in lines)
    number = reloader.journal.number

    async def write_and_apply() -> None:
        await asyncio.to_thread(replace, path, raw, new.encode())
        await reloader.reload()

    if new != old and not wish.dry_run:
        # To its end, though the one who asked may go away meanwhile.
        await asyncio.shield(asyncio.create_task(write_and_apply()))
    changes = changes_of(plan)
    return EditView(diff=diff, changed=bool(changes), number=number, changes=changes)


def _edited(text: str, edits: list[Edit]) -> str:
    # The library behind it is large, and not every supervisor is ever asked.
    from supervisor.spec.editing import edit

    for one in edits:
        match one.verb:
            case "add":
                text = edit.add_worker(text, one.name, one.fields)
            case "remove":
                text = edit.remove_service(text, one.name)
            case "set":
                text = edit.set_fields(text, one.name, one.fields)
            case "unset":
                text = edit.unset_fields(text, one.name, one.keys)
    return text
