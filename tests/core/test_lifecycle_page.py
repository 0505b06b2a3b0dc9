"""docs/lifecycle.md is made from the code, and is not out of date."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import get_args

import pytest

from supervisor.core.lifecycle import Event, Status

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_lifecycle.py"
MAKE = runpy.run_path(str(SCRIPT))


def test_the_page_says_what_the_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert MAKE["main"]() == 0, "run: python scripts/make_lifecycle.py"


def test_the_page_leaves_no_event_out() -> None:
    seen: set[type] = set()
    for before, _, _ in MAKE["explore"](MAKE["SPECS"][0]):
        seen |= {type(event) for event in MAKE["events"](before).values()}
    assert seen == set(get_args(Event))
    assert MAKE["events"](Status()), "there is a way to begin"
