"""From a cluster file to instances that can be launched: ports checked and given out."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.core.instance import InstanceSpec
from supervisor.core.ports import NoPortLeft, assign
from supervisor.fastchat import roles
from supervisor.runtime.ports import why_taken
from supervisor.spec.load import ClusterFile
from supervisor.spec.problems import Path as Place


def prepare(
    file: ClusterFile,
    remembered: Mapping[str, int],
    environ: Mapping[str, str],
    *,
    running: bool = False,
) -> dict[str, InstanceSpec]:
    """Instances by name. ``remembered`` are the ports of the last run, by instance; if ``running``,
    they are in use now, and rightly. Raises ``SpecError`` for ports that strangers hold.
    """
    ours = set(remembered.values()) if running else set()

    def is_free(host: str, port: int) -> bool:
        return port in ours or why_taken(host, port) is None

    findings: list[tuple[Place, str]] = []
    fixed: dict[str, int] = {}
    for listener in roles.listeners(file.cluster):
        fixed[listener.instance] = listener.port
        if listener.port not in ours:
            why = why_taken(listener.host, listener.port)
            if why is not None:
                findings.append((listener.place, why))
    first, last = file.cluster.port_range
    hosts = {name: worker.host for name, _, worker, _ in roles.replicas(file.cluster)}
    names = roles.without_port(file.cluster)
    try:
        chosen = assign(
            names,
            taken=set(fixed.values()),
            remembered=remembered,
            first=first,
            last=last,
            is_free=lambda port: all(is_free(host, port) for host in set(hosts.values())),
        )
    except NoPortLeft as none_left:
        text = f"no free port is left for {none_left.instance}; make the range {first}-{last} wider"
        findings.append((("port_range",), text))
        chosen = {}
    if findings:
        raise file.error(findings)
    return roles.expand(file, chosen, environ)


def ports_of(specs: Mapping[str, InstanceSpec]) -> dict[str, int]:
    """What the next run is to remember."""
    return {name: spec.port for name, spec in specs.items() if spec.port is not None}
