"""What follows a change of the file: what happens is printed until all of it is in service."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from supervisor.cli.client import Client
from supervisor.cli.events import as_line
from supervisor.cli.failure import DONE, FAILED

_SLICE = 0.5
"""Seconds of one request; what has happened meanwhile is printed after each."""


def wait_until_settled(
    client: Client, number: int, timeout: float | None, services: Sequence[str] = ()
) -> int:
    """0 when all changes are in service; 1, with the reasons on stderr, when one has failed or time
    is up. ``number`` is that of the last event that is not news; what has failed in other services
    than these (if any is named) is an older story."""
    query = {"service": list(services)} if services else {}
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _SLICE if end is None else min(_SLICE, max(0.0, end - time.monotonic()))
        over = end is not None and time.monotonic() + left >= end
        answer = client.get("/v1/settled", wait=left, timeout=left, **query)
        for event in client.get("/v1/events", after=number)["events"]:
            print(as_line(event), flush=True)
            number = max(number, event["number"])
        if answer["failed"]:
            print("\n".join(answer["failed"]), file=sys.stderr)
            return FAILED
        if answer["settled"]:
            return DONE
        if over:
            print("\n".join(answer["under_way"]), file=sys.stderr)
            print(f"not in service after {timeout:g} s; it goes on", file=sys.stderr)
            return FAILED
