"""Many workers start a few at a time, for real: processes, ports, FastChat's controller.

The workers are stand-ins of the standard library, which load for as long as a test wants them to.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from harness import Cluster, free_ports, until

STAND_IN = f"""\
#!{sys.executable} -IS
# Given as `python`: the entry module in our arguments is not run. Loading ends when there is a
# file `loaded` beside the weights.
import json, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

flags = dict(zip(sys.argv[2:], sys.argv[3:]))
print("loading", flags["--model-path"], flush=True)
while not pathlib.Path(flags["--model-path"], "loaded").exists():
    time.sleep(0.01)

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({{"speed": 1, "queue_length": 0, "text": "a token"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer(("127.0.0.1", int(flags["--port"])), Handler).serve_forever()
"""


class Workers:
    """A cluster of stand-ins, by name and size of their weights."""

    def __init__(self, cluster: Cluster, limit: str, **sizes: int) -> None:
        self.cluster = cluster
        self.sizes = sizes
        self.ports = free_ports(1 + len(sizes))
        program = cluster.folder / "stand-in"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        for name, size in sizes.items():
            self.folder(name).mkdir()
            (self.folder(name) / "model.safetensors").write_bytes(b"x" * size)
        self.write(limit)

    def folder(self, name: str) -> Path:
        return self.cluster.folder / name

    def write(self, limit: str) -> None:
        controller, *ports = self.ports
        workers = "".join(
            f"  {name}: {{model_path: ./{name}, port: {port}}}\n"
            for name, port in zip(self.sizes, ports, strict=True)
        )
        top = textwrap.dedent(f"""\
            controller: {{port: {controller}}}
            max_parallel_starts: {limit}
            defaults: {{python: ./stand-in, device: cpu}}
            workers:
            """)
        self.cluster.write(top + workers)

    def loaded(self, name: str) -> None:
        (self.folder(name) / "loaded").touch()

    def starting(self, *names: str) -> None:
        """Wait until these, and no others, are loading; none that is to wait has been spawned."""

        def are() -> bool:
            states = self.states()
            return {name for name, state in states.items() if state == "starting"} == set(names)

        until(are, f"{', '.join(names)} are starting")

    def states(self) -> dict[str, str]:
        found = self.cluster.status()["instances"]
        return {one["service"]: one["state"] for one in found if one["role"] == "worker"}

    def spawned(self) -> list[str]:
        """Workers in the order in which their processes came to be."""
        done = self.cluster.run("events", "--json")
        events = map(json.loads, done.stdout.splitlines())
        found = {e["pid"]: e["instance"] for e in events if e["state"] == "starting" and e["pid"]}
        return [name for name in found.values() if name != "controller"]


@pytest.fixture
def three(cluster: Cluster) -> Workers:
    return Workers(cluster, "1", small=1000, large=3000, middle=2000)


def test_one_after_the_other_the_largest_first_and_more_at_once_when_the_file_says_so(
    three: Workers,
) -> None:
    cluster = three.cluster.up()
    three.starting("large")
    waits = "waits: 1 worker is starting (large-0), max_parallel_starts is 1"
    assert cluster.instance("small-0")["reason"] == waits
    assert cluster.instance("middle-0")["reason"] == waits
    three.loaded("large")
    three.starting("middle")
    assert three.states() == {"small": "stopped", "large": "ready", "middle": "starting"}
    why = cluster.run("why", "small").stdout
    assert re.search(r"Next: it starts when there is a place: 1 worker is starting \(middle-0", why)

    three.write("2")
    three.starting("middle", "small")
    three.loaded("small")
    three.loaded("middle")
    cluster.ready()
    assert three.spawned() == ["large-0", "middle-0", "small-0"]


def test_who_crashes_is_back_at_once_and_who_is_stopped_makes_room(three: Workers) -> None:
    three.loaded("large")
    cluster = three.cluster.up()
    three.starting("middle")
    (three.folder("large") / "loaded").unlink()
    os.kill(cluster.instance("large-0")["pid"], signal.SIGKILL)
    three.starting("large", "middle")
    assert cluster.run("stop", "large", "middle").returncode == 0
    three.starting("small")
