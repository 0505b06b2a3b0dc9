"""``validate``, ``plan``, ``schema``: look at the file; start nothing."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE, USAGE, Failure
from supervisor.cli.locations import load_config, print_warnings, run_dir
from supervisor.core.instance import InstanceSpec
from supervisor.daemon.planning import planned
from supervisor.daemon.prepare import prepare
from supervisor.runtime.rundir import RunDir
from supervisor.spec.load import ClusterFile
from supervisor.spec.problems import SpecError


def run_validate(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    print_warnings(file)
    specs = _prepared(file, arguments)
    services = len({spec.service for spec in specs.values()})
    print(f"{file.path} is valid: {services} services, {len(specs)} instances")
    return DONE


def run_plan(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    if RunDir(run_dir(arguments, file.cluster.run_dir)).owner() is None:
        answer = planned({}, _prepared(file, arguments), None, file).model_dump()
    else:
        answer = Client(arguments).get("/v1/plan")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        print_plan(answer["changes"])
    return DONE


def run_schema(arguments: argparse.Namespace) -> int:
    from supervisor.spec.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return DONE


def _prepared(file: ClusterFile, arguments: argparse.Namespace) -> dict[str, InstanceSpec]:
    """With ports as they would be; a supervisor that runs this file holds them rightly."""
    place = RunDir(run_dir(arguments, file.cluster.run_dir))
    remembered = place.remembered_ports()
    running = remembered if place.owner() is not None else {}
    try:
        return prepare(file, remembered, os.environ, running=running)
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None


def print_plan(planned: list[dict[str, Any]]) -> None:
    """In the order in which things happen; what is kept in one line at the end."""
    kept = [change["instance"] for change in planned if change["action"] == "keep"]
    changes = [change for change in planned if change["action"] != "keep"]
    first_start = len(changes) == len(planned) and all(c["action"] == "start" for c in changes)
    wave = None
    for change in sorted(changes, key=lambda c: (c["action"] == "stop", c["wave"])):
        if first_start and change["wave"] != wave:
            wave = change["wave"]
            print("first, at once:" if wave == 0 else "then, when these are ready:")
        print(f"  {change['action']:<8} {change['instance']}: {change['reason']}")
        if not first_start:
            print(f"           requests: {change['requests']}")
        if change["action"] in ("start", "restart", "roll out"):
            print(f"           {shlex.join(change['command'])}")
    if kept:
        print(f"  keep     {', '.join(kept)}" + ("" if changes else ": nothing to do"))
