"""``start``, ``stop``, ``restart``, ``down``: ask, then wait until it is so."""

from __future__ import annotations

import argparse
import os
import select
import time
from collections.abc import Iterable
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE, FAILED, Failure
from supervisor.cli.settle import wait_until_settled
from supervisor.cli.wait import wait_until_ready

_PAUSE = 0.1


def run_start(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    names = _ask(client, arguments.names, "start")
    return DONE if arguments.no_wait else wait_until_ready(client, names, arguments.timeout)


def run_restart(arguments: argparse.Namespace) -> int:
    """A worker is replaced by its like, which may have another name: its service is waited for."""
    client = Client(arguments)
    number = client.get("/v1/status")["cluster"]["last_event"]
    names = set(_ask(client, arguments.names, "restart"))
    services = sorted({one["service"] for one in _instances(client) if one["name"] in names})
    if arguments.no_wait:
        return DONE
    return wait_until_settled(client, number, arguments.timeout, services) or wait_until_ready(
        client, services, arguments.timeout
    )


def run_stop(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    names = set(_ask(client, arguments.names, "stop"))
    if arguments.no_wait:
        return DONE

    def stopped() -> bool:
        found = _instances(client)
        return all(one["state"] == "stopped" for one in found if one["name"] in names)

    return _poll(stopped, arguments.timeout, f"{', '.join(sorted(names))} still runs")


def run_down(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    try:
        supervisor = os.pidfd_open(client.get("/v1/status")["cluster"]["pid"])
    except ProcessLookupError:
        return DONE  # it has ended since it answered
    client.post("/v1/down")
    if arguments.no_wait:
        return DONE
    ended, _, _ = select.select([supervisor], [], [], arguments.timeout)
    if not ended:
        raise Failure(f"the cluster is still stopping after {arguments.timeout:g} s", FAILED)
    return DONE


def _ask(client: Client, names: Iterable[str], verb: str) -> list[str]:
    """All names are checked before any of them is acted on."""
    found: list[str] = client.post(f"/v1/services/{','.join(names)}/{verb}")["instances"]
    return found


def _instances(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/status")["instances"]
    return found


def _poll(done: Any, timeout: float | None, otherwise: str) -> int:
    end = None if timeout is None else time.monotonic() + timeout
    while not done():
        if end is not None and time.monotonic() >= end:
            raise Failure(f"{otherwise} after {timeout:g} s; see `llm-supervisor why`", FAILED)
        time.sleep(_PAUSE)
    return DONE
