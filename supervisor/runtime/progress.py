"""The records in which workers note their progress, and what the kernel says of their processes.

A record is a file in ``run_dir/progress``, named like its instance; its path reaches the worker
through the environment, and what is in it is described in ``fastchat/entry/progress.py``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from supervisor.core.progress import Look, Record

VARIABLE = "LLM_SUPERVISOR_PROGRESS"

_LENGTH = 4096
"""Bytes; more than a record has."""
_TRIES = 3
"""A record is overwritten in a microsecond: one that is half old is whole when it is read again."""
_SHARE = 0.05
"""Of a processor, from which on a process counts as at work. An idle worker uses a tenth of it."""
_LEAST_SPAN = 0.05
"""Seconds; the kernel counts the processor's time in hundredths."""


@dataclass
class _Work:
    """What a process had used of the processor when it was last looked at. Times are seconds."""

    pid: int
    used: float
    looked_at: float
    worked_at: float


class ProgressRecords:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._work: dict[str, _Work] = {}

    def begin(self, name: str) -> Path:
        """Where a process that is about to start may keep its record; what was there is gone.

        The worker makes the file itself: if that cannot be done, it starts all the same.
        """
        path = self._folder / name
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
        return path

    def forget(self, name: str) -> None:
        self._work.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def look(self, name: str) -> Look | None:
        """None if there is no record of a process that runs."""
        record = _read(self._folder / name)
        kernel = _process(record.pid) if record else None
        if record is None or kernel is None:
            return None
        state, used = kernel
        now = time.monotonic()
        worked_at = self._worked_at(name, record.pid, used, now)
        return Look(now, record, stopped=state in "Tt", worked_at=worked_at)

    def _worked_at(self, name: str, pid: int, used: float, now: float) -> float:
        before = self._work.get(name)
        if before is None or before.pid != pid:
            # Nobody has looked before, so that nobody can say that it did nothing.
            before = self._work[name] = _Work(pid, used, now, worked_at=now)
        span = now - before.looked_at
        if span < _LEAST_SPAN:
            return before.worked_at
        worked_at = now if used - before.used >= _SHARE * span else before.worked_at
        self._work[name] = _Work(pid, used, now, worked_at)
        return worked_at


def _read(path: Path) -> Record | None:
    """None if it is missing, empty or nonsense: it is written by a process that may be ill."""
    for _ in range(_TRIES):
        try:
            found = json.loads(_content(path))
            if found["n"] == found["end"]:
                return _record(found)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass
    return None


def _content(path: Path) -> bytes:
    """Whatever has been put there instead of a file, it is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, _LENGTH, 0)
    finally:
        os.close(descriptor)


def _record(found: dict[str, Any]) -> Record:
    """Raises KeyError or TypeError where something is not what it should be."""
    record = Record(**{field.name: found[field.name] for field in fields(Record)})
    whole = (record.pid, record.in_flight, record.embeddings, record.failures)
    times = (record.began, record.progress, record.oldest or 0.0, record.success or 0.0)
    if not (
        all(type(one) is int for one in whole)
        and all(isinstance(one, float | int) and math.isfinite(one) for one in times)
        and isinstance(record.error, str)
    ):
        raise TypeError
    return record


def _process(pid: int) -> tuple[str, float] | None:
    """State letter and seconds of processor time (proc(5), stat); None if it does not run."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            words = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    ticks = int(words[11]) + int(words[12])
    return words[0].decode(), ticks / os.sysconf("SC_CLK_TCK")
