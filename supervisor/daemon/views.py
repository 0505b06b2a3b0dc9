"""What the outside sees: the third type beside the desired and the observed. JSON of the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ClusterView(View):
    """The cluster as a whole."""

    state: Literal["starting", "ready", "degraded", "stopping"]
    """One word for the whole."""
    file: str
    """The cluster file."""
    pid: int
    """The supervisor's pid."""
    version: str
    """The supervisor's version."""
    since: str
    """When the supervisor started (ISO 8601, UTC)."""
    run_dir: str
    """Run directory."""
    log_dir: str
    """Folder of the log files."""


class InstanceView(View):
    """One instance. Times are ISO 8601, UTC."""

    name: str
    """Its name, as `vicuna-0`."""
    service: str
    """Its service, as `vicuna`."""
    role: Literal["controller", "worker", "api_server", "web_server", "command"]
    """What it is to FastChat."""
    kind: str
    """Kind of worker, or the role again."""
    state: Literal["stopped", "starting", "ready", "unready", "stopping", "backoff", "failed"]
    """Where it is in its life."""
    desired: Literal["running", "stopped"]
    """What is wanted."""
    reason: str
    """Why it is in this state, in a sentence."""
    pid: int | None
    """Process id, while it runs."""
    address: str | None
    """URL it answers at."""
    models: list[str]
    """Models it serves."""
    gpus: list[str]
    """GPUs it sees; none for one that sees no GPU, or all."""
    restarts: int
    """Restarts by the supervisor's own decision."""
    since: str
    """When it came into this state."""
    started_at: str | None
    """When its process started."""
    ready_at: str | None
    """When it became ready."""


class StatusView(View):
    cluster: ClusterView
    instances: list[InstanceView]


class EventView(View):
    """One thing that happened."""

    number: int
    time: str
    instance: str
    """Empty for the cluster as a whole."""
    state: str
    reason: str
    pid: int | None


class EventsView(View):
    events: list[EventView]


class WhyView(View):
    """Why an instance is as it is."""

    name: str
    sentences: list[str]
    log: list[str]
    """The last lines of its log, where they help."""


class WhysView(View):
    instances: list[WhyView]


class ChangeView(View):
    """What a start or reload would do to one instance."""

    instance: str
    action: Literal["keep", "start", "replace", "stop"]
    reason: str
    command: list[str]
    """The command line; empty for one that stops."""
    env: list[str]
    """Names of the variables set for it; their values are not shown."""
    wave: int
    """It starts when all lower waves are ready."""


class PlanView(View):
    changes: list[ChangeView]


class AcceptedView(View):
    """The names of the instances that a request concerns."""

    instances: list[str]


class WaitView(View):
    """The answer to a wait: whether all are ready, and which are not."""

    ready: bool
    hopeless: bool
    """Something has failed, or was stopped, so that waiting on is of no use."""
    not_ready: list[InstanceView]


class ErrorView(View):
    """Why a request cannot be served, in a sentence."""

    error: str
