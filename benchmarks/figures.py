"""What a measurement yields: rows of figures, shown as a Markdown table or as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """Values of one quantity. ``goal`` is an upper bound, held against the value of ``judged``."""

    what: str
    unit: str
    values: Sequence[float]
    goal: float | None = None
    judged: str = "max"

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.summary()[self.judged] <= self.goal else "**missed**"

    def summary(self) -> dict[str, float]:
        return {"median": median(self.values), "min": min(self.values), "max": max(self.values)}

    def as_json(self) -> dict[str, Any]:
        numbers = {name: round(number, 5) for name, number in self.summary().items()}
        values = [round(value, 5) for value in self.values]
        goal = {"goal": self.goal, "judged": self.judged, "verdict": self.verdict.strip("*")}
        return {"what": self.what, "unit": self.unit, **numbers, **goal, "values": values}


@dataclass
class Measurement:
    """The rows of one measurement, and how busy the machine was (1-minute load) around it."""

    name: str
    load_before: float
    load_after: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        load = {"load_before": self.load_before, "load_after": self.load_after}
        return {"name": self.name, **load, "rows": [row.as_json() for row in self.rows]}


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table of all rows."""
    lines = ["| | n | median | min | max | goal | |", "|---|--:|--:|--:|--:|--:|---|"]
    for one in measurements:
        load = f"load average {one.load_before} before, {one.load_after} after"
        lines.append(f"| **{one.name}** ({load}) | | | | | | |")
        lines += [_line(row) for row in one.rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    numbers = row.summary()
    cells = [_number(numbers[name], row.unit) for name in ("median", "min", "max")]
    goal = "" if row.goal is None else f"{row.judged} ≤ {_number(row.goal, row.unit)}"
    return f"| {' | '.join([row.what, str(len(row.values)), *cells, goal, row.verdict])} |"


def _number(value: float, unit: str) -> str:
    digits = 2 if unit in ("s", "×", "%") else 1
    whole = unit == "" or (unit == "ms" and value >= 100)
    return f"{value:.{0 if whole else digits}f} {unit}".strip()
