"""The real FastChat, forked from templates: nobody can tell it from one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import warm
from demo import demo_file
from harness import Cluster, alive, free_ports, until

pytestmark = pytest.mark.e2e

API_KEY = "sk-test-key-that-no-template-is-told"
WORKERS = ("tiny-owl-0", "tiny-owl-1", "tiny-fox-0")


@dataclass
class Warm:
    cluster: Cluster
    url: str
    controller: str

    def templates(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.cluster.status()["cluster"]["templates"]}

    def template(self, kind: str) -> int:
        """Pid of the template that is ready."""

        def there() -> int | None:
            found = self.templates()[f"{kind}~template"]
            return found["pid"] if found["state"] == "ready" else None

        pid: int = until(there, f"there is a template for {kind}s")
        return pid

    def how(self, name: str) -> str:
        """The last that was told of how its process came to be."""
        events = self.cluster.run("events", "--json").stdout.splitlines()
        texts = [one["reason"] for one in map(json.loads, events) if one["instance"] == name]
        return next(text for text in reversed(texts) if " as pid " in text)

    def chat(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        key = {"Authorization": f"Bearer {API_KEY}"}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=key, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    controller, api = free_ports(2)
    cluster = Cluster(tmp_path_factory.mktemp("warm")).write(
        demo_file(controller, api, key=API_KEY)
    )
    yield Warm(cluster.up(), f"http://127.0.0.1:{api}", f"http://127.0.0.1:{controller}")
    cluster.down()


@pytest.fixture
def left(running: Warm) -> Warm:
    """With everything ready, whatever the story before has done to it."""
    running.cluster.ready()
    return running


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def fields_of(pid: int, fields: str) -> list[str]:
    done = subprocess.run(
        ["ps", "-ww", "-o", fields, "-p", str(pid)], capture_output=True, text=True
    )
    return done.stdout.split()


def test_in_ps_all_are_what_they_are(left: Warm) -> None:
    pids = left.cluster.pids()
    assert pids.keys() == {"controller", "api_server", *WORKERS}
    assert left.cluster.process is not None
    us = left.cluster.process.pid
    for name, pid in pids.items():
        assert "forked from a warm template" in left.how(name)
        program = {"controller": "controller", "api_server": "openai_api_server"}
        script = program.get(name, "model_worker")
        python, path, *words = command_of(pid)
        assert (Path(python).name[:6], Path(path).name) == ("python", f"{script}.py")
        assert "--port" in words
        assert fields_of(pid, "ppid=,pgid=,sid=") == [str(us), str(pid), str(pid)]
        assert f"{script}.py" in " ".join(fields_of(pid, "args="))
        assert len(os.listdir(f"/proc/{pid}/task")) >= 1
    assert left.chat("tiny-owl").status_code == 200


@pytest.mark.parametrize("name", [*WORKERS[1:], "controller", "api_server"])
def test_what_is_killed_is_back_from_its_template(left: Warm, name: str) -> None:
    before = left.cluster.pids()
    os.kill(before[name], signal.SIGKILL)
    until(lambda: left.cluster.pids().get(name) not in (None, before[name]), "it is back")
    left.cluster.ready()
    assert "forked from a warm template" in left.how(name)
    after = left.cluster.pids()
    assert {one for one in after if after[one] != before[one]} == {name}
    assert left.chat("tiny-fox").status_code == 200


def test_its_template_is_killed_stopped_and_missed_by_nobody(left: Warm) -> None:
    before = left.cluster.pids()
    os.kill(left.template("worker"), signal.SIGKILL)
    stopped = left.template("worker")
    assert left.cluster.pids() == before
    os.kill(stopped, signal.SIGSTOP)
    os.kill(before["tiny-fox-0"], signal.SIGKILL)
    until(lambda: left.cluster.pids().get("tiny-fox-0") not in (None, before["tiny-fox-0"]), "back")
    left.cluster.ready()
    assert "forked from a warm template" in left.how("tiny-fox-0")
    assert left.template("worker") == stopped


def test_a_killed_supervisor_leaves_its_cluster_and_no_template(left: Warm) -> None:
    before = left.cluster.pids()
    templates = [left.template(kind) for kind in ("worker", "server")]
    left.cluster.kill_supervisor()
    until(lambda: not any(map(alive, templates)), "the templates have ended")
    assert left.chat("tiny-owl").status_code == 200
    written = left.cluster.output.stat().st_size
    left.cluster.up().ready()
    assert left.cluster.pids() == before
    assert "nobody can say" not in left.cluster.output.read_text()[written:]
    os.kill(before["tiny-fox-0"], signal.SIGKILL)
    until(lambda: left.cluster.pids().get("tiny-fox-0") not in (None, before["tiny-fox-0"]), "back")
    assert "forked from a warm template" in left.how("tiny-fox-0")


def test_an_upgrade_has_templates_of_its_own(left: Warm) -> None:
    before = left.cluster.pids()
    templates = [left.template(kind) for kind in ("worker", "server")]
    done = left.cluster.run("upgrade")
    assert done.returncode == 0, done.stderr
    until(lambda: not any(map(alive, templates)), "those of the program before have ended")
    left.cluster.ready()
    assert left.cluster.pids() == before
    os.kill(before["tiny-fox-0"], signal.SIGKILL)
    until(lambda: left.cluster.pids().get("tiny-fox-0") not in (None, before["tiny-fox-0"]), "back")
    assert "forked from a warm template" in left.how("tiny-fox-0")


def test_an_edit_makes_starts_cold_and_touches_nothing_that_runs(left: Warm) -> None:
    before = left.cluster.pids()
    for service in ("tiny-owl", "tiny-fox"):
        done = left.cluster.run("set", service, "launch=cold")
        assert done.returncode == 0, done.stderr
    until(lambda: "worker~template" not in left.templates(), "nobody needs it any more")
    assert left.cluster.pids() == before
    os.kill(before["tiny-fox-0"], signal.SIGKILL)
    until(lambda: left.cluster.pids().get("tiny-fox-0") not in (None, before["tiny-fox-0"]), "back")
    left.cluster.ready()
    assert "forked" not in left.how("tiny-fox-0")
    for service in ("tiny-owl", "tiny-fox"):
        assert left.cluster.run("unset", service, "launch").returncode == 0
    cold = left.cluster.pids()["tiny-fox-0"]
    assert left.cluster.run("restart", "tiny-fox").returncode == 0
    until(lambda: not alive(cold), "it is replaced")
    left.cluster.ready()
    (name,) = (one for one in left.cluster.pids() if one.startswith("tiny-fox"))
    assert "forked from a warm template" in left.how(name)
    assert left.chat("tiny-fox").status_code == 200


def test_no_template_knows_a_secret_of_what_was_forked_from_it(left: Warm) -> None:
    pid, before = left.template("server"), left.cluster.pids()["api_server"]
    os.kill(before, signal.SIGKILL)
    until(lambda: left.cluster.pids().get("api_server") not in (None, before), "it is back")
    left.cluster.ready()
    assert left.template("server") == pid
    assert left.templates()["server~template"]["forks"] > 0
    assert left.chat("tiny-owl").status_code == 200
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(number, 16) for number in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(start)
                assert API_KEY.encode() not in memory.read(end - start), line
    for kind in ("worker", "server"):
        log = left.cluster.log(f"{kind}~template")
        assert "starting" in log
        assert API_KEY not in log
    opened = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    assert not any("memfd" in one for one in opened)


def test_down_leaves_nothing_and_has_nothing_to_clear_up(left: Warm) -> None:
    """The last one."""
    written = left.cluster.output.stat().st_size
    done = left.cluster.run("down")
    assert done.returncode == 0, done.stderr
    assert left.cluster.process is not None
    left.cluster.process.wait()
    assert "killing what is left" not in left.cluster.output.read_text()[written:]
    assert left.cluster.processes() == []


# ---------------------------------------------------------------- while a template imports


@pytest.fixture
def held(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, warm.Gate]]:
    """A controller and an API server whose template imports until the gate is open."""
    gate = warm.Gate(tmp_path)
    controller, api = free_ports(2)
    file = f"""
controller: {{port: {controller}}}
api_server: {{port: {api}}}
env: {json.dumps(gate.env)}
"""
    yield cluster.write(file), gate
    gate.close()


def test_down_does_not_wait_for_imports(held: tuple[Cluster, warm.Gate]) -> None:
    cluster, gate = held
    cluster.up()
    until(gate.is_reached, "it imports")
    assert cluster.run("down").returncode == 0
    assert cluster.process is not None
    assert cluster.process.wait() == 0
    assert cluster.processes() == []
    assert "killing what is left" not in cluster.output.read_text()


def test_an_upgrade_does_not_wait_for_imports_either(held: tuple[Cluster, warm.Gate]) -> None:
    """What it finds is no riddle to it, and what was about to start is started."""
    cluster, gate = held
    cluster.up()
    until(gate.is_reached, "it imports")
    before = cluster.status()["cluster"]["templates"][0]["pid"]
    done = cluster.run("upgrade")
    assert done.returncode == 0, done.stderr
    until(lambda: not alive(before), "the template of the program before has ended")
    gate.open()
    cluster.ready()
    assert "nobody can say" not in cluster.output.read_text()
    assert len(cluster.pids()) == 2
