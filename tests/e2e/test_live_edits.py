"""A running FastChat cluster is changed by its operator: from the command line and over the API."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from demo import demo_file
from harness import ROOT, Cluster, free_ports, until

pytestmark = pytest.mark.e2e

COMMENT = "# the owl is for night shifts\n"


@dataclass
class Live:
    cluster: Cluster
    url: str

    def chat(self, model: str, **options: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **options}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in self.cluster.status()["instances"]}

    def do(self, verb: str, *words: str) -> str:
        done = self.cluster.run(verb, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    controller, api = free_ports(2)
    cluster = Cluster(tmp_path_factory.mktemp("live"))
    cluster.write(COMMENT + demo_file(controller, api).replace("replicas: 2", "replicas: 1"))
    yield Live(cluster.up().ready(), f"http://127.0.0.1:{api}")
    cluster.down()


@pytest.fixture
def live(started):
    """As it was at first, but for what the story before has left on purpose."""
    before = started.cluster.file.read_text()
    yield started
    if started.cluster.file.read_text() != before:
        started.cluster.file.write_text(before)
        started.do("reload")


def test_a_third_model_is_added_and_answers_and_nothing_else_is_touched(live):
    before = live.pids()
    shown = live.do("add", "tiny-cat", "--model-path", str(ROOT / "models/tiny-cat"))
    assert "+" in shown
    assert "tiny-cat-0" in shown
    answer = live.chat("tiny-cat")
    assert answer.status_code == 200
    assert "cat" in answer.json()["choices"][0]["message"]["content"]
    assert {name: live.pids()[name] for name in before} == before
    assert live.cluster.file.read_text().startswith(COMMENT)
    live.do("remove", "tiny-cat")
    assert live.pids() == before
    assert live.chat("tiny-cat").status_code != 200


def test_a_worker_is_scaled_and_the_first_replica_stays(live):
    before = live.pids()
    live.do("scale", "tiny-fox", "2")
    assert set(live.pids()) == {*before, "tiny-fox-1"}
    live.do("scale", "tiny-fox", "1")
    assert live.pids() == before


def test_a_switched_model_takes_over_when_it_answers(live):
    before = live.pids()
    live.do("set", "tiny-fox", f"model_path={ROOT}/models/tiny-cat")
    after = live.pids()
    assert "tiny-fox-0" not in after
    assert after["tiny-fox-0.b"] not in before.values()
    assert "cat" in live.chat("tiny-fox").json()["choices"][0]["message"]["content"]


def test_a_version_that_cannot_start_is_given_up_and_the_old_one_serves_on(live):
    before = live.pids()
    done = live.cluster.run("set", "tiny-fox", "args=[--no-such-flag]")
    assert done.returncode == 1
    assert "unrecognized arguments: --no-such-flag" in done.stderr
    assert live.chat("tiny-fox").status_code == 200
    until(lambda: live.pids() == before, "the new one is gone")
    assert "--no-such-flag" in live.do("status")
    assert "--no-such-flag" in live.do("why", "tiny-fox")


def test_other_names_are_told_to_the_controller_and_no_process_changes(live):
    before = live.pids()
    live.do("set", "tiny-owl", "model_names=[tiny-owl, gpt-4]")
    assert live.chat("gpt-4").status_code == 200
    assert live.pids() == before


def test_a_moved_controller_restarts_no_worker(live):
    before = live.pids()
    (port,) = free_ports(1)
    live.do("set", "controller", f"port={port}")
    after = live.pids()
    assert after["controller.b"] not in before.values()
    workers = {name for name in before if name.startswith("tiny")}
    assert {name: after[name] for name in workers} == {name: before[name] for name in workers}
    assert live.chat("tiny-owl").status_code == 200


def test_keys_change_and_no_request_is_refused_a_connection(live):
    """The old server goes on until the new one answers, on the same socket."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        number = live.cluster.status()["cluster"]["last_event"]
        live.cluster.run("set", "api_server", "api_keys=[sk-new]", "--no-wait")
        codes = set()

        def is_settled():
            codes.add(client.get(f"{live.url}/health").status_code)
            codes.add(httpx.get(f"{live.url}/health", trust_env=False).status_code)
            status = live.cluster.status()["cluster"]
            return status["last_event"] > number and status["state"] == "ready"

        until(is_settled, "the new server has taken over")
    assert codes == {200}
    assert live.chat("tiny-owl").status_code == 401


def test_a_restart_of_a_worker_is_a_rollout(live):
    before = live.pids()
    live.do("restart", "tiny-owl")
    after = live.pids()
    assert set(before) ^ set(after) == {"tiny-owl-0", "tiny-owl-0.b"}
    assert live.chat("tiny-owl").status_code == 200


def post(cluster: Cluster, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(cluster.run_dir / "control.sock"))
    connection.request("POST", path, json.dumps(body), {"Connection": "close"})
    response = connection.getresponse()
    status, answer = response.status, json.load(response)
    connection.close()
    return status, answer


def test_the_same_edits_over_the_api(live):
    text = live.cluster.file.read_text()
    edits = [{"verb": "set", "name": "tiny-fox", "fields": {"stream_interval": 4}}]
    status, answer = post(live.cluster, "/v1/edit", {"edits": edits, "dry_run": True})
    assert status == 200
    assert "stream_interval: 4" in answer["diff"]
    assert [(one["instance"], one["action"]) for one in answer["changes"]] == [
        ("tiny-fox-0", "roll out")
    ]
    assert live.cluster.file.read_text() == text
    edits = [{"verb": "set", "name": "tiny-fox", "fields": {"description": "sly"}}]
    status, answer = post(live.cluster, "/v1/edit", {"edits": edits})
    assert (status, answer["changes"]) == (200, [])
    assert "sly" in live.cluster.file.read_text()


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"edits": [{"verb": "eat", "name": "tiny-fox"}]}, 400, "verb"),
        ({"edits": [{"verb": "set", "name": "nobody", "fields": {"a": 1}}]}, 422, "nobody"),
        ({"edits": [{"verb": "set", "name": "tiny-fox", "fields": {"gpu": 1}}]}, 422, "gpus"),
    ],
)
def test_a_wrong_edit_over_the_api_changes_nothing(live, body, status, says):
    text = live.cluster.file.read_text()
    found, answer = post(live.cluster, "/v1/edit", body)
    assert (found, says in answer["error"]) == (status, True), answer
    assert live.cluster.file.read_text() == text


def test_what_a_text_would_do_is_planned_without_touching_anything(live):
    before = live.pids()
    text = live.cluster.file.read_text().replace("replicas: 1", "replicas: 2")
    status, answer = post(live.cluster, "/v1/plan", {"text": text})
    assert status == 200
    started = [one["instance"] for one in answer["changes"] if one["action"] != "keep"]
    assert started == ["tiny-owl-1"]
    assert post(live.cluster, "/v1/plan", {"text": "workers: ["})[0] == 422
    assert live.pids() == before
