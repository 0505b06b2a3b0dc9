"""``reload``: apply the file as it is now, and try again what could not be started."""

from __future__ import annotations

import argparse

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE
from supervisor.cli.settle import wait_until_settled


def run_reload(arguments: argparse.Namespace) -> int:
    client = Client(arguments)
    answer = client.post("/v1/reload", retry=1)
    if not answer["changed"]:
        print("nothing has changed")
    if arguments.no_wait:
        return DONE
    return wait_until_settled(client, answer["number"], arguments.timeout)
