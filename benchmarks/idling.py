"""What the supervisor alone costs while the default cluster idles, and how fast it answers."""

from __future__ import annotations

import subprocess
import time

from clusters import LLM_SUPERVISOR, Supervised, supervised
from figures import Row
from processes import children, command_line, cpu_seconds, environment, memory

_SETTLE = 3.0
_SPAN = 30.0
"""Seconds over which processor time is counted."""
_RUNS = 20


def measure(rounds: int) -> list[Row]:
    with supervised() as cluster:
        time.sleep(_SETTLE)
        writer = _log_writer(cluster)
        shares = _processor_shares([cluster.pid, writer], max(1, rounds // 2))
        ours, writers = memory(cluster.pid), memory(writer)
        status, usage = _latencies(cluster, max(_RUNS, 4 * rounds))
    return [
        Row("supervisor: resident memory (RSS)", "MB", [ours["Rss"]], goal=90),
        Row("supervisor: its share of memory (PSS)", "MB", [ours["Pss"]]),
        Row("supervisor: processor", "%", [one[0] for one in shares], goal=1),
        Row("log writer: resident memory (RSS)", "MB", [writers["Rss"]]),
        Row("log writer: its share of memory (PSS)", "MB", [writers["Pss"]]),
        Row("log writer: processor", "%", [one[1] for one in shares]),
        Row("`llm-supervisor status`", "s", status, goal=0.3),
        Row("`llm-supervisor --help`", "s", usage, goal=0.2),
    ]


def _log_writer(cluster: Supervised) -> int:
    return next(p for p in children(cluster.pid) if b"logwriter.py" in command_line(p))


def _processor_shares(pids: list[int], times: int) -> list[list[float]]:
    """Percent of one core used by each process, over ``times`` spans."""
    found = []
    for _ in range(times):
        began, before = time.monotonic(), [cpu_seconds(pid) for pid in pids]
        time.sleep(_SPAN)
        span, after = time.monotonic() - began, [cpu_seconds(pid) for pid in pids]
        found.append([100 * (b - a) / span for a, b in zip(before, after, strict=True)])
    return found


def _latencies(cluster: Supervised, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of `status` and of `--help`, in turn; the first of each is not counted."""
    status, usage = cluster.command_line("status"), [LLM_SUPERVISOR, "--help"]
    found = [(_seconds(status), _seconds(usage)) for _ in range(runs + 1)][1:]
    return [one for one, _ in found], [other for _, other in found]


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began
