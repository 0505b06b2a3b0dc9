"""What differs between two versions of a cluster file, field by field. Pure.

Both are compared after defaults, anchors and variables have been expanded, so that a value that
only moved is no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from supervisor.spec.impact import Impact
from supervisor.spec.model import Cluster, Model
from supervisor.spec.problems import Path, dotted

_UNTOLD = frozenset({"env", "args", "command", "api_keys"})
"""Fields that may hold secrets, or are too long for a sentence."""
_LONGEST = 60
_USER_INFO = re.compile(r"//[^/@\s]*@")
"""Name and password in a URL."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field with another value. ``old`` and ``new`` are texts for people, empty if untold."""

    path: Path
    impact: Impact
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        name = dotted(self.path)
        return f"{name}: {self.old} -> {self.new}" if self.old or self.new else f"{name} changed"


def differences(old: Cluster, new: Cluster) -> list[Difference]:
    """Every field that differs, in the order of the models."""
    # What `defaults` say has been expanded into the workers, which are compared themselves.
    return list(_between(old.model_copy(update={"defaults": new.defaults}), new, ()))


def impact_of(model: type[Model], name: str) -> Impact:
    """The class that a field declares. Raises LookupError if it declares none."""
    for entry in model.model_fields[name].metadata:
        if isinstance(entry, Impact):
            return entry
    raise LookupError(f"{model.__name__}.{name} does not say what a change of it means")


def _between(old: Model, new: Model, path: Path) -> Iterator[Difference]:
    """A worker may have become one of another kind: what one of the two lacks has its default."""
    for name in dict.fromkeys((*type(new).model_fields, *type(old).model_fields)):
        owner = type(new) if name in type(new).model_fields else type(old)
        before, after = (_value(one, name, owner) for one in (old, new))
        if before != after:
            yield from _of_field(before, after, (*path, name), impact_of(owner, name))


def _value(model: Model, name: str, owner: type[Model]) -> Any:
    field = owner.model_fields[name]
    return getattr(model, name, None if field.is_required() else field.default)


def _of_field(before: Any, after: Any, path: Path, impact: Impact) -> Iterator[Difference]:
    if isinstance(before, Model) and isinstance(after, Model):
        yield from _between(before, after, path)
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if before.get(key) != after.get(key):
                yield from _of_field(before.get(key), after.get(key), (*path, key), impact)
    elif _has_texts(before, after) and not _UNTOLD & set(path):
        yield Difference(path, impact, _text(before), _text(after))
    else:
        yield Difference(path, impact)


def _has_texts(before: Any, after: Any) -> bool:
    parts = [part for value in (before, after) for part in _parts(value)]
    return not any(isinstance(part, Model | SecretStr | dict) for part in parts)


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = f"[{', '.join(map(str, value))}]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = _USER_INFO.sub("//***@", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
