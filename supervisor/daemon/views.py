"""What the outside sees: the third type beside the desired and the observed. JSON of the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, defer_build=True)


class TemplateView(View):
    """A process that others are forked from, instead of being started (`launch`)."""

    name: str
    """That of its log."""
    kind: Literal["worker", "server"]
    """What it has imported."""
    python: str
    """Its interpreter."""
    pid: int | None
    """Process id, while it runs."""
    state: Literal["importing", "ready", "failed"]
    """`failed`: until it is there again, processes are started cold."""
    reason: str
    """Why it has failed."""
    forks: int
    """Processes that have been forked from this very one."""


class ClusterView(View):
    """The cluster as a whole."""

    state: Literal["starting", "updating", "ready", "degraded", "stopping"]
    """One word for the whole."""
    file: str
    """The cluster file."""
    pid: int
    """The supervisor's pid."""
    version: str
    """The supervisor's version."""
    since: str
    """When the supervisor started (ISO 8601, UTC)."""
    upgrades: int
    """How often it has become another program since."""
    run_dir: str
    """Run directory."""
    log_dir: str
    """Folder of the log files."""
    last_event: int
    """Number of the last event."""
    problems: list[str]
    """What is wrong with the file as it is now, which is not applied: `file:line:column: ...`."""
    under_way: list[str]
    """What of the last change is not in service yet."""
    failed: list[str]
    """What of it cannot be, and why."""
    templates: list[TemplateView]
    """What instances are forked from."""


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
    last_exit: str | None
    """How and why its last process ended, or could not be started."""
    last_exit_class: (
        Literal[
            "wrong configuration",
            "port busy",
            "out of GPU memory",
            "out of host memory",
            "GPU lost",
            "engine error",
            "unknown",
        ]
        | None
    )
    """The same as one of these; none for an end that was asked for."""


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


class CauseView(View):
    """A field of the file that has changed."""

    field: str
    """As `workers.vicuna.load_8bit`."""
    line: int
    """Where it stands now; 0 if it is nowhere."""
    text: str
    """What has changed, in words; secrets are not told."""


class ChangeView(View):
    """What a start or reload would do to one replica or service."""

    instance: str
    """The replica."""
    service: str
    """Its service."""
    action: Literal["keep", "update", "start", "restart", "roll out", "stop"]
    reason: str
    """Why, in words."""
    causes: list[CauseView]
    """The fields that are the reason."""
    requests: str
    """What it means for requests."""
    command: list[str]
    """The command line; empty for one that stops."""
    env: list[str]
    """Names of the variables set for it; their values are not shown."""
    wave: int
    """It starts when all lower waves are ready."""


class PlanView(View):
    changes: list[ChangeView]


class ReloadView(View):
    """What a reload has set going."""

    changed: bool
    """Whether it does anything."""
    number: int
    """Number of the last event before it."""
    changes: list[ChangeView]


class EditView(ReloadView):
    """What an edit of the file has changed, or would."""

    diff: str
    """Unified diff of the file; empty if it says so already."""


class SettledView(View):
    """Whether the last change is in service."""

    settled: bool
    under_way: list[str]
    failed: list[str]


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
