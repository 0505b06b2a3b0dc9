"""From the file to instances: names, ports, command lines, environments, probes, dependencies."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from supervisor.core.instance import (
    Ask,
    InstanceSpec,
    Probe,
    Progress,
    Question,
    RestartPolicy,
    Role,
    Startup,
    Template,
)
from supervisor.fastchat import flags, weights
from supervisor.fastchat.gpus import deal, gpus_per_replica
from supervisor.spec import model as spec
from supervisor.spec.load import ClusterFile
from supervisor.spec.paths import looks_local, resolve
from supervisor.spec.problems import Path as Place

ENTRY = Path(__file__).parent / "entry"
"""Start modules, run by path; what each may import is said in `entry/__init__.py`."""

_QUICK_LIVENESS = {"timeout": 5.0}
"""A controller or API server answers in milliseconds."""

_LARGE = 256 * 2**20
"""Bytes of weights from which on it pays to read them ahead."""
_COMMAND_INTERVAL = 0.05
"""Seconds between two questions to a start, unless the file says so, where each is a process."""

_VISIBLE_DEVICES = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Listener:
    """An address that an instance will listen on, and where in the file its port is given."""

    instance: str
    host: str
    port: int
    place: Place


def controller_address(cluster: spec.Cluster) -> str:
    """Where the controller is asked, ours or an external one."""
    controller = cluster.controller or spec.Controller.model_construct()
    return controller.external or _url(controller.host, controller.port)


def has_own_controller(cluster: spec.Cluster) -> bool:
    """Whether this cluster starts a controller: if it is asked for, or anything needs one."""
    return cluster.own_controller is not None


def replicas(cluster: spec.Cluster) -> Iterator[tuple[str, str, spec.Worker, int]]:
    """Every worker instance: (its name, its service, the service's entry, its number)."""
    for service, worker in cluster.workers.items():
        if worker.enabled:
            for i in range(worker.replicas):
                yield f"{service}-{i}", service, worker, i


def without_port(cluster: spec.Cluster) -> list[str]:
    """Worker instances whose port is to be taken from the range."""
    return [name for name, _, worker, _ in replicas(cluster) if worker.port is None]


def beside(slot: str) -> str:
    """The name of what a surge starts beside the instance that has the slot's own name.

    The next rollout changes back: names, and with them ports and logs, stay few.
    """
    return f"{slot}.b"


def without_port_beside(cluster: spec.Cluster, running: Collection[str]) -> list[str]:
    """Instances that a surge may start, or has started (they are ``running``), and which need a
    port of their own."""
    return [
        beside(name)
        for name, _, worker, _ in replicas(cluster)
        if worker.port is None and (surges(worker) or beside(name) in running)
    ]


def surges(worker: spec.Worker) -> bool:
    """Whether its successor starts beside it. A GPU's memory seldom holds a model twice."""
    if worker.rollout is not None:
        return worker.rollout == "surge"
    on_cpu = getattr(worker, "device", "") == "cpu"
    remote = isinstance(worker, spec.HuggingfaceApiWorker)
    return worker.port is None and (on_cpu or remote)


def listeners(cluster: spec.Cluster) -> Iterator[Listener]:
    """Addresses that the file itself gives."""
    if controller := cluster.own_controller:
        yield Listener("controller", controller.host, controller.port, ("controller", "port"))
    for name in ("api_server", "web_server"):
        server: spec.ApiServer | spec.WebServer | None = getattr(cluster, name)
        if server is not None and server.enabled:
            yield Listener(name, server.host, server.port, (name, "port"))
    for name, service, worker, i in replicas(cluster):
        if worker.port is not None:
            yield Listener(name, worker.host, worker.port + i, ("workers", service, "port"))


def expand(
    file: ClusterFile, ports: Mapping[str, int], environ: Mapping[str, str]
) -> dict[str, InstanceSpec]:
    """All instances of the file, by name, in the order of start.

    ``ports`` has one for every instance of ``without_port``, and may have some for those of
    ``without_port_beside``; ``environ`` is the supervisor's own.
    """
    return {instance.name: instance for instance in _Expansion(file, ports, environ).instances()}


class _Expansion:
    def __init__(
        self, file: ClusterFile, ports: Mapping[str, int], environ: Mapping[str, str]
    ) -> None:
        self._cluster = file.cluster
        self._base = file.base
        self._ports = ports
        self._environ = environ
        self._found: dict[str, weights.Weights] = {}
        self._controller = controller_address(file.cluster)
        self._needs_controller = ("controller",) if has_own_controller(file.cluster) else ()
        workers = {_url(worker.host, 0) for worker in file.cluster.workers.values()}
        self._hosts = sorted({str(urlsplit(u).hostname) for u in (self._controller, *workers)})

    def instances(self) -> Iterator[InstanceSpec]:
        cluster = self._cluster
        if cluster.own_controller:
            yield self._controller_instance(cluster.own_controller)
        for name, service, worker, i in replicas(cluster):
            yield self._worker(name, service, worker, i)
        if cluster.api_server and cluster.api_server.enabled:
            yield self._api_server(cluster.api_server)
        if cluster.web_server and cluster.web_server.enabled:
            yield self._web_server(cluster.web_server)
        for name, command in cluster.services.items():
            if command.enabled:
                yield self._command(name, command)

    # ------------------------------------------------------------ one function per role

    def _controller_instance(
        self, controller: spec.Controller, name: str = "controller"
    ) -> InstanceSpec:
        """One that moves to another port starts beside the old one, which API servers still ask."""
        address = _url(controller.host, controller.port)
        second = self._controller_instance(controller, beside(name)) if "." not in name else None
        return self._instance(
            name,
            "controller",
            Role.CONTROLLER,
            "controller",
            controller,
            slot="controller",
            argv=self._entry("controller", controller, flags.controller_flags(controller)),
            env=_FASTCHAT_ENV,
            address=address,
            questions=(Question(Ask.HTTP, (f"{address}/test_connection",)),),
            surge=True,
            beside=second,
        )

    def _api_server(self, server: spec.ApiServer, name: str = "api_server") -> InstanceSpec:
        """Its successor starts beside it on the same socket, which the supervisor holds."""
        address = _url(server.host, server.port)
        env = {**_FASTCHAT_ENV, "LLM_SUPERVISOR_RETRY_SECONDS": f"{server.retry_for:g}"}
        secret = None
        if server.api_keys:
            env["LLM_SUPERVISOR_SECRETS"] = "stdin"
            keys = [key.get_secret_value() for key in server.api_keys]
            secret = json.dumps({"api_keys": keys}).encode()
        words = flags.api_server_flags(server, self._controller)
        second = self._api_server(server, beside(name)) if "." not in name else None
        return self._instance(
            name,
            "api_server",
            Role.API_SERVER,
            "openai_api_server",
            server,
            slot="api_server",
            argv=self._entry("openai_api_server", server, words),
            env=env,
            address=address,
            depends_on=self._needs_controller,
            questions=(Question(Ask.HEALTH),),
            listen=(server.host, server.port),
            hints={"LLM_SUPERVISOR_MODELS": json.dumps(self._all_models())},
            drain_timeout=server.drain_timeout,
            surge=True,
            beside=second,
            secret_input=secret,
        )

    def _all_models(self) -> list[str]:
        """So that the API server knows, from its start on, which models are worth waiting for."""
        workers = self._cluster.workers.items()
        found = (self._models(name, one)[0] for name, one in workers if one.enabled)
        return sorted({model for models in found for model in models})

    def _web_server(self, server: spec.WebServer) -> InstanceSpec:
        address = _url(server.host, server.port)
        workers: tuple[str, ...] = ()
        if server.model_list_mode == "once":  # it would never learn of a worker that comes later
            workers = tuple(name for name, one in self._cluster.workers.items() if one.enabled)
        return self._instance(
            "web_server",
            "web_server",
            Role.WEB_SERVER,
            "gradio_web_server",
            server,
            argv=self._entry(
                "gradio_web_server", server, flags.web_server_flags(server, self._controller)
            ),
            env={**_FASTCHAT_ENV, "GRADIO_ANALYTICS_ENABLED": "False"},
            address=address,
            depends_on=(*self._needs_controller, *workers),
            questions=(Question(Ask.HTTP, (f"{address}/",)),),
        )

    def _worker(self, slot: str, service: str, worker: spec.Worker, i: int) -> InstanceSpec:
        """The replica under its own name; with ``beside`` if there is a port for that."""
        port = worker.port + i if worker.port is not None else self._ports[slot]
        other = self._ports.get(beside(slot)) if worker.port is None else None
        second = None
        if other is not None:
            second = self._replica(beside(slot), slot, service, worker, i, other, None)
        return self._replica(slot, slot, service, worker, i, port, second)

    def _replica(
        self,
        name: str,
        slot: str,
        service: str,
        worker: spec.Worker,
        i: int,
        port: int,
        second: InstanceSpec | None,
    ) -> InstanceSpec:
        kind: str = worker.kind  # type: ignore[attr-defined]  # every kind declares its own literal
        address = _url(worker.host, port)
        share = gpus_per_replica(worker)
        gpus = deal(worker.gpus, share, i) if worker.gpus and share else ()
        models, model_path, paths = self._models(service, worker)
        found = self._weights(service, worker, (model_path, *paths))

        def words(port: int, address: str, controller: str, models: tuple[str, ...]) -> list[str]:
            return flags.worker_flags(
                worker,
                port=port,
                address=address,
                controller_address=controller,
                models=models,
                model_path=model_path,
                paths=paths,
                gpu_count=share,
            )

        # Addresses and names are the supervisor's to tell: it registers the workers.
        lasting = words(0, "", "", () if self._is_renamable(worker) else models)
        return self._instance(
            name,
            service,
            Role.WORKER,
            kind,
            worker,
            slot=slot,
            argv=self._entry(kind, worker, words(port, address, self._controller, models)),
            launched_as=(*self._entry(kind, worker, lasting), *_contents(worker, paths)),
            env={**_FASTCHAT_ENV, **_WORKER_ENV},
            devices=_devices(worker, gpus),
            address=address,
            port=port,
            models=models,
            gpus=gpus,
            depends_on=self._needs_controller,
            questions=(Question(Ask.STATUS), Question(Ask.GENERATE)),
            in_rotation=True,
            multimodal=getattr(worker, "multimodal", False),
            drain_timeout=worker.drain_timeout,
            surge=surges(worker),
            max_unavailable=worker.max_unavailable,
            beside=second,
            hints=_read_ahead(found),
            weights=found.size,
        )

    def _weights(
        self, service: str, worker: spec.Worker, models: Iterable[str | None]
    ) -> weights.Weights:
        """Of all models of a worker; the disk is looked at once for all its replicas."""
        if isinstance(worker, spec.HuggingfaceApiWorker):
            return weights.Weights()  # they are elsewhere, and its path is that of a list
        if service not in self._found:
            environ = {**self._environ, **self._cluster.env, **worker.env}
            revision = getattr(worker, "revision", None)
            here = (one for one in models if one is not None)
            self._found[service] = weights.weights_of(here, environ, revision)
        return self._found[service]

    def _is_renamable(self, worker: spec.Worker) -> bool:
        """Whether the model's names can change while its process runs.

        FastChat's workers with one model never look at the name in a request
        (serve/base_model_worker.py), so it is the controller's affair; our controller never asks
        them, FastChat's own does on every refresh.
        """
        return isinstance(worker, spec.OneModel) and bool(self._needs_controller)

    def _command(self, name: str, command: spec.Command) -> InstanceSpec:
        ready = _question(command.ready) if command.ready else None
        return self._instance(
            name,
            name,
            Role.COMMAND,
            "command",
            command,
            argv=command.command,
            env={},
            cwd=str(resolve(self._base, command.cwd or ".")),
            questions=(ready,) if ready else (),
        )

    # ------------------------------------------------------------ what they share

    def _instance(
        self,
        name: str,
        service: str,
        role: Role,
        kind: str,
        entry: spec.Service,
        *,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        questions: tuple[Question, ...],
        slot: str = "",
        launched_as: tuple[str, ...] | None = None,
        devices: Mapping[str, str] | None = None,
        cwd: str | None = None,
        address: str | None = None,
        port: int | None = None,
        models: tuple[str, ...] = (),
        gpus: tuple[str, ...] = (),
        depends_on: tuple[str, ...] = (),
        in_rotation: bool = False,
        multimodal: bool = False,
        hints: Mapping[str, str] | None = None,
        listen: tuple[str, int] | None = None,
        drain_timeout: float = 0.0,
        surge: bool = False,
        max_unavailable: int = 1,
        beside: InstanceSpec | None = None,
        weights: int = 0,
        secret_input: bytes | None = None,
    ) -> InstanceSpec:
        given = {**self._cluster.env, **entry.env}
        variables = {**env, **given, **(devices or {})}
        cwd = cwd or str(self._base)
        # Without NO_PROXY, which follows the hosts of all workers: one more is no reason to
        # restart the others.
        launch = _digest(launched_as or argv, sorted(variables.items()), cwd, secret_input)
        template = None
        if isinstance(entry, spec.PythonService):
            template = self._template(entry, Path(argv[1]).stem, variables, cwd)
        variables |= hints or {}
        variables |= _no_proxy({**self._environ, **given}, self._hosts)
        return InstanceSpec(
            name=name,
            service=service,
            slot=slot or name,
            role=role,
            kind=kind,
            argv=argv,
            env=tuple(sorted(variables.items())),
            cwd=cwd,
            address=address,
            port=port or getattr(entry, "port", None),
            models=models,
            gpus=gpus,
            depends_on=tuple(dict.fromkeys((*depends_on, *entry.depends_on))),
            startup=_startup(entry.probes.startup, questions),
            readiness=_probe(entry.probes.readiness, questions[:1], {}),
            liveness=_probe(
                entry.probes.liveness,
                questions[:1],
                {} if role is Role.WORKER else _QUICK_LIVENESS,
            ),
            progress=_progress(entry, questions) if isinstance(entry, spec.Worker) else None,
            restart=RestartPolicy(**entry.restart.model_dump()),
            stop_grace=entry.stop_grace,
            in_rotation=in_rotation,
            launch=launch,
            multimodal=multimodal,
            listen=listen,
            drain_timeout=drain_timeout,
            surge=surge,
            max_unavailable=max_unavailable,
            beside=beside,
            warmth=getattr(entry, "launch", "cold"),
            template=template,
            weights=weights,
            secret_input=secret_input,
        )

    def _template(
        self, entry: spec.PythonService, module: str, variables: Mapping[str, str], cwd: str
    ) -> Template | None:
        """What its process is forked from; one template for all that import the same in the same
        environment."""
        kind = _TEMPLATES.get(module)
        device = getattr(entry, "device", "cuda")
        if kind is None or entry.launch == "cold":
            return None
        if entry.launch == "auto" and device not in _FORK_SAFE_DEVICES:
            return None
        seen = {name: value for name, value in variables.items() if not _is_seen_late(name)}
        argv = (self._python(entry), str(ENTRY / "template.py"), kind)
        return Template(kind, argv, tuple(sorted(seen.items())), cwd)

    def _entry(self, module: str, service: spec.PythonService, words: list[str]) -> tuple[str, ...]:
        return (self._python(service), str(ENTRY / f"{module}.py"), *words, *service.args)

    def _python(self, service: spec.PythonService) -> str:
        """An interpreter that is a path is relative to the file; a bare name is looked up in PATH.

        The link is kept: resolved, a virtual environment's python would lose its environment.
        """
        python = service.python or self._cluster.python
        if python is None:
            return sys.executable
        return str(resolve(self._base, python)) if "/" in python else python

    def _models(
        self, service: str, worker: spec.Worker
    ) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
        """(names for clients, model path, further paths) of a worker."""
        if isinstance(worker, spec.MultiModelWorker):
            names = tuple(name for one in worker.models for name in one.model_names)
            return names, None, tuple(self._model_path(one.model_path) for one in worker.models)
        if isinstance(worker, spec.HuggingfaceApiWorker):
            info = resolve(self._base, worker.model_info_file)
            return _names_in(info) or (service,), None, (str(info),)
        assert isinstance(worker, spec.OneModel)
        return worker.model_names or (service,), self._model_path(worker.model_path), ()

    def _model_path(self, path: str) -> str:
        return str(resolve(self._base, path)) if looks_local(self._base, path) else path


_FASTCHAT_ENV = {
    "LOGDIR": "",  # FastChat writes log files of its own into the working directory otherwise
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "",  # the entry modules import their neighbour
    "API_KEYS": "[]",  # FastChat reads it as JSON, and crashes on anything else that is set there
}
_WORKER_ENV = {
    "LLM_SUPERVISOR_NO_REGISTER": "1",  # some kinds register in spite of --no-register
    "TOKENIZERS_PARALLELISM": "false",  # warns at every request otherwise, once it has forked
}


_TEMPLATES = {
    "model_worker": "worker",
    "multi_model_worker": "worker",
    "controller": "server",
    "openai_api_server": "server",
}
"""Kind of template (`entry/template.py`) by entry module; all others are always started cold."""
_FORK_SAFE_DEVICES = ("cpu", "cuda")
"""torch imports nothing of these that would not survive a fork; for others nobody has looked."""
_SEEN_LATE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NO_PROXY", "no_proxy")


def _is_seen_late(name: str) -> bool:
    """Whether no import looks at this variable: CUDA's count when it starts, proxies at a request,
    and ours belong to our own modules."""
    return name in _SEEN_LATE or name.startswith("LLM_SUPERVISOR_")


def _digest(*parts: object) -> str:
    """Not only for our own eyes: a secret must not be guessed from it, hence not cut short."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _contents(worker: spec.Worker, paths: Iterable[str]) -> Iterator[str]:
    """What a file holds that a worker reads when it starts."""
    if isinstance(worker, spec.HuggingfaceApiWorker):
        for path in map(Path, paths):
            yield path.read_text("utf-8", errors="replace") if path.is_file() else ""


def _read_ahead(found: weights.Weights) -> dict[str, str]:
    """What `entry/read_ahead.py` reads; small files are read by the time anybody asks."""
    is_worth_it = found.size >= _LARGE and not any(os.pathsep in name for name in found.files)
    return {"LLM_SUPERVISOR_READ_AHEAD": os.pathsep.join(found.files)} if is_worth_it else {}


def _names_in(info: Path) -> tuple[str, ...]:
    """The models of a huggingface_api_worker, as FastChat reads them from its JSON file."""
    try:
        entries = json.loads(info.read_text("utf-8")).items()
        given = [entry.get("model_names", [key.split("/")[-1]]) for key, entry in entries]
    except (OSError, ValueError, AttributeError):
        return ()  # FastChat will say what is wrong with it
    return tuple(str(n) for names in given for n in ([names] if isinstance(names, str) else names))


def _no_proxy(environ: Mapping[str, str], ours: Iterable[str]) -> dict[str, str]:
    """FastChat's parts talk to each other directly; a proxy in between breaks them (#1282)."""
    given = f"{environ.get('NO_PROXY', '')},{environ.get('no_proxy', '')}"
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in hosts:  # "*" means all hosts, but only if it stands alone
        hosts = list(dict.fromkeys((*hosts, "127.0.0.1", "localhost", *ours)))
    else:
        hosts = ["*"]
    return {"NO_PROXY": ",".join(hosts), "no_proxy": ",".join(hosts)}


def _devices(worker: spec.Worker, gpus: tuple[str, ...]) -> dict[str, str]:
    """What the instance sees of the machine's GPUs."""
    device = getattr(worker, "device", "cuda")
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if gpus and device in _VISIBLE_DEVICES:
        # Indices as nvidia-smi shows them; CUDA's own order is "fastest first".
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if device == "cuda" else {}
        return {_VISIBLE_DEVICES[device]: ",".join(gpus), **order}
    return {}


def _url(host: str, port: int) -> str:
    """An address to connect to; "all interfaces" is reached through loopback (#2467, #1714)."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "localhost": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def _question(question: spec.Question) -> Question | None:
    if question.http:
        return Question(Ask.HTTP, (question.http,))
    if question.tcp:
        return Question(Ask.TCP, (question.tcp,))
    if question.command:
        return Question(Ask.COMMAND, question.command)
    if question.fastchat:
        return Question(Ask(question.fastchat))
    return None


def _startup(probe: spec.StartupProbe, default: tuple[Question, ...]) -> Startup | None:
    own = _question(probe)
    if own is None:
        questions = default
    elif own.ask in (Ask.STATUS, Ask.GENERATE, Ask.EMBED):
        questions = (own,)
    else:  # a worker must generate all the same before it gets requests
        questions = (own, *(question for question in default if question.ask is Ask.GENERATE))
    if not questions:
        return None
    is_command = questions[0].ask is Ask.COMMAND and "interval" not in probe.model_fields_set
    interval = _COMMAND_INTERVAL if is_command else probe.interval
    return Startup(questions, interval, probe.timeout, probe.deadline)


def _progress(worker: spec.Worker, questions: tuple[Question, ...]) -> Progress:
    """The question that a start ends with is known to be one that the worker can answer."""
    startup = _startup(worker.probes.startup, questions)
    asked = startup.questions[-1] if startup else None
    answerable = asked if asked and asked.ask in (Ask.GENERATE, Ask.EMBED) else None
    return Progress(**worker.probes.progress.model_dump(), question=answerable)


def _probe(
    probe: spec.ReadinessProbe | spec.LivenessProbe,
    default: tuple[Question, ...],
    role_defaults: Mapping[str, float],
) -> Probe | None:
    question = _question(probe) or (default[0] if default else None)
    if question is None or not probe.enabled:
        return None
    values: dict[str, float] = {
        name: getattr(probe, name)
        if name in probe.model_fields_set
        else role_defaults.get(name, getattr(probe, name))
        for name in ("interval", "timeout", "failures")
    }
    return Probe(question, values["interval"], values["timeout"], int(values["failures"]))
