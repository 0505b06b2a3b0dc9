"""The wall clock may jump (NTP, a person, a dead battery): nothing in supervision looks at it.

All times of decisions, timers and probes are of the event loop's monotonic clock. The wall clock
only dates what people read. This holds the source to it, module by module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "supervisor"

WALL_CLOCK = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.strftime",
              "time.ctime", "time.CLOCK_REALTIME", "datetime.now", "datetime.utcnow",
              "datetime.today", "date.today"}  # fmt: skip

DATES_FOR_PEOPLE = {
    ("cli/status.py", "datetime.now"): "for how long a state lasts, in the client",
    ("daemon/api.py", "time.time"): "moments of the loop's clock as dates",
    ("daemon/main.py", "time.time"): "since when it runs, and the dates of the journal",
    ("runtime/logs.py", "datetime.now"): "the dates of our marks in the logs",
}


def uses(path: Path) -> Iterator[str]:
    """What a module reads of the clock, also where it is passed on as a function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ".".join(ast.unparse(node).split(".")[-2:])
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names)


def test_the_wall_clock_only_dates_what_people_read() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), use)
        for path in PACKAGE.rglob("*.py")
        for use in uses(path)
        if use in WALL_CLOCK
    }
    assert found == set(DATES_FOR_PEOPLE)


def test_the_one_calculation_with_it_survives_a_jump() -> None:
    """A moment's date is the wall clock of now less the monotonic time since, so that after a jump
    all dates are right by the new clock; it is the only sum in which the two meet."""
    source = ast.unparse(ast.parse((PACKAGE / "daemon/api.py").read_text("utf-8")))
    assert source.count("time.time()") == 1
    assert "time.time() - (asyncio.get_running_loop().time() - moment)" in source
