"""What every session has: a contestant that ends with it, and looks at a supervisor at rest."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import Protocol

from contestants import Contestant
from processes import cpu_seconds


class Settings(Protocol):
    """Of a run, from its command line."""

    peers: Path
    span: float
    """Seconds over which processor time at rest is counted."""


PATIENCE = 180.0
"""Seconds after which something counts as never done."""
YOUNG = 1.5
"""Seconds. Who dies in its first one is punished with a pause by most supervisors."""
_RESTING, _LOOK, _LONGEST = 3.0, 0.5, 20.0
"""Who uses less than these percent of a core for so many seconds is at rest; some never are."""


def await_rest(pids: set[int]) -> None:
    end = time.monotonic() + _LONGEST
    while share_of_core(pids, _LOOK) > _RESTING and time.monotonic() < end:
        pass


def share_of_core(pids: set[int], span: float) -> float:
    """Percent of one core that all these use together, for the next ``span`` seconds."""
    began, before = time.monotonic(), cpu_seconds(pids)
    time.sleep(span)
    return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - began)


def milliseconds(words: list[str], one: Contestant) -> float:
    """A command, from its start to its end."""
    began = time.monotonic()
    process = subprocess.Popen(
        words,
        env=one.environment(),
        cwd=one.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Not `wait(timeout)`: that looks every 50 ms.
    descriptor = os.pidfd_open(process.pid)
    ended = bool(select.select([descriptor], [], [], PATIENCE)[0])
    took = time.monotonic() - began
    os.close(descriptor)
    if not ended:
        raise TimeoutError(f"`{' '.join(words[:3])} …` did not end in time")
    if status := process.wait():
        raise RuntimeError(f"`{' '.join(words[:3])} …` ended with {status}")
    return 1000 * took
