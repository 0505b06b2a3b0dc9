"""The command line and the control API in front of a running supervisor."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from harness import COMMAND, ROOT, Cluster, die_with_parent, until

from supervisor.cli.main import VERBS

TALKER = """
services:
  talker:
    command: [sh, -c, 'while read -r line; do echo "heard $line"; done < {pipe}; sleep 1000']
"""


@pytest.fixture
def talker(cluster: Cluster) -> Cluster:
    """An instance that says what is written into a pipe."""
    os.mkfifo(cluster.folder / "pipe")
    return cluster.write(TALKER.replace("{pipe}", str(cluster.folder / "pipe"))).up().ready()


def say(cluster: Cluster, text: str) -> None:
    with (cluster.folder / "pipe").open("w") as pipe:
        pipe.write(text)


def test_every_verb_has_help() -> None:
    for verb in VERBS:
        done = subprocess.run(
            [*COMMAND, verb.name, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "--run-dir" in done.stdout
        assert verb.help in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["status", "--nonsense"], ["logs"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 2


def follow(cluster: Cluster, *words: str) -> tuple[subprocess.Popen[str], IO[str]]:
    """A verb that goes on until it is ended, and the lines that it prints."""
    process = subprocess.Popen(
        [*COMMAND, *words, *cluster.places],
        stdout=subprocess.PIPE,
        text=True,
        env=cluster.environ,
        cwd=ROOT,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    return process, process.stdout


def test_logs_can_be_followed(talker: Cluster) -> None:
    following, lines = follow(talker, "logs", "talker", "-f")
    beginning = [lines.readline(), lines.readline()]
    assert "starting" in beginning[1]
    say(talker, "one\ntwo\n")
    heard = [lines.readline(), lines.readline()]
    assert heard == ["heard one\n", "heard two\n"]
    following.terminate()
    following.wait()
    lines.close()


def test_followed_events_end_with_the_supervisor(talker: Cluster) -> None:
    following, lines = follow(talker, "events", "-f", "--json")
    first = json.loads(lines.readline())
    assert first["number"] == 1
    assert talker.run("down").returncode == 0
    rest = [json.loads(line) for line in lines]
    assert any(event["state"] == "stopping" for event in rest)
    assert following.wait() == 0
    lines.close()


def test_status_of_a_running_instance(talker: Cluster) -> None:
    status = talker.status()
    assert status["cluster"]["state"] == "ready"
    (one,) = status["instances"]
    keys = "name service role kind state desired reason pid address models gpus restarts"
    assert set(keys.split()) | {"started_at", "ready_at"} <= set(one)
    assert (one["role"], one["state"], one["desired"]) == ("command", "ready", "running")
    assert Path(f"/proc/{one['pid']}").exists()
    table = talker.run("status").stdout
    assert re.search(r"talker\s+ready", table)


def test_why_says_what_happens_next(talker: Cluster) -> None:
    text = talker.run("why", "talker").stdout
    assert "talker is ready" in text
    assert "Next:" in text


def test_a_plan_of_a_running_cluster_shows_what_the_file_would_change(talker: Cluster) -> None:
    talker.write("watch: false\n" + talker.file.read_text())
    assert talker.run("reload").returncode == 0
    talker.write(talker.file.read_text() + "  more: {command: [sleep, '1000']}\n")
    done = talker.run("plan", "--json")
    actions = {c["instance"]: c["action"] for c in json.loads(done.stdout)["changes"]}
    assert actions == {"talker": "keep", "more": "start"}
    talker.write("services: {")
    assert talker.run("plan").returncode == 2
    assert talker.instance("talker")["state"] == "ready"


def test_a_broken_file_does_not_keep_clients_out(talker: Cluster) -> None:
    talker.write("]")
    assert talker.status()["cluster"]["state"] == "ready"
    assert talker.run("down").returncode == 0


def test_a_closed_terminal_stops_nothing(talker: Cluster) -> None:
    assert talker.process is not None
    talker.process.send_signal(signal.SIGHUP)
    assert talker.instance("talker")["state"] == "ready"
    say(talker, "still here\n")
    until(lambda: "heard still here" in talker.log("talker"), "it still serves")


def test_a_reader_that_has_gone_does_not_disturb_supervision(cluster: Cluster) -> None:
    """`llm-supervisor up | head -1`"""
    cluster.write("services: {one: {command: [sleep, '1000']}}")
    reading, writing = os.pipe()
    cluster.process = subprocess.Popen(
        [*COMMAND, "up", *cluster.places],
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env=cluster.environ,
        cwd=ROOT,
        preexec_fn=die_with_parent,
    )
    os.close(writing)
    os.close(reading)
    cluster.ready()
    os.kill(cluster.instance("one")["pid"], signal.SIGKILL)
    until(lambda: cluster.instance("one")["restarts"] == 1, "it is restarted")
    cluster.until("one", "ready")


def test_json_log_lines_are_json(cluster: Cluster) -> None:
    cluster.write("services: {one: {command: [sleep, '1000']}}").up("--log-format", "json").ready()
    lines = [json.loads(line) for line in cluster.output.read_text().splitlines()]
    assert {"time", "level", "instance", "state", "reason", "pid"} <= set(lines[0])


def test_environment_variables_stand_for_flags(cluster: Cluster) -> None:
    cluster.write("services: {one: {command: [sleep, '1000']}}").up().ready()
    variables = {
        "LLM_SUPERVISOR_CONFIG": str(cluster.file),
        "LLM_SUPERVISOR_RUN_DIR": str(cluster.run_dir),
    }
    done = subprocess.run(
        [*COMMAND, "status", "--json"],
        env={**os.environ, **variables},
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert json.loads(done.stdout)["cluster"]["file"] == str(cluster.file)


def test_the_file_can_say_where_things_are_and_clients_find_them(cluster: Cluster) -> None:
    cluster.write("run_dir: r\nlog_dir: l\nservices: {one: {command: [sleep, '1000']}}")
    done = subprocess.run(
        [*COMMAND, "up", "--detach", "-c", str(cluster.file)],
        capture_output=True,
        text=True,
        env=cluster.environ,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (cluster.folder / "r" / "control.sock").exists()
    assert (cluster.folder / "l" / "one.log").exists()
    relative = [*COMMAND, "down", "-c", "cluster.yaml"]
    subprocess.run(relative, env=cluster.environ, cwd=cluster.folder, check=True)
    assert cluster.processes() == []


def test_the_api_describes_itself(talker: Cluster) -> None:
    curl = ["curl", "-s", "--unix-socket", str(talker.run_dir / "control.sock")]
    done = subprocess.run([*curl, "http://localhost/openapi.json"], capture_output=True, check=True)
    document = json.loads(done.stdout)
    assert document["openapi"].startswith("3.")
    names = set(document["components"]["schemas"])
    assert set(re.findall(r'"#/components/schemas/(\w+)"', done.stdout.decode())) <= names
    assert "/v1/services/{name}/restart" in document["paths"]


def test_the_api_refuses_with_a_reason(talker: Cluster) -> None:
    curl = ["curl", "-s", "--unix-socket", str(talker.run_dir / "control.sock")]
    done = subprocess.run(
        [*curl, "http://localhost/v1/wait?timeout=soon"], capture_output=True, check=True
    )
    assert "timeout must be a number" in json.loads(done.stdout)["error"]


def test_it_runs_as_a_module_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match(r"llm-supervisor \d+\.\d+", done.stdout)
