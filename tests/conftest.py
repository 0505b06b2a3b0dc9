"""What all tests share: a cluster that is not started yet, and the rule that CI skips nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NOT_POSSIBLE, Cluster
from hypothesis import HealthCheck, settings

# A test asserts no duration: the machine may be busy with anything.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_skipped: list[str] = []
_not_possible: dict[str, list[str]] = {}
"""Tests by the reason why they cannot run here."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.skipped:
        return
    _, _, reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "").rpartition(
        NOT_POSSIBLE
    )
    if NOT_POSSIBLE in str(report.longrepr):
        _not_possible.setdefault(reason, []).append(report.nodeid)
    else:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for reason, tests in _not_possible.items():
        print(f"\nNOT RUN, since this machine cannot: {reason}", *tests, sep="\n  ")
    if os.environ.get("CI") and _skipped:
        print("\nskipped in CI, where every test must run:", *_skipped, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that is not started yet."""
    one = Cluster(tmp_path)
    yield one
    one.down()
