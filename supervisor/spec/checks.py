"""What must hold between fields. Pure but for the question whether a local path is there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from supervisor.spec.model import (
    SINGLETONS,
    ApiServer,
    Cluster,
    Controller,
    ModelOptions,
    ModelWorker,
    MultiModelWorker,
    OneModel,
    PythonService,
    Question,
    Service,
    Worker,
)
from supervisor.spec.paths import looks_local, resolve
from supervisor.spec.problems import Path

if TYPE_CHECKING:
    import ssl

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
    yield from _tls(cluster, base)
    for path, service in services(cluster):
        yield from _questions(path, service)
        yield from _args(path, service)
        yield from _launch(path, service)
    for name, worker in cluster.workers.items():
        path = ("workers", name)
        yield from _gpus(path, worker)
        yield from _rollout(path, worker)
        if isinstance(worker, ModelOptions):
            yield from _quantization(path, worker)


def services(cluster: Cluster) -> Iterator[tuple[Path, Service]]:
    """Every service that is to run here, with its place."""
    for name, service in (
        ("controller", cluster.own_controller),
        ("api_server", cluster.api_server),
        ("web_server", cluster.web_server),
    ):
        if service is not None and service.enabled:
            yield (name,), service
    for name, worker in cluster.workers.items():
        if worker.enabled:
            yield ("workers", name), worker
    for name, command in cluster.services.items():
        if command.enabled:
            yield ("services", name), command


def _launch(path: Path, service: Service) -> Iterator[Finding]:
    forked = isinstance(service, Controller | ApiServer | ModelWorker | MultiModelWorker)
    if isinstance(service, PythonService) and service.launch == "warm" and not forked:
        text = "cannot be warm: what it runs may fork itself, or use the GPU before; make it `auto`"
        yield (*path, "launch"), text


def _controller(cluster: Cluster) -> Iterator[Finding]:
    controller = cluster.controller
    if controller and controller.external:
        for field in sorted(controller.model_fields_set - {"external", "description"}):
            text = "has no meaning beside `external`, which runs elsewhere; remove one of them"
            yield ("controller", field), text
        yield from _reachable(cluster, controller.external)
    elif controller and not controller.enabled and cluster.needs_controller:
        text = "workers and servers need a controller; enable it, or name one with `external`"
        yield ("controller", "enabled"), text


def _reachable(cluster: Cluster, controller: str) -> Iterator[Finding]:
    """A controller on another machine must reach our workers under the address they give it."""
    if _is_here(urlsplit(controller).hostname or ""):
        return
    for name, worker in cluster.workers.items():
        if worker.enabled and _is_here(worker.host):
            text = (
                f"the controller at {controller} cannot reach a worker at {worker.host}; "
                "set host to an address of this machine in that network"
            )
            yield ("workers", name, "host"), text


def _is_here(host: str) -> bool:
    """Whether a host means this machine only, or all its addresses and so none in particular."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def _names(cluster: Cluster) -> Iterator[Finding]:
    taken: dict[str, str] = dict.fromkeys(SINGLETONS, "the cluster's own service of that name")
    for name in ("controller.b", "api_server.b"):  # see roles.beside
        taken[name] = "what takes over from the cluster's own service"
    taken["supervisor"] = "the supervisor itself, for its log"
    for service, worker in cluster.workers.items():
        for i in range(worker.replicas):
            for name in (f"{service}-{i}", f"{service}-{i}.b"):  # see roles.beside
                taken[name] = f"replica {i} of workers.{service}"
    for group in ("workers", "services"):
        for name in getattr(cluster, group):
            if name in taken:
                yield (group, name), f"the name {name!r} is taken by {taken[name]}; choose another"
            taken[name] = f"{group}.{name}"
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
    if cluster.control is not None:
        taken[cluster.control.port] = "control"
    for path, service in services(cluster):
        port = getattr(service, "port", None)
        if port is None:
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
    if cluster.controller and cluster.controller.external:
        known["controller"] = Service()  # there already
    known_but_off = {*cluster.workers, *cluster.services, *_singletons(cluster)} - known.keys()
    for path, service in services(cluster):
        for i, name in enumerate(service.depends_on):
            if name in known_but_off:
                yield (*path, "depends_on", i), f"{name!r} is not enabled; enable it or remove this"
            elif name not in known and name not in unusable:
                text = f"there is no service {name!r}; there are: {', '.join(sorted(known))}"
                yield (*path, "depends_on", i), text
    edges = {name: service.depends_on for name, service in known.items()}
    places = {str(path[-1]): path for path, _ in services(cluster)}
    for circle in _circles(edges):
        text = f"runs in a circle: {' -> '.join(circle)}; remove one of these dependencies"
        yield (*places[circle[0]], "depends_on"), text


def _singletons(cluster: Cluster) -> Iterator[str]:
    return (name for name in SINGLETONS if getattr(cluster, name) is not None)


def _circles(edges: Mapping[str, Collection[str]], most: int = 20) -> Iterator[list[str]]:
    """Ways from a service back to itself, ``[a, b, a]``, no two through the same service."""
    left = dict(edges)
    for _ in range(most):
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            way = list(reversed(error.args[1][1:]))
            first = way.index(min(way, key=list(edges).index))
            yield [*way[first:], *way[:first], way[first]]
            left = {name: below for name, below in left.items() if name not in way}
        else:
            return


def _files(cluster: Cluster, base: FilePath) -> Iterator[Finding]:
    for name, worker in cluster.workers.items():
        place: Path = ("workers", name)
        if isinstance(worker, OneModel):
            yield from _model_path((*place, "model_path"), worker.model_path, base)
        if isinstance(worker, MultiModelWorker):
            for i, model in enumerate(worker.models):
                yield from _model_path((*place, "models", i, "model_path"), model.model_path, base)
        info = getattr(worker, "model_info_file", None)
        if info is not None and not os.path.isfile(resolve(base, info)):
            yield (*place, "model_info_file"), f"there is no file {resolve(base, info)}; create it"


def _tls(cluster: Cluster, base: FilePath) -> Iterator[Finding]:
    control = cluster.control
    if control is None:
        return
    cert, key = control.tls_cert, control.tls_key
    if cert is None or key is None:
        if given := "tls_cert" if cert else "tls_key" if key else "":
            other = "tls_key" if given == "tls_cert" else "tls_cert"
            yield ("control", given), f"TLS needs {other}, too; add it or remove this"
        return
    try:
        tls_context(resolve(base, cert), resolve(base, key))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not in PEM"
        text = f"cannot use {resolve(base, cert)} with {resolve(base, key)}: {why}"
        yield ("control", "tls_cert"), f"{text}; name a PEM certificate and its key"


def tls_context(cert: FilePath, key: FilePath) -> ssl.SSLContext:
    """A server's context. Raises OSError or ValueError where the two are of no use."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key with a password must be an error: nobody sits there to type it.
    context.load_cert_chain(cert, key, password=lambda: "")
    return context


def _model_path(path: Path, value: str, base: FilePath) -> Iterator[Finding]:
    if looks_local(base, value) and not os.path.exists(resolve(base, value)):
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
        if question.tcp and not 0 < int(question.tcp.rpartition(":")[2]) < 65536:
            yield (*place, "tcp"), "a port is a number from 1 to 65535; mend it"
        if "fastchat" in kinds and not isinstance(service, Worker):
            yield (*place, "fastchat"), "only workers can be asked this; use http, tcp or command"


def _args(path: Path, service: Service) -> Iterator[Finding]:
    """Flags that the supervisor gives itself: given twice, the addresses would be lies."""
    for i, word in enumerate(getattr(service, "args", ())):
        field = _OWN_FLAGS.get(word.partition("=")[0].replace("_", "-"))
        if field:
            yield (*path, "args", i), f"{field}; remove it here"


_OWN_FLAGS = {
    "--host": "give the address in the field `host`",
    "--port": "give the port in the field `port`",
    "--gpus": "give the GPUs in the field `gpus`",
    "--api-keys": "all users of this machine can read flags; give keys in `api_keys`",
    "--worker-address": "the supervisor gives the address, from host and port",
    "--controller-address": "the supervisor gives the address, from the section `controller`",
    "--controller-url": "the supervisor gives the address, from the section `controller`",
    "--no-register": "the supervisor registers workers itself",
}


def _gpus(path: Path, worker: Worker) -> Iterator[Finding]:
    if worker.gpus and worker.num_gpus and worker.num_gpus > len(worker.gpus):
        text = f"num_gpus is {worker.num_gpus}, but only {len(worker.gpus)} are listed in gpus"
        yield (*path, "num_gpus"), f"{text}; list more or lower it"
    if worker.gpus and getattr(worker, "device", "cuda") == "cpu":
        yield (*path, "gpus"), "device is cpu, which sees no GPU; remove gpus or set device: cuda"


def _rollout(path: Path, worker: Worker) -> Iterator[Finding]:
    if worker.rollout == "surge" and worker.port is not None:
        text = "a surge needs a second port beside `port`; remove port, or use rollout: recreate"
        yield (*path, "rollout"), text


def _quantization(path: Path, worker: ModelOptions) -> Iterator[Finding]:
    if worker.cpu_offloading and not worker.load_8bit:
        text = "works only with 8-bit quantization; add load_8bit: true or remove it"
        yield (*path, "cpu_offloading"), text
    gpus = worker.num_gpus or len(worker.gpus) // max(1, worker.replicas)
    if worker.load_8bit and gpus > 1 and not worker.cpu_offloading:
        text = "FastChat loads 8 bits on one GPU only, on more it silently loads 16"
        yield (*path, "load_8bit"), f"{text}; set num_gpus: 1 or add cpu_offloading: true"
    chosen = ["load_8bit"] if worker.load_8bit else []
    methods = ("gptq", "awq", "exllama", "xft")
    chosen += [name for name in methods if getattr(worker, name, None)]
    if len(chosen) > 1:
        text = f"{' and '.join(chosen)} exclude each other; choose one quantization"
        yield (*path, chosen[-1]), text
    if worker.xft and worker.device != "cpu":
        yield (*path, "xft"), "xFasterTransformer runs on CPUs only; set device: cpu or remove it"
