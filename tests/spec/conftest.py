"""The fixture of all tests of the cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest
from writer import Writer


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a cluster file into a folder of its own, and loads it."""
    return Writer(tmp_path)
