"""How an API server ends, and how another one takes its place on the same socket."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener


@pytest.fixture
def start_server(start, controller):
    def start_server(**options):
        server = start("openai_api_server", "--controller-address", controller.url, **options)
        server.wait_until_served("GET", "/health")
        server.wait_until_logged("Application startup complete")
        return server

    return start_server


@pytest.fixture
def in_background():
    with ThreadPoolExecutor() as executor:
        yield executor.submit


@pytest.fixture
def held(controller, fake_worker, register_worker):
    """A worker that stops in the middle of each stream until `go_on` is set."""
    worker = fake_worker()
    worker.halted, worker.go_on = threading.Event(), threading.Event()

    def hold(words):
        if words == 1:
            worker.halted.set()
            worker.go_on.wait()

    worker.hook = hold
    register_worker(controller, worker.url, "held")
    yield worker
    worker.go_on.set()
    httpx.post(controller.url + "/deregister_worker", json={"worker_name": worker.url})


def stream(server):
    body = {"model": "held", "messages": QUESTION, "stream": True}
    return httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).text


def wait_until_refused(server):
    with contextlib.suppress(ConnectionError):
        while True:
            socket.create_connection(("127.0.0.1", server.port)).close()


def answered(client):
    with http.client.HTTPResponse(client) as answer:
        answer.begin()
        assert answer.status == 200
        assert answer.read()
        return answer


@pytest.mark.parametrize("begun", [0, 10])
def test_a_client_that_was_idle_is_answered_after_sigterm(start_server, begun):
    server = start_server()
    question = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(question)
        assert answered(client).headers["Connection"] is None

        client.sendall(question[:begun])
        server.popen.send_signal(signal.SIGTERM)
        wait_until_refused(server)
        client.sendall(question[begun:])
        assert answered(client).headers["Connection"] == "close"
    assert server.exit_status() == -signal.SIGTERM


def test_a_stream_is_finished_after_sigterm(start_server, held, in_background):
    server = start_server()
    streamed = in_background(stream, server)
    held.halted.wait()
    server.popen.send_signal(signal.SIGTERM)
    server.wait_until_logged("Waiting for connections to close")

    held.go_on.set()
    assert streamed.result().endswith("data: [DONE]\n\n")
    assert server.exit_status() == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_waits_for_no_stream(start_server, held, in_background, second):
    server = start_server()
    streamed = in_background(stream, server)
    held.halted.wait()
    server.popen.send_signal(signal.SIGTERM)
    wait_until_refused(server)
    server.popen.send_signal(second)

    server.exit_status()
    assert isinstance(streamed.exception(), httpx.RemoteProtocolError)


def test_a_successor_on_the_same_socket_misses_no_request(start_server, listener, in_background):
    first = start_server(listener=listener)
    enough = threading.Event()

    def ask(each_time_anew):
        answered = 0
        with httpx.Client(base_url=first.url, timeout=60) as client:
            while not enough.is_set():
                headers = {"Connection": "close"} if each_time_anew else {}
                assert client.get("/health", headers=headers).status_code == 200
                answered += 1
        return answered

    askers = [in_background(ask, each_time_anew) for each_time_anew in (True, False) * 2]
    try:
        second = start_server(listener=listener)
        assert first.exit_status_after(signal.SIGTERM) == -signal.SIGTERM
        assert httpx.get(second.url + "/health").status_code == 200
        assert second.popen.poll() is None
    finally:
        enough.set()
    assert all(asker.result() for asker in askers)


def test_the_socket_is_kept_from_children(start_server, listener):
    server = start_server(listener=listener)
    with open(f"/proc/{server.popen.pid}/fdinfo/{listener.fileno()}") as info:
        flags = next(line for line in info if line.startswith("flags:")).split()[1]

    assert int(flags, 8) & os.O_CLOEXEC


def test_a_socket_that_does_not_listen_is_refused(start):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        server = start("openai_api_server", listener=deaf)

        assert server.exit_status() == 1
        assert "it does not listen" in server.log().splitlines()[-1]


@pytest.mark.parametrize("number", ["", "one", "77"])
def test_a_number_of_no_socket_is_refused(start, number):
    server = start("openai_api_server", env={"LLM_SUPERVISOR_LISTEN_FD": number})

    assert server.exit_status() == 1
    assert "LLM_SUPERVISOR_LISTEN_FD" in server.log().splitlines()[-1]
