"""``status``: a table that a person likes to look at."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from supervisor.cli.client import Client
from supervisor.core.durations import format_duration

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "unready": "red",
    "backoff": "red",
    "degraded": "red",
    "failed": "bold red",
    "stopped": "dim",
}


def run_status(arguments: argparse.Namespace) -> int:
    answer = Client(arguments).get("/v1/status")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        _print(answer)
    return 0


def _print(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    cluster = answer["cluster"]
    headline = Text.assemble(
        "cluster ",
        (cluster["state"], _COLOURS.get(cluster["state"], "")),
        f", up for {_age(cluster['since'])}, {cluster['file']}",
    )
    console.print(headline, overflow="ellipsis", no_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("INSTANCE", "STATE", "FOR"):
        table.add_column(title, no_wrap=True)
    table.add_column("PID", justify="right", no_wrap=True)
    table.add_column("PORT", justify="right", no_wrap=True)
    table.add_column("GPUS", no_wrap=True)
    table.add_column("RESTARTS", justify="right", no_wrap=True)
    table.add_column("WHY", overflow="fold", ratio=1)
    for one in answer["instances"]:
        table.add_row(
            one["name"],
            Text(one["state"], _COLOURS.get(one["state"], "")),
            _age(one["since"]),
            str(one["pid"] or "-"),
            one["address"].rpartition(":")[2] if one["address"] else "-",
            ",".join(one["gpus"]) or "-",
            str(one["restarts"]),
            Text(one["reason"]),
        )
    console.print(table)


def _age(moment: str) -> str:
    return format_duration((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
