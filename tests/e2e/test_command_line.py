"""The command line in unfriendly surroundings: every end is a sentence and the right status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import COMMAND, ROOT, Cluster, alive, die_with_parent, until

from supervisor.cli import client, control, status, up
from supervisor.cli.failure import Failure
from supervisor.runtime.rundir import RunDir, default_run_dirs

ONE = "services: {one: {command: [sleep, '1000']}}"
NOT_RUNNING = "no supervisor is running"


@pytest.fixture
def one(cluster: Cluster) -> Cluster:
    return cluster.write(ONE).up().ready()


def command(
    *arguments: str, cwd: Path = ROOT, **environ: str | None
) -> subprocess.CompletedProcess[str]:
    """The command with these variables besides; None removes one."""
    merged: dict[str, Any] = {**os.environ, **environ}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        env={name: value for name, value in merged.items() if value is not None},
        check=False,
    )


def detached(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "up", "-d", *cluster.places, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environ,
        cwd=ROOT,
        preexec_fn=die_with_parent,
    )


def is_a_sentence(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert words in done.stderr
    assert done.returncode == status


# ---------------------------------------------------------------- up, detached


class Ends:
    """A process that ends after it has been looked at three times."""

    def __init__(self, pid: int) -> None:
        self.pid, self._looks = pid, 0

    def poll(self) -> int | None:
        self._looks += 1
        return 1 if self._looks > 3 else None


def test_the_answer_of_another_supervisor_is_no_success(one: Cluster) -> None:
    arguments = argparse.Namespace(run_dir=str(one.run_dir), config=str(one.file))
    pid = one.status()["cluster"]["pid"]
    assert not up._answers(arguments, Ends(pid + 1), None)  # type: ignore[arg-type]
    assert up._answers(arguments, Ends(pid), None)  # type: ignore[arg-type]


def test_of_several_at_once_one_succeeds_and_the_others_say_why_not(cluster: Cluster) -> None:
    cluster.write(ONE)
    started = [detached(cluster) for _ in range(3)]
    ends = [process.communicate() for process in started]
    assert sorted(process.returncode for process in started) == [0, 1, 1], ends
    for process, (output, errors) in zip(started, ends, strict=True):
        said = output if process.returncode == 0 else errors
        assert ("is ready" if process.returncode == 0 else "already runs here") in said
    assert cluster.run("down").returncode == 0


def test_what_the_supervisor_says_at_its_end_is_shown_whatever_stood_in_its_log(
    cluster: Cluster,
) -> None:
    cluster.log_dir.mkdir()
    (cluster.log_dir / "supervisor.log").write_text("é" * 5000, "utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster.write(f"controller: {{port: {port}}}")
        done = cluster.run("up", "-d")
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "é" not in done.stderr


NEVER_READY = """
services:
  one: {command: [sleep, '1000'], ready: {command: ['false']}}
"""


def test_a_timeout_says_that_the_supervisor_goes_on(cluster: Cluster) -> None:
    cluster.write(NEVER_READY)
    done = cluster.run("up", "-d", "--timeout", "1")
    owner = until(RunDir(cluster.run_dir).owner, "it goes on, and claims its directory")
    is_a_sentence(done, 1, f"not ready after 1 s; the supervisor ({owner}) goes on: see")
    assert "`llm-supervisor down`" in done.stderr
    assert alive(int(owner.removeprefix("pid ")))


def test_a_failed_instance_leaves_a_supervisor_and_that_is_said(cluster: Cluster) -> None:
    cluster.write("services: {one: {command: ['false'], restart: {policy: never}}}")
    done = cluster.run("up", "-d")
    pid = cluster.status()["cluster"]["pid"]
    is_a_sentence(done, 1, f"not ready; the supervisor (pid {pid}) goes on: see")
    assert "one is failed" in done.stderr
    assert cluster.run("down").returncode == 0


def test_a_signal_after_the_end_is_no_crash(cluster: Cluster) -> None:
    """The second Ctrl-C of an impatient user comes when all is stopped already."""
    code = """
import os, signal, sys
from pathlib import Path
from supervisor.daemon.main import Options, run

def stop_when_ready(entry):
    if entry.state == "ready" and not entry.instance:
        os.kill(os.getpid(), signal.SIGTERM)

file, run_dir, log_dir = map(Path, sys.argv[1:])
run(Options(file, run_dir, log_dir), os.environ, stop_when_ready)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
"""
    cluster.write(ONE)
    places = [str(place) for place in (cluster.file, cluster.run_dir, cluster.log_dir)]
    done = subprocess.run(
        [sys.executable, "-c", code, *places], cwd=ROOT, env=cluster.environ, check=False
    )
    assert done.returncode == 0


# ---------------------------------------------------------------- places that are wrong


def test_a_log_folder_that_is_none(cluster: Cluster) -> None:
    cluster.write(ONE).log_dir.write_text("a file")
    for arguments in ([], ["-d"]):
        done = cluster.run("up", *arguments)
        is_a_sentence(done, 2, "name a folder with --log-dir")


def test_a_run_directory_that_is_none(cluster: Cluster) -> None:
    cluster.write(ONE).run_dir.write_text("a file")
    is_a_sentence(cluster.run("up"), 2, "no directory; name another one with --run-dir")
    is_a_sentence(cluster.run("status"), 2, "no directory; name another one with --run-dir")
    is_a_sentence(cluster.run("validate"), 0, "")


@pytest.mark.parametrize("length", [120, 300])
def test_a_run_directory_with_too_long_a_name(cluster: Cluster, length: int) -> None:
    cluster.write(ONE).run_dir = cluster.folder / ("x" * length)
    is_a_sentence(cluster.run("up"), 2, "give a shorter --run-dir")
    is_a_sentence(cluster.run("status"), 2, "give a shorter --run-dir")
    is_a_sentence(cluster.run("plan"), 0, "")


@pytest.mark.parametrize("name", ["lock", "ports.json"])
def test_a_run_directory_that_cannot_be_written(cluster: Cluster, name: str) -> None:
    (cluster.run_dir / name).mkdir(parents=True)
    is_a_sentence(cluster.write(ONE).run("up"), 2, "name another one with --run-dir")


def test_a_folder_that_has_been_removed(cluster: Cluster, tmp_path: Path) -> None:
    cluster.write(ONE)

    def in_removed(*arguments: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "removed"
        folder.mkdir()
        script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
        return subprocess.run(
            ["sh", "-c", script, "sh", str(folder), *COMMAND, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )

    is_a_sentence(in_removed("status"), 1, "the current folder has been removed")
    is_a_sentence(in_removed("status", *cluster.places), 3, NOT_RUNNING)
    is_a_sentence(in_removed("validate", *cluster.places), 0, "")


# ---------------------------------------------------------------- arguments and output


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300", "soon"])
@pytest.mark.parametrize("verb", ["wait", "down", "up"])
def test_a_timeout_is_a_number_of_seconds(verb: str, value: str) -> None:
    done = command(verb, f"--timeout={value}", "-c", "/dev/null")  # a file that starts nothing
    is_a_sentence(done, 2, f"must be a number of seconds, at most 1e+09, not {value!r}")


@pytest.mark.parametrize("verb", ["status", "schema", "--help", "--version"])
def test_a_full_disk_behind_the_output(one: Cluster, verb: str) -> None:
    arguments = one.places if verb == "status" else []
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, verb, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # unbuffered, argparse swallows the error
            check=False,
        )
    is_a_sentence(done, 1, "llm-supervisor: No space left on device\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_closed_streams(cluster: Cluster, form: str) -> None:
    cluster.write(ONE)

    def closed(which: str, verb: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", f'exec "$@" {which}', "sh", *COMMAND, verb, *cluster.places, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=cluster.environ,
            cwd=ROOT,
            preexec_fn=die_with_parent,
        )

    supervisor = closed("0<&- >&-", "up", "--log-format", form)
    until((cluster.run_dir / "control.sock").exists, "it answers")
    for verb in ("wait", "status", "events"):
        process = closed(">&-", verb)
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        process = closed("0<&- >&- 2>&-", verb)
        process.communicate()
        assert process.returncode == 0
    assert cluster.run("down").returncode == 0
    _, errors = supervisor.communicate()
    assert (supervisor.returncode, errors) == (0, "")


def test_a_terminal_that_knows_no_umlauts(cluster: Cluster) -> None:
    folder = cluster.folder / "für"
    folder.mkdir()
    cluster.file = folder / "cluster.yaml"
    cluster.write(ONE)
    for encoding in ("ascii", "latin-1:strict"):
        done = command("validate", *cluster.places, PYTHONIOENCODING=encoding)
        is_a_sentence(done, 0, "")
    cluster.file = folder / "名.yaml"
    is_a_sentence(cluster.write(ONE).run("validate"), 0, "")
    done = command("validate", *cluster.places, PYTHONIOENCODING="ascii")
    assert "\\u540d.yaml is valid" in done.stdout


def test_a_name_that_is_no_text_is_not_known(one: Cluster) -> None:
    done = subprocess.run(
        [*COMMAND, "why", b"\xff", *one.places], capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert b"there is no service or instance" in done.stderr


# ---------------------------------------------------------------- asking a supervisor


def test_a_plan_of_a_file_that_would_not_start_tells_its_problems(one: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one.write(f"{ONE}\ncontroller: {{port: {taken.getsockname()[1]}}}")
        done = one.run("plan")
        assert done.returncode == 2
        assert done.stderr.startswith(f"{one.file}:2:")
        assert done.stderr == one.run("validate").stderr


@pytest.mark.parametrize("line", ["run_dir: r", "run_dir:  ${FOLDER}  # here", '"run_dir": "r"'])
def test_the_files_run_directory_is_found_though_the_file_is_broken(
    cluster: Cluster, line: str
) -> None:
    cluster.environ["FOLDER"] = "r"
    cluster.run_dir = cluster.folder / "r"
    cluster.write(f"log_dir: logs\n{line}\n{ONE}").up().ready()
    cluster.write(f"log_dir: 'logs\n{line}\n{ONE}: [")
    done = subprocess.run(
        [*COMMAND, "status", "-c", str(cluster.file)],
        env=cluster.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    is_a_sentence(done, 0, "")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """There is no room for pytest's long names in the path of a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_it_is_found_with_and_without_a_runtime_folder(
    cluster: Cluster, short_folder: Path
) -> None:
    """Started from cron, asked from a login shell."""
    cluster.write(ONE)
    place = cluster.run_dir = default_run_dirs(cluster.file, {})[0]
    where = ["-c", str(cluster.file)]
    logs = ["--log-dir", str(cluster.log_dir)]
    try:
        cluster.up().ready()
        done = command("status", *where, XDG_RUNTIME_DIR=str(short_folder))
        is_a_sentence(done, 0, "")
        for arguments in ([], ["-d"]):
            done = command("up", *arguments, *where, *logs, XDG_RUNTIME_DIR=str(short_folder))
            is_a_sentence(done, 1, f"already runs here (pid {cluster.process.pid}, ")  # type: ignore[union-attr]
        done = command("down", *where, XDG_RUNTIME_DIR=str(short_folder))
        is_a_sentence(done, 0, "")
        done = command("status", *where, XDG_RUNTIME_DIR=str(short_folder))
        is_a_sentence(done, 3, NOT_RUNNING)
    finally:
        cluster.down()
        shutil.rmtree(place, ignore_errors=True)


def test_what_a_killed_one_left_is_adopted_with_and_without_a_runtime_folder(
    cluster: Cluster, short_folder: Path
) -> None:
    """Started from cron, killed, started again from a login shell: never a second copy."""
    cluster.write(ONE)
    place = cluster.run_dir = default_run_dirs(cluster.file, {})[0]
    try:
        before = cluster.up().ready().pids()
        until(lambda: (place / "state.json").exists(), "it is noted")
        cluster.kill_supervisor()
        where = ["-c", str(cluster.file), "--log-dir", str(cluster.log_dir)]
        name, _, value = cluster.token.partition("=")
        environ = {"XDG_RUNTIME_DIR": str(short_folder), name: value}
        done = command("up", "-d", *where, **environ)
        assert done.returncode == 0, done.stderr
        assert cluster.pids() == before
        done = command("down", *where, **environ)
        is_a_sentence(done, 0, "")
    finally:
        cluster.run("down")
        cluster.down()
        shutil.rmtree(place, ignore_errors=True)


def test_a_service_may_not_take_the_name_of_the_supervisors_log(cluster: Cluster) -> None:
    cluster.write("services: {supervisor: {command: [sleep, '1']}}")
    done = cluster.run("validate")
    is_a_sentence(done, 2, "the name 'supervisor' is taken by the supervisor itself")


def test_a_program_gets_one_line_for_each_instance(cluster: Cluster) -> None:
    long = "a-" * 25 + "z"
    cluster.write(f"services: {{{long}: {{command: [sleep, '1000']}}}}").up().ready()
    environ = {"COLUMNS": "40"}
    lines = command("status", *cluster.places, **environ).stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == list(status._TITLES)
    assert lines[2].split()[:2] == [long, "ready"]


@pytest.mark.parametrize("columns", [30, 50, 80, 200])
def test_a_narrow_terminal_shows_names_and_states_whole(cluster: Cluster, columns: int) -> None:
    name = "quite-a-long-name"
    cluster.write(f"services: {{{name}: {{command: [sleep, '1000']}}}}").up().ready()
    text = on_terminal([*COMMAND, "status", *cluster.places], columns)
    assert name in text
    assert "ready" in text
    assert "…" not in "".join(text.splitlines()[1:])
    reason = cluster.instance(name)["reason"]
    assert "".join(reason.split()) in "".join(text.split())


def on_terminal(words: list[str], columns: int) -> str:
    ours, its = pty.openpty()
    process = subprocess.Popen(
        words,
        stdout=its,
        stderr=its,
        stdin=its,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
        preexec_fn=die_with_parent,
    )
    os.close(its)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert process.wait() == 0, said
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode())


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[argparse.Namespace]:
    """A supervisor that accepts and never answers."""
    place = RunDir(tmp_path / "run")
    place.claim()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place.socket))
        listening.listen()
        yield argparse.Namespace(run_dir=str(place.path), config=None)
    place.release()


def test_a_supervisor_that_does_not_answer(
    mute: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER", 0.05)
    with pytest.raises(Failure) as failed:
        client.Client(mute).get("/v1/status")
    assert f"the supervisor (pid {os.getpid()}) has not answered" in str(failed.value)
    assert "log" not in str(failed.value)


def test_down_of_a_supervisor_that_ends_by_itself(
    one: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(pid: int) -> int:
        assert one.process is not None
        assert pid == one.process.pid
        one.process.send_signal(signal.SIGTERM)
        one.process.wait()
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    arguments = argparse.Namespace(
        run_dir=str(one.run_dir), config=str(one.file), no_wait=False, timeout=None
    )
    assert control.run_down(arguments) == 0


def test_a_client_imports_no_model_of_the_file(one: Cluster) -> None:
    code = """
import sys
from supervisor.cli.main import main
status = main(sys.argv[1:])
assert "pydantic" not in sys.modules and "rich" not in sys.modules and "aiohttp" not in sys.modules
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "status", "--json", *one.places],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["instances"]


def test_a_pipe_in_place_of_the_file_keeps_nobody_waiting(cluster: Cluster) -> None:
    os.mkfifo(cluster.file)
    done = subprocess.run(
        [*COMMAND, "status", "-c", str(cluster.file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
