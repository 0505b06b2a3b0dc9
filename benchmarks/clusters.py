"""The default cluster in three ways: supervised, by hand all at once, and by the nohup script."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from processes import environment, spawn

ROOT = Path(__file__).parent.parent
LLM_SUPERVISOR = str(Path(sys.executable).with_name("llm-supervisor"))
SLOWEST_START = 180.0
"""Seconds after which a start counts as failed."""

_PORTS = 20
_GREP_PAUSE = 5.0
"""The script's `sleep 5s` between two looks at a log."""
_BY_HAND_ENV = {
    "CUDA_VISIBLE_DEVICES": "",
    "LOGDIR": "",
    "NO_PROXY": "127.0.0.1,localhost",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What whoever starts FastChat by hand sets as well, so that both sides do the same work."""

Edit = Callable[[dict[str, Any]], None]


class Cluster:
    """A copy of the default cluster's file, with ports of its own, in a folder of its own."""

    def __init__(self, folder: Path, edit: Edit | None = None) -> None:
        self.folder = folder
        self.file = folder / "cluster.yaml"
        content = _default_cluster()
        first = _free_block(_PORTS)
        content["controller"]["port"] = first
        content["api_server"]["port"] = first + 1
        content["port_range"] = f"{first + 2}-{first + _PORTS - 1}"
        if edit:
            edit(content)
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))
        self.url = f"http://127.0.0.1:{first + 1}"
        self.models = list(content["workers"])

    def command_line(self, verb: str, *arguments: str) -> list[str]:
        places = ["-c", str(self.file), "--run-dir", str(self.folder / "run")]
        logs = ["--log-dir", str(self.folder / "logs")]
        return [LLM_SUPERVISOR, verb, *arguments, *places, *logs]

    def ask(self, verb: str, *arguments: str) -> str:
        """What a verb of the command line prints."""
        done = subprocess.run(
            self.command_line(verb, *arguments),
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{verb} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout


# ---------------------------------------------------------------- supervised


class Supervised(Cluster):
    """`llm-supervisor up`."""

    process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        self.process = spawn(
            self.command_line("up"),
            self.folder / "up.log",
            env=environment(),
            at_our_death=signal.SIGTERM,
        )

    def up_and_ready(self) -> None:
        self.up()
        socket_file = self.folder / "run" / "control.sock"
        end = time.monotonic() + SLOWEST_START
        while not _accepts(socket_file) and self.pid and time.monotonic() < end:
            time.sleep(0.02)
        self.await_ready()

    def await_ready(self) -> None:
        self.ask("wait", "--timeout", str(SLOWEST_START))

    @property
    def pid(self) -> int:
        """The supervisor's pid; raises RuntimeError if it has ended."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError((self.folder / "up.log").read_text())
        return self.process.pid

    def pids(self) -> dict[str, int]:
        """The pid of each instance that runs."""
        instances = json.loads(self.ask("status", "--json"))["instances"]
        return {one["name"]: one["pid"] for one in instances if one["pid"]}

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ask("events", "--json").splitlines()]

    def down(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()


# ---------------------------------------------------------------- the same, by hand


class ByHand(Cluster):
    """The same FastChat processes with the same flags, which register themselves."""

    def __init__(self, folder: Path, edit: Edit | None = None) -> None:
        super().__init__(folder, edit)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        changes = json.loads(self.ask("plan", "--json"))["changes"]
        self._commands = {one["instance"]: _registering_itself(one["command"]) for one in changes}

    def start_all_at_once(self) -> None:
        for name in ("controller", "api_server", *self._workers()):
            self._start(name)

    def start_one_by_one(self) -> None:
        """As Langchain-Chatchat's `llm_api_stale.py` does: start one, grep its log, the next."""
        for name in ("controller", *self._workers(), "api_server"):
            self._start(name)
            while "Uvicorn running on" not in self._log(name).read_text():
                time.sleep(_GREP_PAUSE)

    def check(self) -> None:
        """Raises RuntimeError if any process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} crashed: {self._log(name).read_text()[-2000:]}")

    def down(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _start(self, name: str) -> None:
        env = environment() | _BY_HAND_ENV
        self._processes[name] = spawn(self._commands[name], self._log(name), env=env)

    def _workers(self) -> list[str]:
        return [name for name in self._commands if name not in ("controller", "api_server")]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _registering_itself(command: list[str]) -> list[str]:
    """The very command line that the supervisor runs, but for the worker's registration.

    With our entry module as well: without it FastChat does not start under transformers 5.
    """
    return [word for word in command if word != "--no-register"]


# ---------------------------------------------------------------- folders, files, ports


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def supervised(edit: Edit | None = None) -> Iterator[Supervised]:
    """The default cluster, supervised and ready."""
    with folder() as place:
        cluster = Supervised(place, edit)
        try:
            cluster.up_and_ready()
            yield cluster
        finally:
            cluster.down()


def _accepts(path: Path) -> bool:
    """Whether anybody listens on this Unix socket; one of a killed process is still there."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def count_each_kill_as_the_first(content: dict[str, Any]) -> None:
    """An edit: whatever becomes ready is stable at once, so that no backoff blurs the figures."""
    services = [content["controller"], content["api_server"]]
    for service in [*services, *content["workers"].values(), *content.get("services", {}).values()]:
        service["restart"] = {"stable_after": "0s"}


def _default_cluster() -> dict[str, Any]:
    path = ROOT / "configs" / "cluster.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    for worker in content["workers"].values():
        worker["model_path"] = str((path.parent / worker["model_path"]).resolve())
    return content


def _free_block(count: int) -> int:
    """The first of ``count`` free ports, away from those that the kernel gives to clients."""
    while True:
        first = random.randrange(22000, 32000, count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
