"""How much memory is free for what is about to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from supervisor.runtime.cgroups import own_group

_MEMINFO = Path("/proc/meminfo")


def available(meminfo: Path = _MEMINFO, group: Path | None = None) -> int | None:
    """Bytes that can be had without swapping, what the page cache can give back included; None if
    nobody tells. Of the machine or, if that is less, of our control group (v2) or one above it.
    """
    amounts = list(_machine(meminfo))
    inner = group or own_group()
    for folder in (inner, *inner.parents) if inner else ():
        amounts += _group(folder)
    return max(0, min(amounts)) if amounts else None


def _machine(meminfo: Path) -> Iterator[int]:
    found = _numbers(meminfo).get("MemAvailable:")
    if found is not None:
        yield found * 1024


def _group(folder: Path) -> Iterator[int]:
    try:
        most = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # there is no limit ("max"), or no such file
        return
    yield most - used + _numbers(folder / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """Name and number of each line."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
