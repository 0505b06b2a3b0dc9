"""One machine with a real systemd for all stories, and a cluster as a unit in it for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NOT_POSSIBLE
from machine import Machine, why_not
from unit import Unit


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(f"{NOT_POSSIBLE}{reason}")
    one = Machine(tmp_path_factory.mktemp("machine"))
    yield one
    one.close()


@pytest.fixture
def unit(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Unit]:
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[-40:].strip("-")
    folder = Path(machine.folder, name)
    folder.mkdir(mode=0o755)
    one = Unit(machine, folder, name)
    yield one
    one.remove()
