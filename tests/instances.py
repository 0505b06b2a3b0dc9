"""Instances to test with: made in one line, with only what matters in the test spelt out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core.instance import (
    Ask,
    InstanceSpec,
    Probe,
    Progress,
    Question,
    RestartPolicy,
    Role,
    Startup,
)

STATUS = Question(Ask.STATUS)
GENERATE = Question(Ask.GENERATE)
DEADLINE = 1800.0


def instance(name: str = "controller", **fields: Any) -> InstanceSpec:
    """Something that serves requests of its own: a controller, an API server, a command."""
    plain = InstanceSpec(
        name=name,
        service=name,
        slot=name,
        role=Role.CONTROLLER if name == "controller" else Role.COMMAND,
        kind="command",
        argv=("run", name),
        env=(),
        cwd="/",
        address="http://127.0.0.1:21001",
        port=21001,
        models=(),
        gpus=(),
        depends_on=(),
        startup=Startup((STATUS,), interval=0.25, timeout=5.0, deadline=DEADLINE),
        readiness=Probe(STATUS, interval=2.0, timeout=10.0, failures=3),
        liveness=Probe(STATUS, interval=10.0, timeout=30.0, failures=2),
        restart=RestartPolicy(),
        stop_grace=30.0,
        in_rotation=False,
        launch="as at first",
    )
    return replace(plain, **fields)


def worker(name: str = "vicuna-0", **fields: Any) -> InstanceSpec:
    """A model worker: gets its requests through the controller, once it has generated a token."""
    given: dict[str, Any] = {
        "service": name.rpartition("-")[0] or name,
        "role": Role.WORKER,
        "kind": "model_worker",
        "models": ("vicuna",),
        "port": None,  # nobody is in anybody's way
        "depends_on": ("controller",),
        "startup": Startup((STATUS, GENERATE), interval=0.25, timeout=5.0, deadline=DEADLINE),
        "progress": Progress(question=GENERATE),
        "in_rotation": True,
    }
    return instance(name, **(given | fields))
