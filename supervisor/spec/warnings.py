"""What is allowed in a file, and yet should be known: doors that stand open. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from supervisor.spec.checks import Finding, services
from supervisor.spec.model import ApiServer, Cluster, Controller, Worker


def warnings(cluster: Cluster) -> Iterator[Finding]:
    """Every warning as (place, what it means and what to do). None of them is an error."""
    for path, service in services(cluster):
        host = getattr(service, "host", "")
        if not host or is_loopback(host):
            continue
        if isinstance(service, Controller | Worker):
            what = "controller" if isinstance(service, Controller) else "workers"
            yield (*path, "host"), f"{host} is reached from other machines, {_UNGUARDED[what]}"
        elif isinstance(service, ApiServer) and not service.api_keys:
            yield (*path, "host"), f"{host} is reached from other machines, {_UNGUARDED['keys']}"
    control = cluster.control
    if control is not None and not is_loopback(control.host) and control.tls_cert is None:
        text = f"{control.host} is reached from other machines, {_UNGUARDED['tls']}"
        yield ("control", "host"), text


_UNGUARDED = {
    "controller": "and FastChat's controller asks for no password: whoever reaches it can take "
    "models away or pose as one; let only the cluster's machines reach this port",
    "workers": "and FastChat's workers ask for no password or API key: whoever reaches it can use "
    "the model; let only the cluster's machines reach this port",
    "keys": "and without api_keys everybody there can use the models; add api_keys",
    "tls": "and without TLS whoever listens in between reads the token; add tls_cert and tls_key",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; a name that is not localhost may
    mean anything."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
