"""The supervisor with real processes of any kind: start, stop, faults. No FastChat: fast."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness import COMMAND, ROOT, Cluster, accepts, alive, die_with_parent, free_ports, until

PYTHON = f"{sys.executable}, -S, -I, -c"
SLEEP = "import signal; signal.pause()"


FAMILY = textwrap.dedent("""\
    import os, signal
    def pause(prepare):
        if os.fork() == 0:
            prepare()
            print("grandchild", os.getpid(), flush=True)
            while True: signal.pause()
    def daemon():
        os.setsid()
        if os.fork(): os._exit(0)
    pause(lambda: None)
    pause(os.setsid)
    pause(daemon)
    while True: signal.pause()
    """)
"""A child in its group, one in a session of its own, and one that forked twice."""


def service(name: str, code: str, **fields: str) -> str:
    """One entry of `services` that runs Python code."""
    more = "".join(f"    {key}: {value}\n" for key, value in fields.items())
    return f"  {name}:\n    command: [{PYTHON}, {json.dumps(code)}]\n{more}"


def services(*entries: str, top: str = "") -> str:
    return f"{top}\nservices:\n" + "".join(entries)


def listening(port: int) -> str:
    return textwrap.dedent(f"""\
        import socket, signal
        s = socket.create_server(("127.0.0.1", {port}))
        signal.pause()
        """)


def said(cluster: Cluster, name: str, pattern: str) -> list[str]:
    """Lines of an instance's own (its command line is in its log, too, in our marks)."""
    return re.findall(pattern, cluster.log(name), re.MULTILINE)


# ---------------------------------------------------------------- starting and stopping


def test_a_dependency_is_ready_before_its_dependent_starts(cluster: Cluster) -> None:
    (port,) = free_ports(1)
    first = service("first", listening(port), ready=f"{{tcp: '127.0.0.1:{port}'}}")
    second = service("second", SLEEP, depends_on="[first]")
    cluster.write(services(second, first)).up().ready()
    events = json_events(cluster)
    ready = [e["instance"] for e in events if e["state"] == "ready" and e["instance"]]
    assert ready == ["first", "second"]


def test_down_stops_in_reverse(cluster: Cluster) -> None:
    first, second = service("first", SLEEP), service("second", SLEEP, depends_on="[first]")
    cluster.write(services(first, second)).up().ready()
    assert cluster.run("down").returncode == 0
    assert cluster.process is not None
    assert cluster.process.wait() == 0
    stopped = [
        line.split()[1] for line in cluster.output.read_text().splitlines() if " stopped " in line
    ]
    assert stopped == ["second", "first"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "down"])
def test_nothing_is_left_behind(cluster: Cluster, how: object) -> None:
    cluster.write(services(service("family", FAMILY))).up().ready()
    until(lambda: len(said(cluster, "family", r"^grandchild \d+")) == 3, "three grandchildren run")
    assert len(cluster.processes()) >= 5
    assert cluster.process is not None
    if isinstance(how, signal.Signals):
        cluster.process.send_signal(how)
    else:
        cluster.run("down")
    assert cluster.process.wait() == 0
    assert cluster.processes() == []


def test_a_frozen_process_is_woken_to_be_stopped(cluster: Cluster) -> None:
    """Without that, SIGTERM would wait for its grace to end, which is longer than this test."""
    cluster.write(services(service("frozen", SLEEP, stop_grace="1h"))).up().ready()
    os.kill(cluster.instance("frozen")["pid"], signal.SIGSTOP)
    assert cluster.run("stop", "frozen").returncode == 0
    assert cluster.instance("frozen")["state"] == "stopped"


def test_what_hides_without_a_mark_is_left_behind_neither(cluster: Cluster) -> None:
    """An empty environment and a session of its own, and what probe commands leave."""
    hidden = "(env -i setsid sleep 1000.125 &); exec sleep 1000"
    probe = "sleep 1000.25 & exit 0"
    cluster.write(
        "services:\n"
        f"  one: {{command: [sh, -c, {json.dumps(hidden)}],"
        f" ready: {{command: [sh, -c, {json.dumps(probe)}]}}}}\n"
    ).up().ready()
    assert running("sleep 1000.125")
    assert cluster.run("down").returncode == 0
    assert not running("sleep 1000.125")
    assert not running("sleep 1000.25")


def running(command: str) -> list[int]:
    """Processes with exactly this command line."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == wanted:
                found.append(int(entry.name))
    return found


def test_a_start_that_fails_halfway_leaves_nothing_running(cluster: Cluster) -> None:
    """The disk is full when the control socket is made; the first process runs already."""
    code = """
import errno, os, sys
from pathlib import Path
from supervisor.daemon.main import Options, run
from supervisor.runtime import rundir

class FullDisk(rundir.Socket):
    def bind(self, address):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

rundir.Socket = FullDisk
file, run_dir, log_dir = map(Path, sys.argv[1:])
run(Options(file, run_dir, log_dir), os.environ, lambda entry: None)
"""
    cluster.write(services(service("one", SLEEP)))
    places = [str(place) for place in (cluster.file, cluster.run_dir, cluster.log_dir)]
    done = subprocess.run(
        [sys.executable, "-c", code, *places],
        cwd=ROOT,
        env=cluster.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot open the socket" in done.stderr
    assert "starting" in cluster.log("one")
    assert cluster.processes() == []


def test_two_clusters_do_not_share_a_log_folder(cluster: Cluster, tmp_path: Path) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    other = Cluster(tmp_path / "other")
    other.folder.mkdir()
    other.log_dir = cluster.log_dir
    done = other.write(services(service("one", SLEEP))).run("up")
    assert done.returncode == 1
    assert "another cluster writes its logs" in done.stderr


def test_a_log_folder_that_cannot_be_written_is_an_error(cluster: Cluster) -> None:
    cluster.log_dir = Path("/proc")
    done = cluster.write(services(service("one", SLEEP))).run("up")
    assert done.returncode == 2
    assert "cannot write logs" in done.stderr


def test_readers_that_went_away_hold_nothing(cluster: Cluster) -> None:
    """`logs -f` of a quiet instance, ended with Ctrl-C."""
    cluster.write(services(service("quiet", SLEEP))).up().ready()
    assert cluster.process is not None
    descriptors = Path(f"/proc/{cluster.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for verb in (["logs", "quiet"], ["events"]):
        reader = subprocess.Popen(
            [*COMMAND, *verb, "-f", *cluster.places],
            stdout=subprocess.PIPE,
            env=cluster.environ,
            cwd=ROOT,
        )
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.kill()
        reader.wait()
        reader.stdout.close()
    until(lambda: len(list(descriptors.iterdir())) <= before, "their descriptors are closed")


def test_a_crash_takes_its_family_along(cluster: Cluster) -> None:
    code = textwrap.dedent("""\
        import os, signal
        if os.fork() == 0:
            os.setsid()
            print("stray", os.getpid(), flush=True)
        signal.pause()
        """)
    cluster.write(services(service("family", code))).up().ready()
    (first,) = until(lambda: said(cluster, "family", r"^stray \d+"), "the stray runs")
    stray = int(first.split()[1])
    os.kill(cluster.instance("family")["pid"], signal.SIGKILL)
    until(lambda: len(said(cluster, "family", r"^stray \d+")) == 2, "the family is back")
    assert not alive(stray)


def test_a_second_signal_hurries_a_stubborn_process(cluster: Cluster) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN)\n"
    code += "print('deaf', flush=True)\nwhile True: signal.pause()"
    cluster.write(services(service("deaf", code, stop_grace="1h"))).up().ready()
    until(lambda: said(cluster, "deaf", "^deaf$"), "it ignores signals")
    assert cluster.process is not None
    cluster.process.terminate()
    cluster.until("deaf", "stopping")
    for stage in ("SIGINT", "SIGKILL"):
        cluster.process.terminate()
        until(lambda stage=stage: f"sending {stage}" in cluster.output.read_text(), stage)
    assert cluster.process.wait() == 0
    assert cluster.processes() == []


def test_stop_start_and_restart_one_service(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    two = cluster.instance("two")["pid"]
    assert cluster.run("stop", "one").returncode == 0
    stopped = cluster.instance("one")
    assert (stopped["state"], stopped["desired"], stopped["pid"]) == ("stopped", "stopped", None)
    assert cluster.run("start", "one").returncode == 0
    first = cluster.until("one", "ready")["pid"]
    assert cluster.run("restart", "one").returncode == 0
    assert cluster.until("one", "ready")["pid"] != first
    assert cluster.instance("two")["pid"] == two


def test_unknown_names_are_refused_with_the_known_ones(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    done = cluster.run("restart", "on")
    assert done.returncode == 2
    assert "there are: one" in done.stderr


# ---------------------------------------------------------------- faults


def test_what_can_never_work_ends_in_failed_and_disturbs_nobody(cluster: Cluster) -> None:
    missing = "  missing: {command: [/nonexistent/program]}\n"
    wrong = service(
        "wrong",
        "import argparse; argparse.ArgumentParser().parse_args(['--nope'])",
        restart="{backoff: 10ms}",
    )
    good = service("good", SLEEP)
    text = services(missing, wrong, good).replace(
        "command: [/nonexistent/program]",
        "command: [/nonexistent/program], restart: {backoff: 10ms}",
    )
    cluster.write(text).up()
    cluster.until("missing", "failed")
    failed = cluster.until("wrong", "failed")
    assert "unrecognized arguments: --nope" in failed["reason"]
    assert "there is no program /nonexistent/program" in cluster.instance("missing")["reason"]
    good_one = cluster.until("good", "ready")
    assert good_one["restarts"] == 0
    assert cluster.status()["cluster"]["state"] == "degraded"
    done = cluster.run("wait", "--timeout", "60")
    assert done.returncode == 1
    assert "missing is failed" in done.stderr
    assert "unrecognized arguments" in cluster.run("why", "wrong").stdout


def test_a_crash_loop_backs_off(cluster: Cluster) -> None:
    cluster.write(services(service("crash", "raise SystemExit('fatal: no')"))).up()
    one = cluster.until("crash", "backoff")
    assert one["restarts"] >= 1
    until(lambda: "fatal: no" in cluster.instance("crash")["reason"], "its own words are shown")


def test_a_second_supervisor_is_refused_by_name(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    assert cluster.process is not None
    done = cluster.run("up")
    assert done.returncode == 1
    assert f"pid {cluster.process.pid}" in done.stderr
    assert cluster.instance("one")["state"] == "ready"


def test_a_port_in_use_by_a_stranger_is_an_error_of_the_file(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        cluster.write(f"api_server:\n  port: {port}\ncontroller: {{port: {free_ports(1)[0]}}}\n")
        for verb in ("validate", "up", "plan"):
            done = cluster.run(verb)
            assert done.returncode == 2
            assert f"cluster.yaml:2:9: api_server.port: port {port} is in use by" in done.stderr
            assert f"(pid {os.getpid()})" in done.stderr
    assert cluster.processes() == []


def test_a_bad_file_starts_nothing(cluster: Cluster) -> None:
    cluster.write("workers: {a: {modle_path: x}}\n")
    done = cluster.run("up")
    assert done.returncode == 2
    assert "did you mean 'model_path'" in done.stderr
    assert not cluster.run_dir.exists()
    assert cluster.processes() == []


@pytest.mark.parametrize("verb", ["status", "down", "events"])
def test_without_a_supervisor_clients_say_so(cluster: Cluster, verb: str) -> None:
    cluster.write(services(service("one", SLEEP)))
    done = cluster.run(verb)
    assert done.returncode == 3
    assert "no supervisor is running" in done.stderr


# ---------------------------------------------------------------- the background, the logs, the API


def test_detach_returns_once_ready(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP)))
    done = cluster.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    assert cluster.instance("one")["state"] == "ready"
    assert cluster.run("down").returncode == 0
    assert cluster.processes() == []


def test_detach_tells_why_it_failed(cluster: Cluster) -> None:
    text = services("  bad: {command: [/nonexistent], restart: {backoff: 1ms}}\n")
    done = cluster.write(text).run("up", "--detach")
    assert done.returncode == 1
    assert "there is no program /nonexistent" in done.stderr
    cluster.run("down")


def test_the_log_holds_every_line_between_its_marks(cluster: Cluster) -> None:
    code = "for i in range(1000): print('line', i)"
    cluster.write(services(service("talker", code, restart="never"))).up()
    cluster.until("talker", "stopped")
    lines = [line for line in cluster.log("talker").splitlines() if line]
    assert "starting" in lines[0]
    assert lines[1:-1] == [f"line {i}" for i in range(1000)]
    assert "exited with 0" in lines[-1]
    assert cluster.run("logs", "talker", "-n", "3").stdout.splitlines()[-1] == lines[-1]


def test_environment_and_working_directory(cluster: Cluster) -> None:
    code = "import os, signal; print(os.environ['WHO'], os.environ['N'], os.getcwd())\n"
    code += "signal.pause()"
    (cluster.folder / "here").mkdir()
    entry = service("one", code, env="{WHO: me}", cwd="here").replace(
        PYTHON, f"{sys.executable}, -u, -c"
    )
    cluster.write(services(entry, top="env: {WHO: all, N: 4}")).up().ready()
    until(lambda: said(cluster, "one", f"^me 4 {cluster.folder}/here$"), "its words")


def test_the_run_directory_is_private(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    assert cluster.run_dir.stat().st_mode & 0o777 == 0o700
    assert (cluster.run_dir / "control.sock").stat().st_mode & 0o777 == 0o600


def json_events(cluster: Cluster) -> list[dict[str, str]]:
    return [json.loads(line) for line in cluster.run("events", "--json").stdout.splitlines()]


def test_waiting_for_what_cannot_come_ends_with_the_reason(cluster: Cluster) -> None:
    base, top = service("base", SLEEP), service("top", SLEEP, depends_on="[base]")
    cluster.write(services(base, top)).up().ready()
    assert cluster.run("stop", "top", "base").returncode == 0
    done = cluster.run("start", "top")
    assert done.returncode == 1
    assert "waiting for base, which does not come by itself" in done.stderr
    assert "`llm-supervisor start base`" in cluster.run("why", "top").stdout
    assert cluster.run("start", "base").returncode == 0
    cluster.until("top", "ready")


COUNTING = (
    "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.01)"
)


def await_more_lines(cluster: Cluster) -> None:
    """Of a service that counts."""
    before = len(said(cluster, "counting", r"^\d+$"))
    until(lambda: len(said(cluster, "counting", r"^\d+$")) > before, "its log goes on")


def no_line_is_missing(cluster: Cluster) -> bool:
    lines = [int(line) for line in said(cluster, "counting", r"^\d+$")]
    return lines == list(range(len(lines)))


def kill_log_writer(cluster: Cluster) -> None:
    writer = until(lambda: log_writers(cluster), "a log writer runs")[0]
    os.kill(writer, signal.SIGKILL)
    until(lambda: not alive(writer), "it is dead")


def log_writers(cluster: Cluster) -> list[int]:
    return [pid for pid in cluster.processes() if b"logwriter.py" in command_line(pid)]


def test_a_log_writer_is_replaced_however_often_and_fast_it_dies(cluster: Cluster) -> None:
    cluster.write(services(service("counting", COUNTING))).up().ready()
    for _ in range(4):  # all but the first die so young that their successor comes a moment later
        kill_log_writer(cluster)
    until(lambda: log_writers(cluster), "a log writer runs")
    await_more_lines(cluster)
    assert no_line_is_missing(cluster)


def test_a_stop_outlives_the_supervisor_that_was_killed_right_after_it(cluster: Cluster) -> None:
    """Nothing of what runs says that a person wanted it so: the answer comes after the note."""
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    for wanted in ("stop", "start", "stop"):
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(cluster.run_dir / "control.sock"))
            connection.request("POST", f"/v1/services/one/{wanted}")
            assert connection.getresponse().status == 200
            assert cluster.process is not None
            cluster.process.kill()
        cluster.process.wait()
        cluster.up().ready()
        cluster.until("one", "stopped" if wanted == "stop" else "ready")
        assert cluster.instance("one")["desired"] == ("stopped" if wanted == "stop" else "running")


def test_a_removed_run_directory_costs_no_line_whoever_dies_next(cluster: Cluster) -> None:
    """A cleaner of /tmp was here: the pipes that are in use have no name any more."""
    cluster.write(services(service("counting", COUNTING))).up().ready()
    pid = cluster.instance("counting")["pid"]
    await_more_lines(cluster)
    shutil.rmtree(cluster.run_dir)
    until(lambda: accepts(cluster.run_dir / "control.sock"), "the supervisor answers again")
    await_more_lines(cluster)
    kill_log_writer(cluster)
    await_more_lines(cluster)
    cluster.kill_supervisor()
    cluster.up().ready()
    assert cluster.instance("counting")["pid"] == pid
    until(lambda: len(log_writers(cluster)) == 1, "one log writer is left")
    await_more_lines(cluster)
    assert no_line_is_missing(cluster)
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.instance("counting")["pid"] not in (None, pid), "it is started again")
    await_more_lines(cluster)


def test_what_it_is_told_while_it_starts_it_does_when_it_can(cluster: Cluster) -> None:
    """`kill -HUP` right after a restart, by a script that has just written the file."""
    cluster.write(services(service("one", SLEEP)))
    with cluster.output.open("wb") as output:
        cluster.process = subprocess.Popen(
            [*COMMAND, "up", *cluster.places],
            env=cluster.environ,
            cwd=ROOT,
            preexec_fn=die_with_parent,
            stdout=output,
            stderr=output,
        )
    pid = cluster.process.pid
    until(lambda: blocks(pid, signal.SIGHUP), "it starts")
    cluster.process.send_signal(signal.SIGHUP)
    until(
        lambda: cluster.process.poll() is not None or accepts(cluster.run_dir / "control.sock"),
        "it answers",
    )
    assert cluster.process.poll() is None
    cluster.ready()
    assert not blocks(pid, signal.SIGHUP)


def blocks(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) >> (number - 1) & 1)


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
