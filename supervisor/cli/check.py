"""``validate``, ``plan``, ``schema``: look at the file; start nothing."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.failure import DONE, USAGE, Failure
from supervisor.cli.locations import load_config, run_dir
from supervisor.core.instance import InstanceSpec
from supervisor.core.plan import plan
from supervisor.daemon.planning import changes
from supervisor.daemon.prepare import prepare
from supervisor.runtime.rundir import RunDir
from supervisor.spec.load import ClusterFile
from supervisor.spec.problems import SpecError


def run_validate(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    specs = _prepared(file, arguments)
    services = len({spec.service for spec in specs.values()})
    print(f"{file.path} is valid: {services} services, {len(specs)} instances")
    return DONE


def run_plan(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    if RunDir(run_dir(arguments, file.cluster.run_dir)).owner() is None:
        answer = changes(plan({}, wanted := _prepared(file, arguments)), wanted).model_dump()
    else:
        answer = Client(arguments).get("/v1/plan")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        _print_plan(answer["changes"])
    return DONE


def run_schema(arguments: argparse.Namespace) -> int:
    from supervisor.spec.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return DONE


def _prepared(file: ClusterFile, arguments: argparse.Namespace) -> dict[str, InstanceSpec]:
    """With ports as they would be; a supervisor that runs this file holds them rightly."""
    place = RunDir(run_dir(arguments, file.cluster.run_dir))
    running = place.owner() is not None
    try:
        return prepare(file, place.remembered_ports(), os.environ, running=running)
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None


def _print_plan(planned: list[dict[str, Any]]) -> None:
    wave = None
    for change in sorted(planned, key=lambda c: (c["action"] == "stop", c["wave"])):
        starts = change["action"] in ("start", "replace")
        if starts and change["wave"] != wave:
            wave = change["wave"]
            print("first, at once:" if wave == 0 else "then, when these are ready:")
        print(f"  {change['action']:<7} {change['instance']}: {change['reason']}")
        if starts:
            print(f"          {shlex.join(change['command'])}")
