"""Parts of the demo cluster are killed; it comes back by itself, and the rest does not notice."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request

import httpx
import pytest
from harness import until

pytestmark = pytest.mark.e2e


def kill(demo, name):
    """kill -9; waits until the supervisor has seen it. The instance as it was."""
    before = demo.cluster.instance(name)
    os.kill(before["pid"], signal.SIGKILL)
    until(
        lambda: demo.cluster.instance(name)["restarts"] == before["restarts"] + 1,
        f"the supervisor restarts {name}",
    )
    return before


def pids(demo):
    return {one["name"]: one["pid"] for one in demo.cluster.status()["instances"]}


def chat(demo, model="tiny-owl"):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": f"Bearer {demo.key}"}
    return httpx.post(
        f"{demo.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False
    )


@pytest.mark.parametrize("name", ["tiny-fox-0", "controller", "api_server"])
def test_what_is_killed_comes_back_and_the_others_stay(healthy_demo, name):
    before = pids(healthy_demo)
    kill(healthy_demo, name)
    healthy_demo.cluster.ready()
    after = pids(healthy_demo)
    assert after.pop(name) != before.pop(name)
    assert after == before
    assert "tiny-fox" in chat(healthy_demo, "tiny-fox").json()["choices"][0]["message"]["content"]
    assert "killed by SIGKILL" in healthy_demo.cluster.run("why", name).stdout


def test_a_controller_that_restarts_gets_all_workers_back(healthy_demo):
    kill(healthy_demo, "controller")
    healthy_demo.cluster.ready()
    with urllib.request.urlopen(f"{healthy_demo.controller}/workers") as answer:
        assert len(json.load(answer)["workers"]) == 3


def test_with_one_of_two_replicas_killed_the_other_serves(healthy_demo):
    """Requests that begin after the supervisor has seen the death do not fail."""
    stop = threading.Event()
    seen_dead = threading.Event()
    failures, served = [], []

    def keep_asking():
        while not stop.is_set():
            began_after = seen_dead.is_set()
            answer = chat(healthy_demo)
            if answer.status_code == 200:
                served.append(began_after)
            elif began_after:
                failures.append(answer.text)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        until(lambda: len(served) > 3, "the cluster serves")
        kill(healthy_demo, "tiny-owl-1")
        seen_dead.set()
        until(lambda: sum(served) > 10, "ten requests are served with one replica")
    finally:
        stop.set()
        asking.join()
    assert not failures


def test_while_the_api_server_is_away_connections_wait_and_none_is_refused(healthy_demo):
    """The supervisor holds its socket."""
    before = healthy_demo.cluster.instance("api_server")
    os.kill(before["pid"], signal.SIGKILL)
    assert chat(healthy_demo).status_code == 200
    assert healthy_demo.cluster.until("api_server", "ready")["pid"] != before["pid"]
