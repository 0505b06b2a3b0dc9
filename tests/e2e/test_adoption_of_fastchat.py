"""The supervisor of a FastChat cluster is killed while it serves, drains and rolls out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo import demo_file
from harness import ROOT, Cluster, alive, die_with_parent, free_ports, until

pytestmark = pytest.mark.e2e


@dataclass
class Left:
    """A cluster whose supervisor can be killed."""

    cluster: Cluster
    url: str
    controller: str

    def take_over(self) -> None:
        self.cluster.kill_supervisor()
        self.cluster.up().ready()

    def workers(self) -> list[str]:
        with urllib.request.urlopen(f"{self.controller}/workers") as answer:
            return sorted(json.load(answer)["workers"])

    def chat(self, model: str, **options: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **options}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    controller, api = free_ports(2)
    cluster = Cluster(tmp_path_factory.mktemp("left")).write(demo_file(controller, api))
    yield Left(cluster.up().ready(), f"http://127.0.0.1:{api}", f"http://127.0.0.1:{controller}")
    cluster.down()


@dataclass
class Asking:
    """Clients that ask for new connections all the time."""

    url: str
    faults: list[str] = field(default_factory=list)
    asked: int = 0

    def __enter__(self) -> Asking:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(3)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = {"model": "tiny-owl", "max_tokens": 8}
        body["messages"] = [{"role": "user", "content": "Hello"}]
        while not self._stop.wait(0.02):
            try:
                answer = httpx.post(
                    f"{self.url}/v1/chat/completions", json=body, timeout=60, trust_env=False
                )
                if answer.status_code != 200:
                    self.faults.append(answer.text)
            except httpx.HTTPError as error:
                self.faults.append(repr(error))
            self.asked += 1


def test_kills_and_upgrades_under_load_fail_no_request(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = str(ROOT / "benchmarks" / "kills.py")
    words = ["--kills", "2", "--upgrades", "1", "--clients", "4", "--json", str(figures)]
    process = subprocess.Popen([sys.executable, script, *words], preexec_fn=die_with_parent)
    try:
        assert process.wait() == 0
    finally:
        process.terminate()
        process.wait(60)
    found = json.loads(figures.read_text())
    assert found["requests"] > 0
    assert (found["failures"], found["surprises"], found["restarts"]) == ([], [], 0)


def test_a_worker_that_died_unseen_gets_no_requests(left: Left) -> None:
    before = left.cluster.pids()
    registered = left.workers()
    left.cluster.kill_supervisor()
    os.kill(before["tiny-fox-0"], signal.SIGKILL)
    left.cluster.up()
    until(lambda: len(left.workers()) == len(registered) - 1, "it is taken out")
    left.cluster.ready()
    assert left.workers() == registered
    assert left.chat("tiny-fox").status_code == 200


def test_an_adopted_api_server_is_replaced_without_a_refused_connection(left: Left) -> None:
    """Its listening socket is that of the killed supervisor, taken from the API server itself."""
    left.take_over()
    before = left.cluster.pids()["api_server"]
    with Asking(left.url) as asking:
        done = left.cluster.run("set", "api_server", "env.NEW=1")
        assert done.returncode == 0, done.stderr
        until(lambda: not alive(before), "the old one has ended")
    assert asking.asked > 0
    assert asking.faults == []


def test_registrations_that_nobody_has_noted_are_taken_back(left: Left) -> None:
    registered = left.workers()
    left.cluster.kill_supervisor()
    stranger = {
        "worker_name": "http://127.0.0.1:9",
        "check_heart_beat": False,
        "worker_status": {"model_names": ["tiny-owl"], "speed": 1, "queue_length": 0},
    }
    assert httpx.post(f"{left.controller}/register_worker", json=stranger).status_code == 200
    assert len(left.workers()) == len(registered) + 1
    left.cluster.up().ready()
    until(lambda: left.workers() == registered, "the stranger is gone")


@pytest.mark.parametrize("moment", ["starting beside", "draining", "started in place"])
def test_killed_in_the_middle_of_a_rollout_it_comes_to_its_end(left: Left, moment: str) -> None:
    """Whichever of old and new was there: one of them serves, and in the end only the new one."""
    cluster = left.cluster
    if moment == "started in place":
        assert cluster.run("set", "tiny-fox", "rollout=recreate").returncode == 0
    old = next(pid for name, pid in cluster.pids().items() if name.startswith("tiny-fox"))
    stream = None
    if moment == "draining":
        stream = _endless(left)
    value = moment.replace(" ", "_")
    done = cluster.run("set", "tiny-fox", f"env.MOMENT={value}", "--no-wait")
    assert done.returncode == 0, done.stderr
    until(lambda: _is_at(cluster, moment, old), moment)
    cluster.kill_supervisor()
    cluster.up()
    if stream is not None:
        stream.close()
    until(lambda: not alive(old), "the old one has ended")
    cluster.ready()
    (new,) = (pid for name, pid in cluster.pids().items() if name.startswith("tiny-fox"))
    assert f"MOMENT={value}".encode() in Path(f"/proc/{new}/environ").read_bytes()
    assert left.chat("tiny-fox").status_code == 200
    assert len(left.workers()) == 3


def _endless(left: Left) -> httpx.Response:
    """A stream that does not end until its client does not want it any more."""
    client = httpx.Client(trust_env=False, timeout=60)
    body = {"model": "tiny-fox", "max_tokens": 1500, "stream": True, "temperature": 1.5}
    body["messages"] = [{"role": "user", "content": "Tell me a story."}]
    request = client.build_request("POST", f"{left.url}/v1/chat/completions", json=body)
    answer = client.send(request, stream=True)
    next(answer.iter_raw())
    return answer


def _is_at(cluster: Cluster, moment: str, old: int) -> bool:
    foxes = [one for one in cluster.status()["instances"] if one["service"] == "tiny-fox"]
    states = {one["state"] for one in foxes}
    match moment:
        case "starting beside":
            return len(foxes) == 2 and "starting" in states
        case "draining":
            return any(one["pid"] == old and one["state"] == "stopping" for one in foxes)
        case _:
            return [one["state"] for one in foxes if one["pid"] != old] == ["starting"]
