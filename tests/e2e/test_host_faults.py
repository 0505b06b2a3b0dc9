"""Faults of the host, and of what runs on it: the supervisor goes on, says so, and recovers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, alive, die_with_parent, free_ports, until

PYTHON = f"{sys.executable}, -S, -I, -u, -c"
SLEEP = "import signal; signal.pause()"


def service(name: str, code: str, **fields: str) -> str:
    """One entry of `services` that runs Python code."""
    more = "".join(f"    {key}: {value}\n" for key, value in fields.items())
    return f"  {name}:\n    command: [{PYTHON}, {json.dumps(textwrap.dedent(code))}]\n{more}"


def services(*entries: str, top: str = "") -> str:
    return f"{top}\nservices:\n" + "".join(entries)


def reasons(cluster: Cluster, name: str) -> list[str]:
    """Why it has moved, oldest first."""
    lines = cluster.run("events", "--json").stdout.splitlines()
    return [e["reason"] for e in map(json.loads, lines) if e["instance"] == name]


def state_of(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


# ---------------------------------------------------------------- what does not end


@contextlib.contextmanager
def debugger_of(pid: int) -> Iterator[int]:
    """A process that traces another one and does not care what becomes of it; its pid."""
    code = f"""
    import ctypes, signal
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, {pid}, None, None) != 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "ptrace")
    print("attached", flush=True)
    signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"attached\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_that_a_debugger_holds_is_named_and_waited_for(cluster: Cluster) -> None:
    cluster.write(services(service("held", SLEEP, stop_grace="1h"))).up().ready()
    held = cluster.instance("held")["pid"]
    assert cluster.process is not None
    with debugger_of(held) as debugger:
        cluster.process.terminate()
        by_debugger = rf"by pid {debugger} \(.*\), which traces it"
        until(
            lambda: re.search(
                rf"Still there: pid {held} \(.*\), stopped {by_debugger}",
                cluster.run("why", "held").stdout,
            ),
            "the debugger is named",
        )
        for stage in ("SIGINT", "SIGKILL", "not even SIGKILL"):
            cluster.process.terminate()
            until(lambda stage=stage: stage in cluster.output.read_text(), stage)
        until(
            lambda: re.search(
                rf"not even SIGKILL ends it: pid {held} \(.*\), dead, but kept {by_debugger}",
                cluster.output.read_text(),
            ),
            "the event names it",
        )
        why = cluster.run("why", "held").stdout
        assert re.search(rf"Still there: pid {held} \(.*\), dead, but kept {by_debugger}", why)
        assert cluster.process.poll() is None, "it does not leave before it has ended"
    assert cluster.process.wait() == 0
    assert cluster.processes() == []


def test_a_grandchild_that_ignores_sigterm_is_named(cluster: Cluster) -> None:
    code = """
    import os, signal
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("deaf", os.getpid())
        while True: signal.pause()
    signal.pause()
    """
    cluster.write(services(service("family", code, stop_grace="1h"))).up().ready()
    deaf = until(lambda: re.findall(r"^deaf (\d+)", cluster.log("family"), re.M), "it is deaf")[0]
    leader = cluster.instance("family")["pid"]
    assert cluster.process is not None
    cluster.process.terminate()
    until(lambda: not alive(leader), "the leader ends")
    why = cluster.run("why", "family").stdout
    assert re.search(rf"Still there: pid {deaf} \(.*\), sleeping", why)
    assert f"pid {leader} (" not in why
    for stage in ("SIGINT", "SIGKILL"):
        cluster.process.terminate()
        until(lambda stage=stage: f"sending {stage}" in cluster.output.read_text(), stage)
    assert cluster.process.wait() == 0
    assert cluster.processes() == []


# ---------------------------------------------------------------- what it has died of


def test_want_of_gpu_memory_is_waited_for_and_told(cluster: Cluster) -> None:
    code = "raise SystemExit('torch.OutOfMemoryError: CUDA out of memory. Tried 86.00 MiB')"
    greedy = service("greedy", code, restart="{backoff: 10ms}")
    cluster.write(services(greedy)).up()
    told = "the GPU is out of memory (torch.OutOfMemoryError"
    until(lambda: told in cluster.until("greedy", "backoff")["reason"], "its cause is known")
    one = cluster.until("greedy", "backoff")
    assert one["last_exit_class"] == "out of GPU memory"
    assert "to wait for GPU memory" in one["reason"]
    assert one["restarts"] == 1, "not one for every ten milliseconds"
    why = cluster.run("why", "greedy").stdout
    assert "Its last end counts as: out of GPU memory." in why
    assert "others may have freed GPU memory by then" in why
    assert any("to wait for GPU memory" in reason for reason in reasons(cluster, "greedy"))


def test_who_has_its_port_is_named(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        code = f"""
        import asyncio
        async def main():
            server = await asyncio.start_server(print, "127.0.0.1", {port})
            await server.serve_forever()
        asyncio.run(main())
        """
        cluster.write(services(service("late", code))).up()
        until(
            lambda: f"(pid {os.getpid()})" in (cluster.instance("late")["last_exit"] or ""),
            "the holder is named",
        )
        one = cluster.until("late", "backoff")
        assert one["last_exit_class"] == "port busy"
        assert f"port {port} is in use by" in one["reason"]
        assert "to wait for the port" in one["reason"]
    cluster.until("late", "ready")


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path | None]:
    """A control group with that many bytes of memory; None where none can be made."""
    name = f"llm-supervisor-test-{os.getpid()}"
    roots = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
    for root, setting in roots.items():
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / setting).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            until(lambda group=group: not (group / "cgroup.procs").read_text(), "it is empty")
            group.rmdir()
        return
    yield None


def test_a_kill_by_the_kernel_is_told_from_one_by_hand(cluster: Cluster) -> None:
    """A real one, in a memory control group; where there is none, the one by hand alone."""
    code = """
    import os, pathlib, signal
    group = pathlib.Path(os.environ["GROUP"])
    go = pathlib.Path(os.environ["GO"])
    if go.exists():
        go.unlink()
        (group / "cgroup.procs").write_text(str(os.getpid()))
        memory = [bytearray(1 << 20) for _ in range(200)]
    signal.pause()
    """
    go = cluster.folder / "go"
    with memory_cgroup(30 << 20) as group:
        env = f"{{GROUP: {group}, GO: {go}}}"
        cluster.write(services(service("one", code, env=env))).up().ready()
        os.kill(cluster.instance("one")["pid"], signal.SIGKILL)
        by_hand = "was killed by SIGKILL (by hand, or by the kernel for want of memory)"
        until(lambda: cluster.instance("one")["last_exit"] == by_hand, "it was killed by hand")
        assert cluster.instance("one")["last_exit_class"] == "unknown"
        if group is None:
            print("no memory control group can be made here: the kernel's kill is left out")
            return
        go.touch()
        cluster.run("restart", "one")
        by_kernel = "was killed by SIGKILL: the kernel killed it for want of memory"
        until(lambda: cluster.instance("one")["last_exit"] == by_kernel, "the kernel killed it")
        assert cluster.instance("one")["last_exit_class"] == "out of host memory"
        cluster.down()


# ---------------------------------------------------------------- what the host has no more of


@contextlib.contextmanager
def no_free_descriptors(cluster: Cluster) -> Iterator[None]:
    """Clients of the API have all that the supervisor may have."""
    assert cluster.process is not None
    pid = cluster.process.pid
    descriptors = Path(f"/proc/{pid}/fd")
    limit = len(list(descriptors.iterdir())) + 5
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(2 * limit):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(cluster.run_dir / "control.sock"))
        until(lambda: len(list(descriptors.iterdir())) >= limit, "none is free")
        yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def strays(cluster: Cluster) -> list[int]:
    return [int(pid) for pid in re.findall(r"^stray (\d+)", cluster.log("family"), re.M)]


@pytest.mark.parametrize("took_over", [False, True])
def test_without_free_descriptors_it_goes_on_and_says_so_once(
    cluster: Cluster, took_over: bool
) -> None:
    """One that took over from a killed supervisor has to look for strays everywhere."""
    code = """
    import os, signal
    if os.fork() == 0:
        os.setsid()
        print("stray", os.getpid())
    signal.pause()
    """
    family, other = service("family", code), service("other", SLEEP)
    cluster.write(services(family, other)).up().ready()
    until(lambda: strays(cluster), "it runs")
    runs = 1
    if took_over:
        before = cluster.instance("family")["pid"]
        cluster.kill_supervisor()
        os.kill(before, signal.SIGKILL)
        cluster.up().ready()
        until(lambda: len(strays(cluster)) == 2, "it is replaced")
        runs = 2
    stray = strays(cluster)[-1]
    first, beside = cluster.instance("family")["pid"], cluster.instance("other")["pid"]
    complaint = "no file descriptor is free"
    with no_free_descriptors(cluster):
        until(lambda: complaint in cluster.output.read_text(), "it says so")
        os.kill(first, signal.SIGKILL)
        until(lambda: len(strays(cluster)) == runs + 1, "it is replaced")
        assert not alive(stray), "and its family is gone"
    assert cluster.until("family", "ready")["restarts"] == runs
    assert cluster.instance("other")["pid"] == beside
    assert cluster.output.read_text().count(complaint) == 1
    assert "Traceback" not in cluster.output.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "llm-supervisor-test", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


TALKER = """
import itertools, os, time
said = open(os.environ["SAID"], "ab", buffering=0)
for i in itertools.count(1):
    print(f"line {i} of {os.getpid()}")
    said.write(b".")
    time.sleep(0.001)
"""


def test_a_full_disk_of_the_logs_stops_nobody(cluster: Cluster, small_disk: Path) -> None:
    """What finds no room is lost, and the log says how much; nobody waits for it."""
    cluster.log_dir = small_disk / "logs"
    said = cluster.folder / "said"
    talker = service("talker", TALKER, env=f"{{SAID: {said}}}")
    cluster.write(services(talker, service("other", SLEEP), top="logs: {max_size: 1GB}")).up()
    cluster.ready()
    pid = cluster.instance("talker")["pid"]
    until(lambda: "line 1 of" in cluster.log("talker"), "it talks")
    with full(small_disk):
        since = said.stat().st_size
        until(lambda: said.stat().st_size > since + 2000, "it talks on")
        told = "output of instances is being lost (No space left on device)"
        assert told in cluster.output.read_text()
        assert cluster.instance("talker")["pid"] == pid
        os.kill(cluster.instance("other")["pid"], signal.SIGKILL)
        until(lambda: cluster.instance("other")["restarts"] == 1, "the other one is replaced")
        cluster.until("other", "ready")
    lost = r"^llm-supervisor: (\d+) bytes of output lost: No space left on device$"
    until(lambda: re.search(lost, cluster.log("talker"), re.M), "the log admits it")
    until(lambda: "can be written again" in cluster.output.read_text(), "so does the supervisor")
    assert cluster.output.read_text().count(told) == 1
    assert cluster.instance("talker")["pid"] == pid


def test_a_full_disk_of_the_run_directory_stops_nobody(cluster: Cluster, small_disk: Path) -> None:
    """A crash and an edit are carried out; it says what it could not write, and later it can. An
    upgrade, and whoever comes after a killed supervisor, take over all the same."""
    cluster.run_dir = small_disk / "run"
    one = service("one", SLEEP)
    cluster.write(services(one)).up().ready()
    with full(small_disk):
        os.kill(cluster.instance("one")["pid"], signal.SIGKILL)
        until(lambda: cluster.instance("one")["restarts"] == 1, "it is replaced")
        cluster.until("one", "ready")
        cluster.write(services(one, service("two", SLEEP)))
        assert cluster.run("reload").returncode == 0
        cluster.until("two", "ready")
        assert "No space left on device" in cluster.output.read_text()
        before = cluster.pids()
        assert cluster.run("upgrade").returncode == 0
        assert cluster.pids() == before
        cluster.kill_supervisor()
        cluster.up().ready()
        assert cluster.pids() == before
    pid = cluster.instance("two")["pid"]
    cluster.write(services(one, service("two", SLEEP), service("three", SLEEP)))
    assert cluster.run("reload").returncode == 0
    cluster.until("three", "ready")
    assert cluster.instance("two")["pid"] == pid
    assert "Traceback" not in cluster.output.read_text()
    cluster.down()
    assert cluster.processes() == []


@pytest.mark.parametrize("how", ["upgraded", "killed"])
def test_a_supervisor_comes_back_where_it_cannot_note_its_ports(cluster: Cluster, how: str) -> None:
    """As on a disk that is full to the last byte."""
    pids = cluster.write(services(service("one", SLEEP))).up().ready().pids()
    (cluster.run_dir / "ports.json.new").mkdir()
    if how == "killed":
        cluster.kill_supervisor()
        cluster.up()
    else:
        done = cluster.run("upgrade")
        assert done.returncode == 0, done.stderr + cluster.output.read_text()
    assert cluster.pids() == pids


# ---------------------------------------------------------------- time


SLOW = """
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.serve_forever()
"""


def test_a_supervisor_that_was_suspended_blames_nobody_for_it(cluster: Cluster) -> None:
    """SIGSTOP, a debugger, a machine that slept: nobody was there to hear the answer."""
    (port,) = free_ports(1)
    touchy = f"{{http: 'http://127.0.0.1:{port}/', interval: 10ms, timeout: 1s, failures: 1}}"
    slow = service(
        "slow",
        SLOW,
        env=f"{{PORT: {port}}}",
        ready=f"{{http: 'http://127.0.0.1:{port}/'}}",
        probes=f"{{liveness: {touchy}, readiness: {touchy}}}",
    )
    cluster.write(services(slow, service("other", SLEEP))).up().ready()
    pids = {name: cluster.instance(name)["pid"] for name in ("slow", "other")}
    assert cluster.process is not None
    for _ in range(3):
        cluster.process.send_signal(signal.SIGSTOP)
        pid = cluster.process.pid
        until(lambda pid=pid: state_of(pid) == "T", "it is suspended")
        time.sleep(1.5)  # longer than the probes' patience, which is what this is about
        cluster.process.send_signal(signal.SIGCONT)
        until(lambda: "running" in cluster.instance("slow")["desired"], "it is back")
    cluster.process.send_signal(signal.SIGSTOP)
    os.kill(pids["other"], signal.SIGKILL)
    until(lambda: state_of(pids["other"]) == "Z", "nobody reaps it")
    cluster.process.send_signal(signal.SIGCONT)
    until(lambda: cluster.instance("other")["restarts"] == 1, "it is replaced")
    assert cluster.instance("slow")["pid"] == pids["slow"]
    assert [r for r in reasons(cluster, "slow") if "failed" in r] == []
