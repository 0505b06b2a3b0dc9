"""What the verbs do to a cluster file: pure functions from its text to its new text.

A service is named as everywhere else: a worker, an entry of `services`, `controller`,
`api_server`, `web_server`. Besides, `defaults` means that section, and `.` the top of the file. An
option is named by its keys with dots, as ``gptq.wbits`` or ``env.FOO``.

Values are plain ones, or nodes: ``values.from_command_line`` makes those.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from supervisor.spec.editing.change import Keys, drop, put
from supervisor.spec.editing.tree import EditError, meaning_of
from supervisor.spec.editing.values import from_python
from supervisor.spec.model import SINGLETONS

_BOM = "\ufeff"
_SECTIONS = ("workers", "services")
TOP = "."


def add_worker(text: str, name: str, fields: Mapping[str, Any]) -> str:
    """A new entry of `workers`, at its end; the keys of ``fields`` may have dots."""

    def edit(text: str) -> str:
        if name in services(text):
            raise EditError(
                f"{name!r} is in the file already; change it with `set`, or `remove` it"
            )
        options: dict[str, Any] = {}
        for key, value in fields.items():
            _nest(options, _keys(key), value)
        return put(text, ("workers", name), from_python(options))

    return _around_mark(text, edit)


def remove_service(text: str, name: str) -> str:
    """With the comments that are its own: those indented below it, and those right above it."""
    return _around_mark(text, lambda text: drop(text, _place(text, name, entry=True), keep=1))


def set_fields(text: str, name: str, fields: Mapping[str, Any]) -> str:
    """Options of a service. What it shares with others through an anchor becomes its own."""

    def edit(text: str) -> str:
        for key, value in fields.items():
            text = put(text, (*_place(text, name), *_keys(key)), from_python(value))
        return text

    return _around_mark(text, edit)


def unset_fields(text: str, name: str, keys: Iterable[str]) -> str:
    """Options taken out, and mappings that hold nothing then. A service itself stays."""

    def edit(text: str) -> str:
        for key in keys:
            place = _place(text, name)
            keep = 0 if name in (TOP, "defaults") else len(place)
            text = drop(text, (*place, *_keys(key)), keep)
        return text

    return _around_mark(text, edit)


def services(text: str) -> dict[str, Keys]:
    """The services that stand in the file, and where."""
    meaning = meaning_of(text.removeprefix(_BOM))
    if not isinstance(meaning, dict):
        return {}
    found: dict[str, Keys] = {name: (name,) for name in SINGLETONS if name in meaning}
    for section in _SECTIONS:
        entries = meaning.get(section)
        if isinstance(entries, dict):
            found |= {name: (section, name) for name in entries}
    return found


def _place(text: str, name: str, *, entry: bool = False) -> Keys:
    """``entry``: it must be there, and be one that can be removed."""
    known = services(text)
    if name in known:
        return known[name]
    if not entry and name in (*SINGLETONS, "defaults"):
        return (name,)
    if not entry and name == TOP:
        return ()
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise EditError(
        f"there is no service {name!r} in the file; {meant}there are: {', '.join(known) or 'none'}"
    )


def _keys(dotted: str) -> Keys:
    keys = tuple(dotted.split("."))
    if not all(keys):
        raise EditError(f"{dotted!r} names no option; write it as `port` or `gptq.wbits`")
    return keys


def _nest(options: dict[str, Any], keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        options = options.setdefault(key, {})
        if not isinstance(options, dict):
            raise EditError(f"{'.'.join(keys)} stands inside a value that is given too; leave one")
    options[keys[-1]] = value


def _around_mark(text: str, edit: Callable[[str], str]) -> str:
    """A byte order mark at the start of the text is no part of its YAML."""
    mark = text[: len(_BOM)] if text.startswith(_BOM) else ""
    return mark + edit(text.removeprefix(_BOM))
