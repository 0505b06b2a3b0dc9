"""A run as Markdown, and that put into its place in a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from goals import Verdict
from results import Quantity, Results

_BEGIN = "<!-- begin: written by `make bench`, not by hand -->"
_END = "<!-- end -->"


def markdown(
    run: Mapping[str, Any], results: Results, verdicts: Sequence[Verdict], missing: Sequence[str]
) -> str:
    """``run`` is what is told of it besides figures, ``missing`` what it has not measured."""
    parts = [_about(run), _goals(verdicts)]
    for sized, group in groupby(results.quantities(), key=lambda one: one.sized):
        quantities = list(group)
        compared = [one for one in quantities if _is_compared(one, results)]
        alone = [one for one in quantities if one not in compared]
        parts.append(f"### By number of {sized}")
        parts += [_table(quantity, results) for quantity in compared]
        if alone:
            parts.append(_figures(alone, results))
    if missing:
        parts.append("\n".join(["### Not measured\n", *(f"- {line}" for line in missing)]))
    return "\n\n".join(parts)


def has_place(file: Path) -> bool:
    """Whether it has the two marks, in their order."""
    return _END in file.read_text().partition(_BEGIN)[2]


def write(file: Path, text: str) -> None:
    """Between the two marks."""
    before, _, rest = file.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    file.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


# ---------------------------------------------------------------- parts


def _about(run: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in run["contestants"].items())
    before, after = run["load_before"], run["load_after"]
    return (
        f"Measured on: {machine}. Against: {versions}. {run['date']}, {run['minutes']} minutes, "
        f"{run['rounds']} rounds; load average {before} before, {after} after."
    )


def _goals(verdicts: Sequence[Verdict]) -> str:
    lines = ["| | n | median (min–max) | goal | | best peer |", "|---|--:|--:|--:|---|---|"]
    for one in verdicts:
        goal, sign = one.goal, "≥" if one.goal.at_least else "≤"
        bound = f"{sign} {_number(goal.bound)} {goal.unit}"
        met = {True: "met", False: "**missed**", None: "not measured"}[one.met]
        peer = ""
        if one.best_peer:
            name, best = one.best_peer
            peer = f"{name} {_number(best)} {goal.unit}"
        found = f"{_spread(one.values)} {goal.unit}" if one.values else "–"
        cells = [goal.what, str(len(one.values)), found]
        lines.append(f"| {' | '.join([*cells, bound, met, peer])} |")
    return "\n".join(["### Goals\n", *lines])


def _table(quantity: Quantity, results: Results) -> str:
    """Contestants by size."""
    sizes = results.sizes(quantity)
    unit = f", {quantity.unit}" if quantity.unit else ""
    lines = [
        f"**{quantity.title}**{unit}: median (min–max)\n",
        f"| | {' | '.join(f'{size:,}' for size in sizes)} |",
        f"|---|{'--:|' * len(sizes)}",
    ]
    for name in results.contestants(quantity):
        cells = [_spread(results.of(quantity, name, size)) for size in sizes]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _is_compared(quantity: Quantity, results: Results) -> bool:
    return len(results.contestants(quantity)) > 1 or len(results.sizes(quantity)) > 1


def _figures(quantities: Sequence[Quantity], results: Results) -> str:
    """Of one contestant at one size."""
    lines = ["| | | | median (min–max) |", "|---|---|--:|--:|"]
    for quantity in quantities:
        (name,), (size,) = results.contestants(quantity), results.sizes(quantity)
        values = f"{_spread(results.of(quantity, name, size))} {quantity.unit}".strip()
        lines.append(f"| {quantity.title} | {name} | {size} | {values} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle = _number(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    """With two digits at least, and no more than are worth reading."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
