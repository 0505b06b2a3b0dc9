"""What a run yields: a table for people, the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
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
            "converged_s": [round(one, 3) for one in self.seconds],
            "kept": self.kept,
            "violations": self.violations,
        }

    def cells(self) -> list[str]:
        times = [median(self.seconds), max(self.seconds)] if self.seconds else []
        shown = [f"{one:.2f} s" for one in times] or ["", ""]
        return [self.title, str(self.count), *shown, str(self.kept), str(self.violations)]


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
        lines.append(f"| {' | '.join(report.rows[title].cells())} |")
    return "\n".join(lines)
