"""Whether a port can be listened on, and who holds it if not."""

from __future__ import annotations

import errno
import os
import socket

from supervisor.runtime import tree


def why_taken(host: str, port: int) -> str | None:
    """None if ``host:port`` can be listened on now, else the reason, for people."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return f"the host {host} is not known here; give an address of this machine"
    family, kind, protocol, _, address = infos[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do it: a connection that is still winding down is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} is in use by {_holder(port)}"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} is no address of this machine; give one that is"
            return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    return None


def holder_of(port: int) -> int | None:
    """The pid of who listens on a port; None if nobody does, or that cannot be found out."""
    import psutil  # when a port is taken, and not before

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
        if listens and connection.pid:
            return int(connection.pid)
    return None


def who_holds(port: int, *, unless: str) -> str | None:
    """Who listens on a port, for people; None if nobody does, or the instance ``unless`` itself."""
    pid = holder_of(port)
    if pid is None or (tree.mark_of(pid) or "").endswith(f"/{unless}"):
        return None
    return f"port {port} is in use by {_describe(pid)}"


def _holder(port: int) -> str:
    pid = holder_of(port)
    return _describe(pid) if pid else "another process; stop it or choose another port"


def _describe(pid: int) -> str:
    mark = tree.mark_of(pid)
    name = mark.rpartition("/")[2] if mark else _name(pid)
    if pid == os.getpid() or pid in tree.descendants(os.getpid()):
        if pid == os.getpid():
            name = "a listening socket"  # one that we hold for an instance
        return (
            f"{name} of this cluster (pid {pid}), which is about to end or to be replaced; "
            "try again in a moment"
        )
    if mark:
        # Its supervisor may be well, or have been killed; from here the two look the same.
        return (
            f"{name} of another cluster (pid {pid}); stop that cluster, or, "
            f"if its supervisor is gone, end it with `kill {pid}`"
        )
    return f"{name} (pid {pid}); stop it or choose another port"


def _name(pid: int) -> str:
    import psutil

    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "a process"
