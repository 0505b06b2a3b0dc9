"""Cluster files with ports of their own, and a supervisor that runs one."""

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

_PORTS = 64

Content = dict[str, Any]
"""Of a cluster file."""
Edit = Callable[[Content], None]


# ---------------------------------------------------------------- files


def demo(edit: Edit | None = None) -> Content:
    """The default cluster, with ports of its own."""
    path = ROOT / "configs" / "cluster.yaml"
    content: Content = yaml.safe_load(path.read_text())
    for worker in content["workers"].values():
        worker["model_path"] = str((path.parent / worker["model_path"]).resolve())
    first = _free_block(_PORTS)
    content["controller"]["port"] = first
    content["api_server"]["port"] = first + 1
    content["port_range"] = f"{first + 2}-{first + _PORTS - 1}"
    if edit:
        edit(content)
    return content


def with_workers(count: int) -> Content:
    """The same with this many workers, each of a model of its own name."""

    def edit(content: Content) -> None:
        owl = content["workers"]["tiny-owl"]["model_path"]
        content["workers"] = {f"owl-{i}": {"model_path": owl} for i in range(count)}

    return demo(edit)


def count_each_kill_as_the_first(content: Content) -> None:
    """An edit: whatever becomes ready is stable at once, so that no backoff blurs the figures."""
    for service in [content["controller"], content["api_server"], *content["workers"].values()]:
        service["restart"] = {"stable_after": "0s"}


# ---------------------------------------------------------------- supervised


class Supervised:
    """`llm-supervisor up`, with all its files in a folder."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path, content: Content) -> None:
        self.folder = folder
        self.file = folder / "cluster.yaml"
        self.output = folder / "up.log"
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))
        self.models = list(content.get("workers", ()))
        self.url = f"http://127.0.0.1:{content.get('api_server', {}).get('port')}"

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

    def up(self) -> None:
        self.process = spawn(
            self.command_line("up"),
            self.output,
            env=environment(),
            at_our_death=signal.SIGTERM,
        )

    def up_and_ready(self) -> None:
        self.up()
        self.await_answering()
        self.await_ready()

    def await_answering(self) -> None:
        socket_file = self.folder / "run" / "control.sock"
        end = time.monotonic() + SLOWEST_START
        while not _accepts(socket_file) and self.pid and time.monotonic() < end:
            time.sleep(0.02)

    def await_ready(self) -> None:
        self.ask("wait", "--timeout", str(SLOWEST_START))

    @property
    def pid(self) -> int:
        """The supervisor's pid; raises RuntimeError if it has ended."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(self.output.read_text())
        return self.process.pid

    def pids(self) -> dict[str, int]:
        """The pid of each instance that runs."""
        instances = json.loads(self.ask("status", "--json"))["instances"]
        return {one["name"]: one["pid"] for one in instances if one["pid"]}

    def down(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()


# ---------------------------------------------------------------- folders and ports


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def supervised(edit: Edit | None = None) -> Iterator[Supervised]:
    """The default cluster, supervised and ready."""
    with folder() as place:
        cluster = Supervised(place, demo(edit))
        try:
            cluster.up_and_ready()
            yield cluster
        finally:
            cluster.down()


def _accepts(path: Path) -> bool:
    """Whether anybody listens on this Unix socket; one of a killed process is still there."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def free_ports(count: int) -> range:
    first = _free_block(count)
    return range(first, first + count)


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
