"""The controller's entry module, beside FastChat's own controller."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

WORKER = "http://127.0.0.1:1"  # nobody listens there


@pytest.fixture
def registered_ghost(controller, plain_controller, register_worker):
    """A worker that is registered in both controllers and cannot be asked."""
    register_worker(controller, WORKER, "ghost")
    register_worker(plain_controller, WORKER, "ghost")
    yield
    httpx.post(controller.url + "/deregister_worker", json={"worker_name": WORKER})


def workers_of(controller):
    return httpx.get(controller.url + "/workers").json()["workers"]


def models_of(controller):
    return httpx.post(controller.url + "/list_models").json()["models"]


@pytest.mark.usefixtures("registered_ghost")
def test_it_lists_its_workers(controller, plain_controller):
    ghost = workers_of(controller)[WORKER]

    assert ghost.pop("last_heart_beat") > 0
    assert ghost == {
        "model_names": ["ghost"],
        "speed": 1,
        "queue_length": 0,
        "check_heart_beat": False,
        "multimodal": False,
    }
    assert httpx.get(plain_controller.url + "/workers").status_code == 404


@pytest.mark.usefixtures("registered_ghost")
def test_it_deregisters_a_worker(controller, plain_controller):
    def deregister(controller):
        return httpx.post(controller.url + "/deregister_worker", json={"worker_name": WORKER})

    assert deregister(controller).json() == {"existed": True}
    assert WORKER not in workers_of(controller)
    assert "ghost" not in models_of(controller)
    assert deregister(controller).json() == {"existed": False}
    assert deregister(plain_controller).status_code == 404


@pytest.mark.usefixtures("registered_ghost")
def test_a_refresh_keeps_registrations(controller, plain_controller):
    for each in (controller, plain_controller):
        assert httpx.post(each.url + "/refresh_all_workers", timeout=30).status_code == 200

    assert "ghost" in models_of(controller)
    assert "ghost" not in models_of(plain_controller)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -15)])
def test_it_ends_on_a_signal(start, signum, status):
    controller = start("controller")
    controller.wait_until_served("GET", "/test_connection")

    assert controller.exit_status_after(signum) == status


def test_it_ends_when_its_port_is_taken(start, taken_port):
    controller = start("controller", port=taken_port)

    assert controller.exit_status() == 3
    last_line = controller.log().splitlines()[-1]
    assert "cannot serve" in last_line
    assert "address already in use" in last_line


def test_the_plain_controller_has_a_thread_that_keeps_it_from_ending():
    code = """
import os
from fastchat.serve.controller import Controller
os._exit(Controller("lottery").heart_beat_thread.daemon)
"""
    assert subprocess.run([sys.executable, "-c", code], env={"LOGDIR": ""}).returncode == 0


@pytest.mark.usefixtures("registered_ghost")
def test_what_is_asked_every_few_seconds_is_not_logged(controller, plain_controller):
    heart_beat = {"worker_name": WORKER, "queue_length": 0}
    for each in (controller, plain_controller):
        httpx.get(each.url + "/test_connection")
        httpx.get(each.url + "/workers")
        httpx.post(each.url + "/receive_heart_beat", json=heart_beat)
        httpx.post(each.url + "/list_models")

    for line in ("/test_connection", "/receive_heart_beat", "Receive heart beat."):
        assert line not in controller.log()
        assert line in plain_controller.log()
    assert "GET /workers" not in controller.log()
    assert "POST /list_models" in controller.log()
    assert "POST /register_worker" in controller.log()


def test_what_fails_is_logged(controller):
    httpx.post(controller.url + "/workers")

    assert "POST /workers" in controller.log()
