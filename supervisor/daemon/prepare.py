"""From a cluster file to instances that can be launched: ports checked and given out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from supervisor.core.instance import InstanceSpec
from supervisor.core.order import StartLimit
from supervisor.core.plan import candidates
from supervisor.core.ports import NoPortLeft, assign
from supervisor.fastchat import roles
from supervisor.runtime import memory
from supervisor.runtime.ports import why_taken
from supervisor.spec.load import ClusterFile
from supervisor.spec.model import Cluster
from supervisor.spec.problems import Path as Place


def prepare(
    file: ClusterFile,
    remembered: Mapping[str, int],
    environ: Mapping[str, str],
    *,
    running: Mapping[str, int] | None = None,
) -> dict[str, InstanceSpec]:
    """Instances by name. ``remembered`` are the ports of the last run, by instance, ``running``
    those that our own instances hold now. Raises ``SpecError`` for ports that strangers hold.
    """
    return _Ports(file, remembered, running or {}).expand(environ)


def ports_of(specs: Iterable[InstanceSpec]) -> dict[str, int]:
    """What the next run is to remember."""
    forms = (form for spec in specs for form in candidates(spec))
    return {form.name: form.port for form in forms if form.port is not None}


def start_limit(cluster: Cluster) -> StartLimit:
    """How many workers may be starting at once; `auto` is worked out for the machine as it is now.

    An import keeps a core busy, and loading brings a model's weights into memory, if only on their
    way to a GPU.
    """
    if cluster.max_parallel_starts != "auto":
        return StartLimit(cluster.max_parallel_starts)
    cores = len(os.sched_getaffinity(0))
    return StartLimit(max(_LEAST_STARTS, cores), memory.available())


_LEAST_STARTS = 2
"""While one waits for the disk, another one can import."""


class _Ports:
    def __init__(
        self, file: ClusterFile, remembered: Mapping[str, int], running: Mapping[str, int]
    ) -> None:
        self._file = file
        self._remembered = {**remembered, **running}
        self._running = running
        self._ours = set(running.values())
        workers = roles.replicas(file.cluster)
        self._hosts = {worker.host for _, _, worker, _ in workers}

    def expand(self, environ: Mapping[str, str]) -> dict[str, InstanceSpec]:
        cluster = self._file.cluster
        fixed = {one.instance: one.port for one in roles.listeners(cluster)}
        if cluster.control is not None:
            fixed["the control API"] = cluster.control.port
        findings = list(self._taken_by_strangers())
        try:
            chosen = self._assign(roles.without_port(cluster), set(fixed.values()))
        except NoPortLeft as none_left:
            first, last = cluster.port_range
            name = none_left.instance
            text = f"no free port is left for {name}; make the range {first}-{last} wider"
            findings.append((("port_range",), text))
        if findings:
            raise self._file.error(findings)
        # Where a surge finds no port, it is done in place, as if the file said `recreate`.
        names = roles.without_port_beside(cluster, self._running)
        for name in sorted(names, key=lambda name: name not in self._running):
            used = {*fixed.values(), *chosen.values()}
            try:
                chosen |= self._assign([name], used)
            except NoPortLeft:
                break
        return roles.expand(self._file, chosen, environ)

    def _taken_by_strangers(self) -> Iterator[tuple[Place, str]]:
        for listener in roles.listeners(self._file.cluster):
            if listener.port not in self._ours:
                why = why_taken(listener.host, listener.port)
                if why is not None:
                    yield listener.place, why

    def _assign(self, names: list[str], taken: set[int]) -> dict[str, int]:
        first, last = self._file.cluster.port_range
        return assign(
            names,
            taken=taken,
            remembered=self._remembered,
            first=first,
            last=last,
            is_free=self._is_free,
        )

    def _is_free(self, name: str, port: int) -> bool:
        if port in self._ours:
            return self._running.get(name) == port
        return all(why_taken(host, port) is None for host in self._hosts)
