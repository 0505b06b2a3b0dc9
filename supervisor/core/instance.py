"""What one instance is to run as: the contract between who describes it and who runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a service is to FastChat."""

    CONTROLLER = "controller"
    WORKER = "worker"
    API_SERVER = "api_server"
    WEB_SERVER = "web_server"
    COMMAND = "command"


class Ask(StrEnum):
    """The kinds of question a probe can ask; who can ask it is decided where effects are wired."""

    HTTP = "http"
    TCP = "tcp"
    COMMAND = "command"
    STATUS = "status"
    GENERATE = "generate"
    EMBED = "embed"
    PROGRESS = "progress"
    """Of a worker: whether it gets on with its work (``core/progress.py``)."""
    HEALTH = "health"
    """Of the API server: whether it is this very instance that answers at its address."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question: of what kind, and of whom (URL, ``host:port``, or the command's words)."""

    ask: Ask
    target: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.ask.value, *self.target))


@dataclass(frozen=True, slots=True)
class Probe:
    """A question asked again and again. Times are seconds."""

    question: Question
    interval: float
    timeout: float
    failures: int = 1
    """Failures in a row that count."""


@dataclass(frozen=True, slots=True)
class Startup:
    """How a start is judged: every question must pass, in order, before the deadline."""

    questions: tuple[Question, ...]
    interval: float
    timeout: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker has to show for itself (``core/progress.py``). Times are seconds."""

    enabled: bool = True
    """Whether it is restarted for want of it. Also if not, work excuses a silence."""
    interval: float = 5.0
    stall_after: float = 120.0
    idle_after: float = 300.0
    failures: int = 2
    """One-token answers in a row that fail before it counts as broken."""
    question: Question | None = None
    """How one token is asked for; None: it is not known to be able to answer any such question."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """See ``supervisor.spec.model.Restart``; times are seconds."""

    policy: str = "always"
    backoff: float = 1.0
    backoff_max: float = 60.0
    jitter: float = 0.25
    stable_after: float = 60.0
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """What a process can be forked from that has imported all it needs: the warm launcher.

    Equal ones are one process.
    """

    kind: str
    """What it imports: see ``fastchat/entry/template.py``."""
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = field(repr=False)
    """What an import may look at; the rest a forked process is given of its own."""
    cwd: str
    """Relative paths in its environment are looked for there."""

    def __str__(self) -> str:
        return f"template for {self.kind}s"


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One running copy of a service, ready to be launched."""

    name: str
    service: str
    slot: str
    """The replica that it is: its name, but for one that a rollout has started beside another."""
    role: Role
    kind: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = field(repr=False)  # tokens are handed over in it
    cwd: str
    address: str | None
    port: int | None
    models: tuple[str, ...]
    gpus: tuple[str, ...]
    depends_on: tuple[str, ...]
    """Services, not instances."""
    startup: Startup | None
    """None: ready as soon as it runs."""
    readiness: Probe | None
    liveness: Probe | None
    restart: RestartPolicy
    stop_grace: float
    in_rotation: bool
    """Whether it gets its requests through the controller, and so must be registered there."""
    launch: str
    """Stands for all that its process was started with; another one needs another process. Names,
    addresses and ports that the supervisor chooses or can change while it runs are not in it."""
    progress: Progress | None = None
    """None: it keeps no record of it."""
    multimodal: bool = False
    listen: tuple[str, int] | None = None
    """Host and port of a socket that it is given: its successor gets the same one, so that nobody
    is refused between the two."""
    drain_timeout: float = 0.0
    """Seconds that it may go on with the requests it has, when it is to stop."""
    surge: bool = False
    """Its successor starts beside it, and not in its place."""
    max_unavailable: int = 1
    """Replicas of its service that may be taken away at a time to start their successors."""
    beside: InstanceSpec | None = None
    """The same under another name and port, for a surge; None: no name or port is to be had."""
    warmth: str = "auto"
    """What the file says of its next start: warm, cold or auto."""
    template: Template | None = None
    """What its process is forked from; None: it is always started as a program."""
    weights: int = 0
    """Bytes of its model's weights on disk, as last seen; 0: none, or nobody knows. A hint, which
    says nothing of how it is started."""
    secret_input: bytes | None = field(default=None, repr=False)
    """Written to its stdin and closed; how secrets reach it outside argv and environment."""

    @property
    def is_launchable(self) -> bool:
        """False for what only a state file tells of: it runs, but nobody knows how to start it."""
        return bool(self.argv)
