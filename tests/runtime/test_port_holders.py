"""Whether a port can be listened on, and who holds it."""

from __future__ import annotations

import os
import socket

from harness import free_ports

from supervisor.runtime.ports import why_taken


def test_a_free_port_can_be_had():
    (port,) = free_ports(1)
    assert why_taken("127.0.0.1", port) is None


def test_a_taken_port_names_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            why = why_taken(host, port)
            assert f"port {port} is in use by" in why
            assert f"(pid {os.getpid()})" in why


def test_a_connection_that_winds_down_is_no_obstacle():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # the server's side closes first, and stays in TIME_WAIT
    assert why_taken("127.0.0.1", port) is None


def test_an_address_that_is_not_ours():
    assert "no address of this machine" in why_taken("192.0.2.1", 21001)


def test_a_host_that_is_unknown():
    assert "is not known here" in why_taken("no-such-host.invalid", 21001)
