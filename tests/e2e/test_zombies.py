"""What still runs and does not work any more, for real: found, out of rotation, and replaced.

And what only looks like it, and is left alone. The faults are made in FastChat's own processes
(``tests/faults/sitecustomize.py``); the supervisor is told nothing of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo import demo_file
from harness import ROOT, Cluster, alive, free_ports, until

pytestmark = pytest.mark.e2e

STALL_AFTER = 3.0
EVER = 600
"""Seconds; longer than any of these stories."""
PROBES = f"""
  probes:
    startup: {{interval: 50ms}}
    readiness: {{interval: 200ms, timeout: 500ms, failures: 2}}
    liveness: {{interval: 300ms, timeout: 700ms, failures: 3}}
    progress: {{interval: 200ms, stall_after: {STALL_AFTER}s, idle_after: {EVER}s}}
  restart: {{backoff: 0s}}
"""

GENERATED = '"POST /worker_generate HTTP'


@dataclass
class Ward:
    """A cluster with a patient: each process reads what is to go wrong in it from a file."""

    cluster: Cluster
    url: str
    controller: str
    orders: Path

    def arm(self, name: str, place: str, fault: str) -> None:
        """In the process that serves now, and not in its successor."""
        new = self.orders.with_suffix(".new")
        new.write_text(f"{place} {fault} {self.pid(name)}\n")
        new.replace(self.orders)

    def struck(self, name: str) -> None:
        """Wait until the fault that was armed last has been made."""
        made = f"a fault is made: {self.orders.read_text().strip()}"
        until(lambda: made in self.cluster.log(name), made)

    def pid(self, name: str) -> int:
        return int(self.cluster.instance(name)["pid"])

    def ask_worker(
        self, name: str, path: str, timeout: float = EVER, **more: Any
    ) -> httpx.Response:
        address = self.cluster.instance(name)["address"]
        return httpx.post(
            f"{address}/{path}", json=prompt(**more), timeout=timeout, trust_env=False
        )

    def chat(self, model: str = "tiny-fox") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, timeout=60, trust_env=False)

    def generations(self) -> int:
        """Whole answers of all workers so far, whoever asked for them."""
        names = ("tiny-fox-0", "tiny-owl-0", "tiny-owl-1")
        return sum(self.cluster.log(name).count(GENERATED) for name in names)

    def in_rotation(self, name: str) -> bool:
        with urllib.request.urlopen(f"{self.controller}/workers") as answer:
            return self.cluster.instance(name)["address"] in json.load(answer)["workers"]

    def events_of(self, name: str) -> list[dict[str, Any]]:
        done = self.cluster.run("events", "--json")
        assert done.returncode == 0, done.stderr
        return [e for e in map(json.loads, done.stdout.splitlines()) if e["instance"] == name]

    def replaced(self, name: str, before: int) -> str:
        """Wait until another process serves; why that was, and the old one is gone."""

        def serves() -> bool:
            one = self.cluster.instance(name)
            return one["state"] == "ready" and one["pid"] != before

        until(serves, f"{name} is replaced")
        assert not alive(before)
        self.orders.unlink(missing_ok=True)
        events = [e for e in self.events_of(name) if e["pid"] == before]
        return str(next(e["reason"] for e in events if e["state"] == "stopping"))


def prompt(model: str = "tiny-fox", tokens: int = 16, text: str = "Hello") -> dict[str, Any]:
    return {
        "model": model,
        "prompt": text,
        "input": [text],
        "max_new_tokens": tokens,
        "temperature": 0.0,
    }


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    controller, api = free_ports(2)
    folder = tmp_path_factory.mktemp("ward")
    orders = folder / "orders"
    env = f"env: {{PYTHONPATH: {ROOT}/tests/faults, FAULTS: {orders}}}\n"
    quick = "{liveness: {interval: 300ms, timeout: 1s, failures: 3}}, restart: {backoff: 0s}"
    text = demo_file(controller, api, more=env)
    text = text.replace("defaults: {", "defaults:\n  ").replace(
        ", conv_template", "\n  conv_template"
    )
    text = text.replace("vicuna_v1.1}", f"vicuna_v1.1{PROBES}", 1)
    text = text.replace(f"{{port: {controller}}}", f"{{port: {controller}, probes: {quick}}}")
    text = text.replace(f"{{port: {api}}}", f"{{port: {api}, probes: {quick}}}")
    cluster = Cluster(folder).write(text).up().ready()
    yield Ward(cluster, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{controller}", orders)
    cluster.down()


@pytest.fixture(autouse=True)
def recovered(ward: Ward) -> Iterator[None]:
    """Every story begins with all well, and ends so."""
    ward.orders.unlink(missing_ok=True)
    ward.cluster.ready()
    yield
    ward.orders.unlink(missing_ok=True)


@contextlib.contextmanager
def meanwhile(*asked: Any) -> Iterator[None]:
    """Questions asked beside the story, whose answers may never come."""
    threads = [threading.Thread(target=_quietly, args=(one,), daemon=True) for one in asked]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _quietly(ask: Any) -> None:
    with contextlib.suppress(httpx.HTTPError):
        ask()


# ---------------------------------------------------------------- workers that do not work any more


@pytest.mark.parametrize(("fault", "code"), [("cuda", 50001), ("oom", 50002)])
def test_one_whose_every_generation_fails_is_replaced(ward: Ward, fault: str, code: int) -> None:
    """FastChat answers HTTP 200, and the status as ever."""
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "generate", fault)
    for _ in range(3):
        assert ward.ask_worker("tiny-fox-0", "worker_generate").json()["error_code"] == code
    reason = ward.replaced("tiny-fox-0", before)
    assert reason.startswith("asked for one token, it failed 2 times in a row: error")
    assert str(code) in reason
    assert ward.chat().status_code == 200


def test_a_deadlock_in_a_generation_is_a_hang(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "generate", "deadlock")
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_generate")):
        reason = ward.replaced("tiny-fox-0", before)
    assert reason.startswith("it hangs: a request waits, and nothing has been produced for")


def test_so_is_one_in_the_middle_of_a_stream(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "piece", "deadlock")
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_generate_stream")):
        assert ward.replaced("tiny-fox-0", before).startswith("it hangs:")


def test_with_all_its_slots_leaked_it_hangs(ward: Ward) -> None:
    """FastChat never releases the slot of a request that ends in an exception (#3328)."""
    before = ward.pid("tiny-fox-0")
    for leaks in (2, 2, 1):  # never three failures in a row, which would raise a doubt before
        assert ward.ask_worker("tiny-fox-0", "worker_generate").json()["error_code"] == 0
        ward.arm("tiny-fox-0", "generate", "leak")
        for _ in range(leaks):
            _quietly(lambda: ward.ask_worker("tiny-fox-0", "worker_generate_stream"))
        ward.orders.unlink()
    # Nothing is wrong any more, but that nobody gets a turn.
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_generate")):
        reason = ward.replaced("tiny-fox-0", before)
    assert reason.startswith("it hangs:")


def test_exceptions_that_fastchat_does_not_catch_are_failures_too(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "generate", "leak")
    for _ in range(3):
        assert ward.ask_worker("tiny-fox-0", "worker_generate").status_code == 500
    assert "HTTP 500" in ward.replaced("tiny-fox-0", before)


def test_an_event_loop_that_stops_with_nothing_to_do_is_silent_for_too_long(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "status", f"sleep:{EVER}")
    assert ward.replaced("tiny-fox-0", before).startswith("liveness failed 3 times in a row")


def test_an_embedding_that_does_nothing_is_a_hang(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "embed", "deadlock")
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_get_embeddings")):
        assert ward.replaced("tiny-fox-0", before).startswith("it hangs:")


@pytest.mark.parametrize("name", ["tiny-fox-0", "controller", "api_server"])
def test_what_is_frozen_is_replaced(ward: Ward, name: str) -> None:
    before = ward.pid(name)
    os.kill(before, signal.SIGSTOP)
    assert ward.replaced(name, before).startswith("liveness failed 3 times in a row")
    ward.cluster.ready()
    assert ward.chat().status_code == 200


def test_what_is_frozen_at_work_is_replaced_too(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "piece", "sleep:0.2")
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_generate_stream", tokens=200)):
        ward.struck("tiny-fox-0")
        os.kill(before, signal.SIGSTOP)
        ward.replaced("tiny-fox-0", before)


def test_it_is_out_of_rotation_before_it_is_replaced_and_the_other_replica_serves(
    ward: Ward,
) -> None:
    before = ward.pid("tiny-owl-0")
    ward.arm("tiny-owl-0", "generate", "deadlock")
    with meanwhile(
        lambda: ward.ask_worker("tiny-owl-0", "worker_generate", model="tiny-owl"),
    ):
        until(lambda: not ward.in_rotation("tiny-owl-0"), "it is out of rotation")
        assert alive(before)
        assert ward.in_rotation("tiny-owl-1")
        assert ward.chat("tiny-owl").status_code == 200
        ward.replaced("tiny-owl-0", before)


def test_who_takes_over_from_a_killed_supervisor_reads_the_same_record(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "generate", "deadlock")
    with meanwhile(lambda: ward.ask_worker("tiny-fox-0", "worker_generate")):
        ward.struck("tiny-fox-0")
        ward.cluster.kill_supervisor()
        ward.cluster.up()
        reason = ward.replaced("tiny-fox-0", before)
    assert reason.startswith("it hangs:")


# ---------------------------------------------------------------- the API server


def test_an_api_server_that_answers_500_to_everything_is_replaced(ward: Ward) -> None:
    before = ward.pid("api_server")
    ward.arm("api_server", "endpoint", "cuda")
    for _ in range(5):
        assert ward.chat().status_code == 500
    reason = ward.replaced("api_server", before)
    assert reason.endswith("HTTP 500: it answers nothing but errors")
    assert ward.chat().status_code == 200


# ---------------------------------------------------------------- what is left alone


def test_a_slow_embedding_is_no_hang(ward: Ward) -> None:
    """It blocks the event loop for much longer than any probe waits."""
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "embed", "compute:8")
    assert ward.ask_worker("tiny-fox-0", "worker_get_embeddings").status_code == 200
    after = ward.cluster.instance("tiny-fox-0")
    assert (after["pid"], after["state"]) == (before, "ready")
    assert not [
        e for e in ward.events_of("tiny-fox-0") if e["pid"] == before and e["state"] == "unready"
    ]


def test_a_long_stream_with_pieces_in_between_is_no_hang(ward: Ward) -> None:
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "piece", f"sleep:{STALL_AFTER / 3}")
    answer = ward.ask_worker("tiny-fox-0", "worker_generate_stream", tokens=40)
    assert answer.content.count(b"\0") > 12
    assert ward.cluster.instance("tiny-fox-0")["pid"] == before


def test_nor_is_a_whole_answer_that_gets_on(ward: Ward) -> None:
    """At its front nothing shows before the end."""
    before = ward.pid("tiny-fox-0")
    ward.arm("tiny-fox-0", "piece", f"sleep:{STALL_AFTER / 3}")
    assert ward.ask_worker("tiny-fox-0", "worker_generate", tokens=12).json()["error_code"] == 0
    assert ward.cluster.instance("tiny-fox-0")["pid"] == before


def test_a_client_who_asks_nonsense_gets_no_worker_restarted(ward: Ward) -> None:
    """All requests fail, and the supervisor asks for itself."""
    before, asked = ward.pid("tiny-fox-0"), 0

    def the_supervisor_has_asked_too() -> bool:
        nonlocal asked
        for _ in range(4):
            answer = ward.ask_worker("tiny-fox-0", "worker_generate", tokens="many")
            assert answer.json()["error_code"] == 50001
            asked += 1
        return ward.generations() >= begun + asked + 3

    begun = ward.generations()
    until(the_supervisor_has_asked_too, "the supervisor asks for a token, three times")
    assert ward.pid("tiny-fox-0") == before


def test_nor_an_api_server(ward: Ward) -> None:
    """All get a 500, and it asks itself for something that makes sense."""
    before = ward.pid("api_server")
    begun = ward.generations()
    nonsense = {"model": "tiny-fox", "messages": [{"role": "nobody", "content": "Hello"}]}
    url = f"{ward.url}/v1/chat/completions"

    def it_has_asked_itself() -> bool:
        assert httpx.post(url, json=nonsense, timeout=60, trust_env=False).status_code == 500
        return ward.generations() >= begun + 3

    until(it_has_asked_itself, "it asks a worker for a token, three times")
    assert ward.pid("api_server") == before
