"""What tests share: waiting for events, free ports, and a cluster run by the real command."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "supervisor"]
DEADLINE = 120.0
"""Seconds after which an awaited event counts as never coming. Not a measure of speed."""
NOT_POSSIBLE = "not possible here: "
"""Begins the reason of a skip that even CI accepts: this machine cannot do what the test needs."""


# ---------------------------------------------------------------- waiting for events


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The first true answer of ``condition``; fails with ``what`` if there never is one."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    pytest.fail(f"never happened: {what}")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def die_with_parent() -> None:
    """Called in a child between fork and exec: it ends when the test run does, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def accepts(path: Path) -> bool:
    """Whether anybody listens on this Unix socket; one of a killed process is still there."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def guard(token: str) -> subprocess.Popen[bytes]:
    """Ends all processes with ``token`` (`NAME=value`) in their environment when we die."""
    script = Path(__file__).with_name("guard.py")
    return subprocess.Popen([sys.executable, "-IS", str(script), token], stdin=subprocess.PIPE)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def marked(needle: str) -> list[int]:
    """Processes with ``needle`` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if needle.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid() and alive(pid)]


def cgroup2() -> Path | None:
    """Where control groups are, if they are of version 2 and we may make some."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2" and os.access(fields[4], os.W_OK):
            return Path(fields[4])
    return None


# ---------------------------------------------------------------- a cluster


class Cluster:
    """A supervisor in a process of its own, driven through the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "cluster.yaml"
        self.run_dir = folder / "run"
        self.log_dir = folder / "logs"
        self.output = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.token = f"TEST_CLUSTER_{os.getpid()}_{id(self)}=1"
        name, _, value = self.token.partition("=")
        self.environ = {**os.environ, name: value}

    def write(self, text: str) -> Cluster:
        self.file.write_text(text)
        return self

    def up(self, *arguments: str) -> Cluster:
        """Start it in a process of its own; returns when it answers, or has ended."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "up", *self.places, *arguments],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self.environ,
                cwd=ROOT,
                preexec_fn=die_with_parent,
            )
        process, socket_file = self.process, self.run_dir / "control.sock"
        until(lambda: accepts(socket_file) or process.poll() is not None, "the supervisor answers")
        return self

    def kill_supervisor(self) -> None:
        """As the kernel's OOM killer does: what it runs is left alone."""
        assert self.process is not None
        if self._guard is None:
            self._guard = guard(self.token)
        self.process.kill()
        self.process.wait()

    def pids(self) -> dict[str, int]:
        """Of every instance that runs."""
        return {one["name"]: one["pid"] for one in self.status()["instances"] if one["pid"]}

    def ready(self) -> Cluster:
        done = self.run("wait", "--timeout", str(DEADLINE))
        assert done.returncode == 0, done.stderr + self.output.read_text()
        return self

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One verb of the command line, to its end."""
        return subprocess.run(
            [*COMMAND, verb, *arguments, *self.places],
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=ROOT,
            timeout=DEADLINE,
            check=False,
        )

    @property
    def places(self) -> list[str]:
        files = ["-c", str(self.file)]
        return [*files, "--run-dir", str(self.run_dir), "--log-dir", str(self.log_dir)]

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def instance(self, name: str) -> dict[str, Any]:
        return next(one for one in self.status()["instances"] if one["name"] == name)

    def until(self, name: str, state: str) -> dict[str, Any]:
        """Wait until an instance is in ``state``; the instance."""

        def there() -> dict[str, Any] | None:
            one = self.instance(name)
            return one if one["state"] == state else None

        found: dict[str, Any] = until(there, f"{name} is {state}")
        return found

    def log(self, name: str) -> str:
        path = self.log_dir / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def processes(self) -> list[int]:
        """All processes of this cluster, the supervisor and the strays too."""
        return marked(self.token)

    def down(self) -> None:
        """End it, whatever it takes, and leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._guard is not None:
            self._guard.communicate()
