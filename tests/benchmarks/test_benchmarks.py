"""`make bench` in small: every figure is there. How large it is, is not for a test to say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, die_with_parent, marked, until

PEERS = {"supervisord", "circus", "PM2", "runit", "s6"}
OURS = "llm-supervisor"


@pytest.fixture
def place() -> Iterator[Path]:
    """Its name is short enough for sockets; a killed benchmark leaves its own folder in it."""
    with tempfile.TemporaryDirectory(prefix="bt-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def test_trivial_processes_are_measured_for_everybody_who_is_installed(place: Path) -> None:
    run = _run(place, "--only", "trivial", "resting", "--sizes", "2")
    present = {_name(one) for one in run["contestants"]}
    assert {OURS, "bare fork+exec"} <= present
    for quantity in ("first exec", "all exec", "kill to exec", "memory", "idle CPU"):
        assert _measured(run, quantity) == present, quantity
    for quantity in ("status", "save to exec"):
        assert _measured(run, quantity) == present - {"bare fork+exec"}, quantity
    assert _measured(run, "reload") == present & {OURS, "supervisord", "circus"}
    for quantity in ("resting memory", "log writer's memory", "resting CPU", "help"):
        assert _measured(run, quantity) == {OURS}, quantity
    skipped = dict(line.split(": ", 1) for line in run["not_measured"])
    assert {_name(one) for one in skipped} == PEERS - present


@pytest.mark.e2e
def test_workers_are_measured(place: Path) -> None:
    words = ("--only", "workers", "--workers", "1", "--contestants", "ours", "bare", "--no-warm-up")
    run = _run(place, *words)
    quantities = ("ready", "workers' memory", "whole memory", "idle CPU with workers")
    for quantity in (*quantities, "kill to prompt", "kill to chat"):
        measured = _measured(run, quantity)
        assert measured == {f"{OURS}, warm", f"{OURS}, cold", "bare fork+exec"}, quantity


def test_what_a_killed_benchmark_has_started_ends(place: Path) -> None:
    process, token = _start(place, "--only", "trivial", "--sizes", "5", "--contestants", "ours")
    until(lambda: sum(map(_is_trivial, marked(token))) == 5, "the processes are started")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not marked(token), "all of it has ended")


def test_the_tables_are_put_between_their_marks(place: Path) -> None:
    document = place / "document.md"
    published = (ROOT / "docs" / "benchmarks.md").read_text()
    document.write_text(published)
    words = ("--only", "trivial", "--sizes", "1", "--contestants", "bare", "--no-warm-up")
    _run(place, *words, "--table", str(document))
    begin, end = "<!-- begin", "<!-- end -->"
    before, _, rest = document.read_text().partition(begin)
    assert before == published.partition(begin)[0]
    table, _, after = rest.partition(end)
    assert after == published.partition(end)[2]
    assert "| bare fork+exec |" in table
    assert "not measured" in table  # the goals, of which this run knows nothing


def _run(folder: Path, *arguments: str) -> Any:
    """The figures of a run that goes well."""
    figures = folder / "figures.json"
    process, _ = _start(folder, *arguments, "--json", str(figures))
    try:
        said = process.communicate()[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert process.returncode == 0, said
    return json.loads(figures.read_text())


def _start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """And what all that it starts has in its environment, but for itself."""
    token = f"TEST_BENCHMARK_{os.getpid()}_{folder.name}=1"
    name, _, value = token.partition("=")
    script = str(ROOT / "benchmarks" / "run.py")
    process = subprocess.Popen(
        [sys.executable, script, "--rounds", "1", "--span", "0.5", "--offline", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, name: value, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        preexec_fn=die_with_parent,
    )
    return process, token


def _measured(run: Any, quantity: str) -> set[str]:
    found = [one for one in run["results"] if one["quantity"] == quantity]
    assert all(one["values"] and one["median"] >= 0 for one in found)
    return {one["contestant"] for one in found}


def _name(program: str) -> str:
    """In the tables, of what is called ``program`` on the command line."""
    return {"ours": OURS, "pm2": "PM2", "bare": "bare fork+exec"}.get(program, program)


def _is_trivial(pid: int) -> bool:
    try:
        return b"told.fifo" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
