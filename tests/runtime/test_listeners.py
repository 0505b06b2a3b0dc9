"""Sockets that outlive the processes they are given to."""

from __future__ import annotations

import socket

import pytest
from harness import free_ports

from supervisor.runtime.listeners import Listeners, PortTaken


@pytest.fixture
def listeners():
    one = Listeners()
    yield one
    one.keep(())


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_the_next_server_gets_the_same_socket_and_who_came_between(listeners):
    (port,) = free_ports(1)
    first = listeners.open(("127.0.0.1", port))
    with connect(port), socket.socket(fileno=socket.dup(first)) as server:
        assert listeners.open(("127.0.0.1", port)) == first
        server.accept()[0].close()


def test_what_nobody_serves_any_more_is_refused(listeners):
    (port,) = free_ports(1)
    listeners.open(("127.0.0.1", port))
    listeners.keep({("127.0.0.1", port)})
    connect(port).close()
    listeners.keep(())
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_an_address_takes_the_place_of_another_one_with_its_port(listeners):
    """A host that is edited: nobody can listen at 0.0.0.0 while somebody does at 127.0.0.1."""
    port, other = free_ports(2)
    kept = listeners.open(("127.0.0.1", other))
    listeners.open(("127.0.0.1", port))
    for host in ("0.0.0.0", "127.0.0.1"):
        with socket.socket(fileno=socket.dup(listeners.open((host, port)))) as now:
            assert now.getsockname() == (host, port)
    assert listeners.open(("127.0.0.1", other)) == kept


def test_as_long_as_a_process_has_the_other_one_the_port_is_taken(listeners):
    (port,) = free_ports(1)
    copy = socket.dup(listeners.open(("127.0.0.1", port)))
    with socket.socket(fileno=copy), pytest.raises(PortTaken, match="try again in a moment"):
        listeners.open(("0.0.0.0", port))
    listeners.open(("0.0.0.0", port))


def test_a_port_that_another_process_has_is_told_with_its_name(listeners):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(PortTaken, match="in use by") as refused:
            listeners.open(("127.0.0.1", stranger.getsockname()[1]))
    assert refused.value.strerror
