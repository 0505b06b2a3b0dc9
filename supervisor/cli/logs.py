"""``logs``: what an instance has written."""

from __future__ import annotations

import argparse

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE


def run_logs(arguments: argparse.Namespace) -> int:
    query = {"lines": max(0, arguments.lines)}
    if arguments.follow:
        query["follow"] = 1
    for line in Client(arguments).lines(f"/v1/services/{arguments.name}/logs", **query):
        print(line, flush=arguments.follow)
    return DONE
