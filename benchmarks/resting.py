"""Our supervisor at rest with instances that have probes, which other supervisors do not know."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from clusters import LLM_SUPERVISOR, free_ports
from contestants import Ours, Work
from processes import memory
from results import Quantity, Results
from sessions import YOUNG, Settings, await_rest, milliseconds, share_of_core

_SIZED = "probed processes"
RSS = Quantity("resting memory", "memory of our supervisor at rest with probes (RSS)", "MB", _SIZED)
WRITER = Quantity("log writer's memory", "memory of its log writer (RSS)", "MB", _SIZED)
CPU = Quantity("resting CPU", "our supervisor at rest with probes, of one core", "%", _SIZED)
HELP = Quantity("help", "`llm-supervisor --help`", "ms", _SIZED)

SIZE = 10
_PROGRAM = Path(__file__).with_name("probed.py")
_HELPS = 5


def measure(folder: Path, settings: Settings, results: Results) -> None:
    services = {f"probed-{i}": _service(port) for i, port in enumerate(free_ports(SIZE))}
    one = Ours(folder, settings.peers, Work({}, {"services": services}))

    def add(quantity: Quantity, *values: float) -> None:
        results.add(quantity, one.name, SIZE, *values)

    try:
        one.prepare()
        one.start()
        one.await_ready()
        time.sleep(YOUNG)
        own = one.own(set())
        await_rest(own)
        add(CPU, share_of_core(own, 2 * settings.span))
        add(RSS, memory({one.pid}, "Rss"))
        add(WRITER, memory(own - {one.pid}, "Rss"))
        add(HELP, *(milliseconds([LLM_SUPERVISOR, "--help"], one) for _ in range(_HELPS)))
    finally:
        one.end()


def _service(port: int) -> dict[str, object]:
    """With the intervals that are the default."""
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-I", "-S", str(_PROGRAM), str(port)]
    return {"command": command, "ready": {"http": url}, "probes": {"liveness": {"http": url}}}
