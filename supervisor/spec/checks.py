"""What must hold between fields. Pure but for the question whether a local path is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path as FilePath

from supervisor.spec.model import (
    SINGLETONS,
    Cluster,
    ModelOptions,
    ModelWorker,
    MultiModelWorker,
    OneModel,
    Question,
    Service,
    Worker,
)
from supervisor.spec.paths import looks_local, resolve
from supervisor.spec.problems import Path

Finding = tuple[Path, str]


def check(cluster: Cluster, base: FilePath, unusable: Collection[str] = ()) -> Iterator[Finding]:
    """Every finding as (place, what is wrong and what to do).

    ``unusable`` are services that stand in the file but have errors of their own.
    """
    yield from _controller(cluster)
    yield from _names(cluster)
    yield from _ports(cluster)
    yield from _dependencies(cluster, unusable)
    yield from _files(cluster, base)
    for path, service in services(cluster):
        yield from _questions(path, service)
    for name, worker in cluster.workers.items():
        path = ("workers", name)
        yield from _gpus(path, worker)
        if isinstance(worker, ModelOptions):
            yield from _quantization(path, worker)


def services(cluster: Cluster) -> Iterator[tuple[Path, Service]]:
    """Every service of the file that is enabled, with its place."""
    for name in SINGLETONS:
        service = getattr(cluster, name)
        if service is not None and service.enabled:
            yield (name,), service
    for name, worker in cluster.workers.items():
        if worker.enabled:
            yield ("workers", name), worker
    for name, command in cluster.services.items():
        if command.enabled:
            yield ("services", name), command


def _controller(cluster: Cluster) -> Iterator[Finding]:
    controller = cluster.controller
    if controller and controller.external:
        for field in sorted(controller.model_fields_set - {"external", "description"}):
            text = "has no meaning beside `external`, which runs elsewhere; remove one of them"
            yield ("controller", field), text


def _names(cluster: Cluster) -> Iterator[Finding]:
    taken: dict[str, str] = dict.fromkeys(SINGLETONS, "the cluster's own service of that name")
    for group in ("workers", "services"):
        for name, service in getattr(cluster, group).items():
            if name in taken:
                yield (group, name), f"the name {name!r} is taken by {taken[name]}; choose another"
            taken[name] = f"{group}.{name}"
            for i in range(service.replicas if isinstance(service, Worker) else 0):
                taken.setdefault(f"{name}-{i}", f"replica {i} of workers.{name}")
    served: dict[str, str] = {}
    for name, worker in cluster.workers.items():
        if isinstance(worker, MultiModelWorker):
            for i, model in enumerate(worker.models):
                for alias in model.model_names:
                    if alias in served:
                        place: Path = ("workers", name, "models", i, "model_names")
                        yield place, f"model {alias!r} stands twice in this worker; remove one"
                    served[alias] = name
            served.clear()


def _ports(cluster: Cluster) -> Iterator[Finding]:
    taken: dict[int, str] = {}
    for path, service in services(cluster):
        port = getattr(service, "port", None)
        if port is None or getattr(service, "external", None):
            continue
        count = service.replicas if isinstance(service, Worker) else 1
        if port + count - 1 > 65535:
            yield (*path, "port"), f"{count} replicas from {port} on pass port 65535; lower it"
            continue
        for number in range(port, port + count):
            if number in taken:
                text = f"port {number} is used twice, here and by {taken[number]}; change one"
                yield (*path, "port"), text
                break
            taken[number] = ".".join(map(str, path))


def _dependencies(cluster: Cluster, unusable: Collection[str]) -> Iterator[Finding]:
    known = {str(path[-1]): service for path, service in services(cluster)}
    known_but_off = {*cluster.workers, *cluster.services} - known.keys()
    if cluster.workers or cluster.api_server or cluster.web_server:
        known.setdefault("controller", Service())
    for path, service in services(cluster):
        for i, name in enumerate(service.depends_on):
            if name in known_but_off:
                yield (*path, "depends_on", i), f"{name!r} is not enabled; enable it or remove this"
            elif name not in known and name not in unusable:
                text = f"there is no service {name!r}; there are: {', '.join(sorted(known))}"
                yield (*path, "depends_on", i), text
    edges = {name: service.depends_on for name, service in known.items()}
    places = {str(path[-1]): path for path, _ in services(cluster)}
    reported: set[str] = set()
    for name in edges:
        circle = _circle(name, edges)
        if circle and not reported & set(circle):
            reported |= set(circle)
            text = f"runs in a circle: {' -> '.join(circle)}; remove one of these dependencies"
            yield (*places[name], "depends_on"), text


def _circle(start: str, edges: dict[str, tuple[str, ...]]) -> list[str] | None:
    """A way from ``start`` back to itself, or None."""
    trail: list[str] = []
    seen: set[str] = set()

    def walk(name: str) -> bool:
        trail.append(name)
        for below in edges.get(name, ()):
            if below == start:
                trail.append(below)
                return True
            if below not in seen:
                seen.add(below)
                if walk(below):
                    return True
        trail.pop()
        return False

    return trail if walk(start) else None


def _files(cluster: Cluster, base: FilePath) -> Iterator[Finding]:
    for name, worker in cluster.workers.items():
        place: Path = ("workers", name)
        if isinstance(worker, OneModel):
            yield from _model_path((*place, "model_path"), worker.model_path, base)
        if isinstance(worker, MultiModelWorker):
            for i, model in enumerate(worker.models):
                yield from _model_path((*place, "models", i, "model_path"), model.model_path, base)
        info = getattr(worker, "model_info_file", None)
        if info is not None and not resolve(base, info).is_file():
            yield (*place, "model_info_file"), f"there is no file {resolve(base, info)}; create it"


def _model_path(path: Path, value: str, base: FilePath) -> Iterator[Finding]:
    if looks_local(base, value) and not resolve(base, value).exists():
        yield path, f"there is no model at {resolve(base, value)}; mend the path or download it"


def _questions(path: Path, service: Service) -> Iterator[Finding]:
    asked: list[tuple[Path, Question | None]] = [
        ((*path, "probes", name), getattr(service.probes, name))
        for name in ("startup", "readiness", "liveness")
    ]
    asked.append(((*path, "ready"), getattr(service, "ready", None)))
    for place, question in asked:
        if question is None:
            continue
        kinds = [k for k in ("http", "tcp", "command", "fastchat") if getattr(question, k)]
        if len(kinds) > 1:
            yield (
                (*place, kinds[-1]),
                f"a probe asks one question; choose one of {', '.join(kinds)}",
            )
        if "fastchat" in kinds and not isinstance(service, Worker):
            yield (*place, "fastchat"), "only workers can be asked this; use http, tcp or command"


def _gpus(path: Path, worker: Worker) -> Iterator[Finding]:
    if worker.gpus and worker.num_gpus and worker.num_gpus > len(worker.gpus):
        text = f"num_gpus is {worker.num_gpus}, but only {len(worker.gpus)} are listed in gpus"
        yield (*path, "num_gpus"), f"{text}; list more or lower it"
    if worker.gpus and getattr(worker, "device", "cuda") == "cpu":
        yield (*path, "gpus"), "device is cpu, which sees no GPU; remove gpus or set device: cuda"


def _quantization(path: Path, worker: ModelOptions) -> Iterator[Finding]:
    if worker.cpu_offloading and not worker.load_8bit:
        text = "works only with 8-bit quantization; add load_8bit: true or remove it"
        yield (*path, "cpu_offloading"), text
    chosen = ["load_8bit"] if worker.load_8bit else []
    chosen += [name for name in ("gptq", "awq", "xft") if getattr(worker, name, None)]
    if len(chosen) > 1:
        text = f"{' and '.join(chosen)} exclude each other; choose one quantization"
        yield (*path, chosen[-1]), text
    if worker.xft and worker.device != "cpu":
        yield (*path, "xft"), "xFasterTransformer runs on CPUs only; set device: cpu or remove it"
    if isinstance(worker, ModelWorker) and worker.awq and worker.exllama:
        yield (*path, "exllama"), "exllama is a kernel for GPTQ models; remove it or awq"
