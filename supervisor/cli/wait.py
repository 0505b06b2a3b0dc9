"""``wait``: return when services are ready."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE, FAILED

_SLICE = 20.0
"""Seconds of one request; a wait of an hour is many of them, so that a dead peer is noticed."""


def run_wait(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    client.await_supervisor()  # `llm-supervisor up & llm-supervisor wait` is meant to work
    return wait_until_ready(client, arguments.services, arguments.timeout)


def wait_until_ready(client: Client, services: Sequence[str], timeout: float | None) -> int:
    """0 when all are ready; 1, with the reasons on stderr, when they cannot be or time is up."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _SLICE if end is None else min(_SLICE, max(0.0, end - time.monotonic()))
        query = {"service": list(services)} if services else {}
        answer = client.get("/v1/wait", wait=left, timeout=left, **query)
        if answer["ready"]:
            return DONE
        unready = answer["not_ready"]
        over = end is not None and time.monotonic() >= end
        if over or answer["hopeless"]:
            for one in unready:
                print(f"{one['name']} is {one['state']}: {one['reason']}", file=sys.stderr)
            return FAILED
