"""A cluster file as it may be shown: without what is secret in it. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from supervisor.spec.document import parse
from supervisor.spec.problems import Path

_MASK = "***"
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
"""Names of variables whose values are not for other eyes."""


def masked(text: str) -> str:
    """The text with API keys, and variables that are named like secrets, made unreadable.

    What comes from ``${VARIABLES}`` is not in the text in the first place.
    """
    document = parse(text, "", {})
    lines = text.split("\n")
    for path, value in _secrets(document.values, ()):
        line, column = document.position(path)
        if 0 < line <= len(lines):
            here = lines[line - 1]
            after = here[column - 1 :].replace(value, _MASK, 1)
            lines[line - 1] = here[: column - 1] + after
    return "\n".join(lines)


def masked_diff(old: str, new: str, name: str) -> list[str]:
    """The lines of a unified diff. Lines end at a line feed only; what else ends one to Python is
    shown as it is."""
    before, after = (
        text.removesuffix("\n").split("\n") if text else [] for text in (masked(old), masked(new))
    )
    found = difflib.unified_diff(before, after, name, f"{name} (new)", lineterm="")
    return [line.rstrip("\r") for line in found]


def _secrets(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Places and texts of all that is secret, those further right in a line first."""
    if isinstance(value, dict):
        for key in reversed(value):
            yield from _secrets(value[key], (*path, key))
    elif isinstance(value, list):
        for i in reversed(range(len(value))):
            yield from _secrets(value[i], (*path, i))
    elif isinstance(value, str | int | float) and value != "" and _is_secret(path):
        yield path, str(value)


def _is_secret(path: Path) -> bool:
    in_env = len(path) > 1 and path[-2] == "env"
    return "api_keys" in path or (in_env and bool(_SECRET.search(str(path[-1]))))
