"""The chaos run and the soak in their short forms: `make chaos` and `make soak` run any length."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, Cluster, die_with_parent

from chaos import soak


@pytest.mark.e2e
@pytest.mark.timeout(600)  # a minute of blows, and the last one to its end on a slow machine
@pytest.mark.parametrize("form", ["fast", "fastchat"])
def test_a_minute_of_chaos(form: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    told = _run("--form", form, "--seconds", "60", "--seed", "4", "--json", str(figures))
    assert figures.exists(), told
    found = json.loads(figures.read_text())
    assert found["violations"] == [], told
    assert found["blows"] >= 1, told  # how many fit into the time is the machine's affair
    assert found["requests"] > 0, told


@pytest.mark.timeout(600)
def test_descriptors_and_threads_do_not_grow_with_restarts(cluster: Cluster) -> None:
    samples = soak.soak(cluster, 1_000)  # a leak of one in a hundred is seen
    assert not [what for what in soak.growth(samples) if not what.startswith("memory")]


def _run(*arguments: str) -> str:
    """The run, to its end; what it has said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        preexec_fn=die_with_parent,
    )
    try:
        return process.communicate()[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
