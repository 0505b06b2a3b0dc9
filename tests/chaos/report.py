"""What a run yields: a table for people, the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Row:
    """All blows of one kind."""

    title: str
    count: int = 0
    seconds: list[float] = field(default_factory=list)
    """Until all was well again, once for each check."""
    kept: int = 0
    """Times that an instance was to keep its process, and did."""
    violations: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "blow": self.title,
            "count": self.count,
            "converged_median_s": round(median(self.seconds), 3) if self.seconds else None,
            "converged_max_s": round(max(self.seconds), 3) if self.seconds else None,
            "kept": self.kept,
            "violations": self.violations,
        }


@dataclass
class Report:
    rows: dict[str, Row] = field(default_factory=dict)
    blows: int = 0
    seconds: float = 0.0

    def row(self, title: str) -> Row:
        return self.rows.setdefault(title, Row(title))


def table(report: Report, order: Sequence[str]) -> str:
    """Markdown; the blows in that order, and what is in none at the end."""
    lines = [
        "| blow | times | all well again after, median | max | processes kept | violations |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    known = [title for title in order if title in report.rows]
    for title in [*known, *(title for title in report.rows if title not in known)]:
        lines.append(f"| {' | '.join(_cells(report.rows[title].as_json()))} |")
    return "\n".join(lines)


def _cells(row: Mapping[str, object]) -> list[str]:
    return [f"{value:.2f} s" if isinstance(value, float) else str(value) for value in row.values()]
