"""Whether a port can be listened on, and who holds it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from harness import free_ports

from supervisor.runtime import tree
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


SERVE = """if True:
    import socket, sys
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()  # until the test ends
"""
BELOW = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.fixture
def serve():
    """Starts a process whose mark is `cluster/owl-0` and that serves; the port."""
    with contextlib.ExitStack() as stack:

        def start(*words):
            process = subprocess.Popen(
                [sys.executable, "-c", *words],
                env={**os.environ, tree.MARK: "cluster/owl-0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            return int(process.stdout.readline())

        yield start


@pytest.mark.parametrize("words", [[SERVE], [BELOW, SERVE]], ids=["child", "below a child"])
def test_nobody_is_told_to_kill_what_is_ours(serve, words):
    why = why_taken("127.0.0.1", serve(*words))
    assert "in use by owl-0 of this cluster (pid " in why
    assert why.endswith("which is about to end or to be replaced; try again in a moment")


def test_what_another_supervisor_runs_is_told_as_such(serve, monkeypatch):
    monkeypatch.setattr(tree, "descendants", lambda pid: [])
    why = why_taken("127.0.0.1", serve(SERVE))
    assert "in use by owl-0 of another cluster" in why
    assert "kill" in why


def test_a_socket_that_we_hold_is_ours():
    with socket.create_server(("127.0.0.1", 0)) as server:
        why = why_taken("0.0.0.0", server.getsockname()[1])
    assert f"a listening socket of this cluster (pid {os.getpid()})" in why


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
