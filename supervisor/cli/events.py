"""``events``: what has happened, one line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE


def run_events(arguments: argparse.Namespace) -> int:
    for event in _events(Client(arguments), follow=arguments.follow):
        text = json.dumps(event, ensure_ascii=False) if arguments.json else as_line(event)
        print(text, flush=arguments.follow)
    return DONE


def _events(client: Client, *, follow: bool) -> Iterator[dict[str, Any]]:
    if not follow:
        yield from client.get("/v1/events")["events"]
        return
    for line in client.lines("/v1/events", follow=1):
        yield json.loads(line)


def as_line(event: dict[str, Any]) -> str:
    """As ``events`` prints it; others do, too."""
    moment = datetime.fromisoformat(event["time"]).astimezone().strftime("%F %T")
    name = event["instance"] or "cluster"
    return f"{moment}  {name:<20} {event['state']:<9} {event['reason']}"
