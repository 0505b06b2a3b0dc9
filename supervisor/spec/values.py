"""Values as people write them: ``30s``, ``10MiB``, ``OMP_NUM_THREADS: 4``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_LONGEST = 100
"""Characters of a duration or size."""
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def no_truth_value(value: Any) -> Any:
    """YAML reads ``port: yes`` as true, and pydantic would read true as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def parse_duration(value: Any) -> Any:
    """``90``, ``"90s"``, ``"1m30s"`` -> seconds; anything else goes on to pydantic as it is."""
    if not isinstance(value, str):
        return no_truth_value(value)
    # To look for the units in a long row of digits takes the square of its length.
    parts = list(_DURATION.finditer(value.strip())) if len(value) <= _LONGEST else []
    if not parts or "".join(p.group() for p in parts).replace(" ", "") != value.replace(" ", ""):
        raise ValueError("not a duration; write seconds or a text like 500ms, 30s, 5m, 1h")
    return sum(float(p.group(1)) * _SECONDS[p.group(2)] for p in parts)


def parse_size(value: Any) -> Any:
    """``1048576``, ``"10MiB"``, ``"1GB"`` -> bytes (``Ki`` is 1024, ``K`` is 1000)."""
    if not isinstance(value, str):
        return no_truth_value(value)
    match = _SIZE.fullmatch(value.strip()) if len(value) <= _LONGEST else None
    if match is None or len(match.group(1)) > 15:
        raise ValueError("not a size; write bytes or a text like 500KiB, 10MiB, 1GiB")
    unit = (match.group(2) or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match.group(1)) * base ** _POWER[unit.removesuffix("i")])


_DURATION_TEXT = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?\s*(ms|s|m|h|d)\s*)+$")]
_SIZE_TEXT = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*([kKmMgGtT]i?)?[bB]?$")]
_DURATION_FORM = BeforeValidator(
    parse_duration, json_schema_input_type=Annotated[float, Field(ge=0)] | _DURATION_TEXT
)

Duration = Annotated[float, Field(ge=0, allow_inf_nan=False), _DURATION_FORM]
"""Seconds; a number, or a text such as ``500ms``, ``30s``, ``20m``, ``1h30m``."""

Interval = Annotated[float, Field(ge=0.01, allow_inf_nan=False), _DURATION_FORM]
"""A duration between things that happen again and again: never zero."""

Size = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(parse_size, json_schema_input_type=Annotated[int, Field(ge=0)] | _SIZE_TEXT),
]
"""Bytes; a number, or a text such as ``500KiB``, ``10MiB``."""

NotBool = BeforeValidator(no_truth_value)
Whole = Annotated[int, NotBool]
Count = Annotated[int, Field(ge=1), NotBool]
Share = Annotated[float, Field(gt=0, le=1), NotBool]
"""More than nothing, up to all (1)."""
Port = Annotated[int, Field(ge=1, le=65535), NotBool]
"""A TCP port."""


def _host(value: str) -> str:
    try:
        good = value.encode("idna") and not set(value) & set(" /@[]")
    except UnicodeError:  # a label that is empty or too long
        good = False
    if not good:
        raise ValueError("not a host; write an IP address or a name")
    return value


Host = Annotated[str, AfterValidator(_host)]
"""What an instance listens on."""


# ---------------------------------------------------------------- texts that look like numbers

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _scalars_as_text(value: Any) -> Any:
    """YAML reads ``OMP_NUM_THREADS: 4`` as a number; in an environment it is a text."""
    if isinstance(value, dict):
        return {k: _text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Scalar = str | int | float | bool
Env = Annotated[
    dict[EnvName, str],
    BeforeValidator(_scalars_as_text, json_schema_input_type=dict[EnvName, Scalar]),
    Field(repr=False),  # tokens are handed over in it
]
Words = Annotated[
    tuple[str, ...], BeforeValidator(_scalars_as_text, json_schema_input_type=list[Scalar])
]
Program = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(
        _scalars_as_text,
        json_schema_input_type=Annotated[list[Scalar], Field(min_length=1)],
    ),
]
