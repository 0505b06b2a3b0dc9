"""``status``: a table that a person likes to look at; for a program, a line per instance."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE
from supervisor.core.durations import format_duration

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "unready": "red",
    "backoff": "red",
    "degraded": "red",
    "updating": "yellow",
    "failed": "bold red",
    "stopped": "dim",
}
_TITLES = ("INSTANCE", "STATE", "FOR", "PID", "PORT", "GPUS", "RESTARTS", "WHY")
_NUMBERS = ("PID", "PORT", "RESTARTS")
_DISPENSABLE = ("GPUS", "PORT", "RESTARTS", "PID", "FOR")
"""What a narrow terminal does without, first to last."""
_LEAST_FOR_WHY = 24


def run_status(arguments: argparse.Namespace) -> int:
    answer = Client(arguments).get("/v1/status")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        _print(answer)
    return DONE


def _print(answer: dict[str, Any]) -> None:
    cluster = answer["cluster"]
    about = f", up for {_age(cluster['since'])}, {cluster['file']}"
    rows = [_row(one) for one in answer["instances"]]
    if sys.stdout.isatty():
        _print_table(cluster["state"], about, rows)
        _print_notes(cluster)
        return
    print(f"cluster {cluster['state']}{about}")
    widths = [_width(i, rows) for i in range(len(_TITLES))]
    for row in (_TITLES, *rows):
        line = "  ".join(
            text.rjust(width) if title in _NUMBERS else text.ljust(width)
            for title, text, width in zip(_TITLES, row, widths, strict=True)
        )
        print(line.rstrip())
    _print_notes(cluster)


def _print_notes(cluster: dict[str, Any]) -> None:
    """What somebody should do something about."""
    for text in cluster["failed"]:
        print(f"! {' '.join(text.split())}")
    for one in cluster["templates"]:
        if one["state"] == "failed":
            print(f"! {one['name']} has failed, processes start cold: {one['reason']}")
    if cluster["problems"]:
        print("! the file is not applied, the cluster goes on with the last good one:")
        print("\n".join(f"  {problem}" for problem in cluster["problems"]))


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    """In the order of ``_TITLES``."""
    return (
        one["name"],
        one["state"],
        _age(one["since"]),
        str(one["pid"] or "-"),
        one["address"].rpartition(":")[2] if one["address"] else "-",
        ",".join(one["gpus"]) or "-",
        str(one["restarts"]),
        " ".join(one["reason"].split()),
    )


def _print_table(state: str, about: str, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    headline = Text.assemble("cluster ", (state, _COLOURS.get(state, "")), about)
    console.print(headline, overflow="ellipsis", no_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown = _that_fit(console.width, rows)
    for i in shown:
        title = _TITLES[i]
        if title == "WHY":
            table.add_column(title, overflow="fold", ratio=1)
        else:
            justify: Literal["left", "right"] = "right" if title in _NUMBERS else "left"
            table.add_column(title, justify=justify, no_wrap=True, min_width=_width(i, rows))
    for row in rows:
        cells = (Text(row[i], _COLOURS.get(row[i], "") if i == 1 else "") for i in shown)
        table.add_row(*cells)
    console.print(table)


def _that_fit(width: int, rows: Sequence[Sequence[str]]) -> list[int]:
    """The columns for which there is room, beside some for the reason."""
    shown = list(range(len(_TITLES)))
    for title in _DISPENSABLE:
        if sum(_width(i, rows) + 2 for i in shown[:-1]) + _LEAST_FOR_WHY <= width:
            break
        shown.remove(_TITLES.index(title))
    return shown


def _width(column: int, rows: Sequence[Sequence[str]]) -> int:
    return max(len(row[column]) for row in (_TITLES, *rows))


def _age(moment: str) -> str:
    return format_duration((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
