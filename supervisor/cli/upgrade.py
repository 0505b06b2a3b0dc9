"""``upgrade``: the version that is installed now takes over; what runs is not touched."""

from __future__ import annotations

import argparse
import time
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE, FAILED, NOT_RUNNING, Failure

_PAUSE = 0.05
_PATIENCE = 60.0


def run_upgrade(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    before = client.get("/v1/status")["cluster"]
    try:
        client.post("/v1/upgrade")
    except Failure as failure:
        # Somebody else's was quicker, and the program that we have asked is no more.
        if failure.status != NOT_RUNNING:
            raise
    limit = _PATIENCE if arguments.timeout is None else arguments.timeout
    end = time.monotonic() + limit
    while time.monotonic() < end:
        now = _cluster(client)
        if now is not None and now["upgrades"] > before["upgrades"]:
            print(f"{before['version']} -> {now['version']}, supervisor pid {now['pid']}")
            return DONE
        time.sleep(_PAUSE)
    raise Failure(
        f"the new version does not answer after {limit:g} s; what runs goes on: see the "
        "supervisor's own log, and start it again with `llm-supervisor up`",
        FAILED,
    )


def _cluster(client: Client) -> dict[str, Any] | None:
    """None while nobody answers, for the one ends and the other begins."""
    try:
        cluster: dict[str, Any] = client.get("/v1/status")["cluster"]
    except Failure as failure:
        if failure.status != NOT_RUNNING:
            raise
        return None
    return cluster
