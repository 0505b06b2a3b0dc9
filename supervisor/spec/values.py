"""Values with a unit, as people write them: ``30s``, ``5m``, ``10MiB``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_duration(value: Any) -> Any:
    """``90``, ``"90s"``, ``"1m30s"`` -> seconds; anything else goes on to pydantic as it is."""
    if not isinstance(value, str):
        return value
    parts = list(_DURATION.finditer(value.strip()))
    if not parts or "".join(p.group() for p in parts).replace(" ", "") != value.replace(" ", ""):
        raise ValueError("not a duration; write seconds or a text like 500ms, 30s, 5m, 1h")
    return sum(float(p.group(1)) * _SECONDS[p.group(2)] for p in parts)


def parse_size(value: Any) -> Any:
    """``1048576``, ``"10MiB"``, ``"1GB"`` -> bytes (``Ki`` is 1024, ``K`` is 1000)."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a size; write bytes or a text like 500KiB, 10MiB, 1GiB")
    unit = (match.group(2) or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match.group(1)) * base ** _POWER[unit.removesuffix("i")])


def format_duration(seconds: float) -> str:
    """Seconds as people read them: ``0.2s``, ``45s``, ``3m 20s``, ``2h 5m``, ``3d 4h``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    parts = []
    for size, unit in units:
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(ge=0, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^(\d+(\.\d+)?\s*(ms|s|m|h|d)\s*)+$"},
            ]
        }
    ),
]
"""Seconds; a number, or a text such as ``500ms``, ``30s``, ``20m``, ``1h30m``."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([kKmMgGtT]i?)?[bB]?$"},
            ]
        }
    ),
]
"""Bytes; a number, or a text such as ``500KiB``, ``10MiB``."""


def _no_truth_value(value: Any) -> Any:
    """YAML reads ``port: yes`` as true, and pydantic would read true as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Port = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1, le=65535)]
"""A TCP port."""
