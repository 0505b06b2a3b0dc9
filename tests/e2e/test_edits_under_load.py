"""The promise of editing: clients notice nothing, and who is not concerned keeps its process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, die_with_parent

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(900)  # a dozen edits, and FastChat's imports for most of them
def test_no_request_fails_while_the_file_is_edited(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    told = _run(
        *("--small", "--requests", "300", "--clients", "6"),
        *("--keep", str(tmp_path / "cluster"), "--json", str(figures)),
    )
    assert figures.exists(), told
    found = json.loads(figures.read_text())
    assert found["failures"] == [], told
    assert found["surprises"] == [], told
    assert found["requests"] >= 300
    assert found["streamed"] >= 100


def _run(*arguments: str) -> str:
    """The benchmark, to its end; what it has said."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "edits.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        preexec_fn=die_with_parent,
    )
    try:
        return process.communicate()[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
