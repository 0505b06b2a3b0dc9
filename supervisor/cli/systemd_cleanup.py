"""What a unit's ``ExecStopPost`` runs: ends what a supervisor has left, if none comes to adopt it.

    python -m supervisor.cli.systemd_cleanup --run-dir DIR --unit NAME [--user]

Under ``KillMode=process`` systemd signals the supervisor alone. One that ends in order leaves
nothing. One that was killed (by its watchdog, for want of memory, by hand) leaves all instances:
the next one, a second later, adopts them. But if the unit is stopped there is no next one, and that
can still happen after we have looked: while we run, or in the time before the restart, when systemd
runs nothing of the unit any more. So after a crash a guard stays behind, until there is a new
supervisor, or none to come.

What ends a supervisor, and what follows (``$SERVICE_RESULT``, ``$EXIT_CODE``, ``$EXIT_STATUS``, the
unit's job):

| | result, code, status | job | |
|---|---|---|---|
| ``systemctl stop``, shutdown | success exited 0 | stop | end what is left |
| ``llm-supervisor down``, SIGTERM | success exited 0 | none | end what is left |
| ``systemctl restart`` | success exited 0 | restart | end what is left |
| stop of a frozen one, in the end killed | timeout killed KILL | stop | end what is left |
| ``kill -9``, out of memory | signal killed KILL | none | guard; adopted |
| watchdog | watchdog killed ABRT | none | guard; adopted |
| restart of a frozen one | timeout killed KILL | restart | guard; adopted |
| ... and ``systemctl stop`` soon after | as above | stop | end what is left, or the guard does |
| invalid file, nothing running | exit-code exited 2 | none | a pause |
| somebody has started it by hand | exit-code exited 1 | none | a pause; nothing is ours |
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from supervisor.runtime import tree
from supervisor.runtime.cgroups import Cgroups
from supervisor.runtime.rundir import RunDir

_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_LAST_LINES = 2.0
"""Seconds for the log writer, which ends by itself when nobody writes any more."""
_LOOK = 0.2
"""Seconds between two looks at what becomes of the unit."""
_LOOKS = 2
"""In a row that must say that nobody comes: between stop and start of a restart one might."""
_PAUSE = 10.0
"""Seconds until the next try where nothing could be started, and nothing runs."""


class Fate(Enum):
    """What becomes of a unit whose supervisor has ended."""

    BACK = auto()
    """There is a new supervisor."""
    COMING = auto()
    """There will be, or nobody knows yet."""
    DOWN = auto()
    """There will be none."""


@dataclass(frozen=True)
class Unit:
    """What systemd says of it: ``ActiveState``, ``SubState``, ``MainPID`` and its job."""

    active: str
    sub: str
    main_pid: int
    job: str


def fate_of(unit: Unit) -> Fate:
    if unit.main_pid:
        return Fate.BACK
    if unit.job == "stop":
        return Fate.DOWN
    if unit.job or unit.active not in ("inactive", "failed"):
        return Fate.COMING
    return Fate.DOWN


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="supervisor.cli.systemd_cleanup")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--unit", required=True)
    parser.add_argument("--user", action="store_true")
    arguments = parser.parse_args(argv)
    place = RunDir(Path(arguments.run_dir))
    is_anothers = place.owner() is not None
    left = set() if is_anothers else _leftovers(place.mark)

    def look() -> Fate:
        found = _ask(arguments.unit, user=arguments.user)
        return Fate.COMING if found is None else fate_of(found)

    exited = os.environ.get("EXIT_CODE") == "exited"
    in_order = exited and os.environ.get("EXIT_STATUS") == "0"
    if left and (in_order or look() is Fate.DOWN):
        _end_leftovers(place.mark)
    elif left:
        _guard(look, place)
    elif exited and not in_order:
        _wait(look)
    return 0


def _wait(look: Callable[[], Fate]) -> None:
    end = time.monotonic() + _PAUSE
    while time.monotonic() < end and look() is not Fate.DOWN:
        time.sleep(_LOOK)


def _guard(look: Callable[[], Fate], place: RunDir) -> None:
    """In a process that systemd does not wait for."""
    if os.fork():
        return
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    in_a_row = 0
    while in_a_row < _LOOKS:
        time.sleep(_LOOK)
        fate = look()
        if fate is Fate.BACK or place.owner() is not None:
            return
        in_a_row = in_a_row + 1 if fate is Fate.DOWN else 0
    _end_leftovers(place.mark)


# ---------------------------------------------------------------- what systemd says


def _ask(name: str, *, user: bool) -> Unit | None:
    """None if systemd cannot be asked."""
    show = _systemctl(user, "show", "--property=ActiveState,SubState,MainPID", name)
    jobs = _systemctl(user, "list-jobs", "--no-legend", "--plain")
    if show is None or jobs is None:
        return None
    found = dict(line.split("=", 1) for line in show.splitlines() if "=" in line)
    words = [line.split() for line in jobs.splitlines()]
    job = next((one[2] for one in words if len(one) > 2 and one[1] == name), "")
    main_pid = found.get("MainPID", "0")
    return Unit(found.get("ActiveState", ""), found.get("SubState", ""), int(main_pid), job)


def _systemctl(user: bool, *words: str) -> str | None:
    command = ["systemctl", *(["--user"] if user else []), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


# ---------------------------------------------------------------- what is left


def _leftovers(mark: str) -> set[int]:
    """What came of this cluster, whatever it has done to hide: by mark, and by control group."""
    groups = Cgroups.find(os.environ)
    found = set(tree.marked(f"{mark}/"))
    if groups is not None:
        found |= set(groups.everything())
    return found - {os.getpid()}


def _end_leftovers(mark: str) -> None:
    left = _leftovers(mark)
    if not left:
        return
    names: Mapping[int, str] = {pid: tree.name_of(pid) for pid in left}
    for pid, name in names.items():
        print(
            f"<5>ending what the supervisor has left: pid {pid}, {' '.join(name.split())}",
            flush=True,
        )
    _signal(left, signal.SIGTERM)
    _until_gone(mark, _GRACE)
    # The log writer last, so that it can write what they have said.
    _signal(set(tree.marked(f"{mark}/")), signal.SIGKILL)
    _until_gone(mark, _LAST_LINES)
    _signal(_leftovers(mark), signal.SIGKILL)
    if not _until_gone(mark, _GRACE):
        left = _leftovers(mark)
        print(f"<3>cannot end {', '.join(map(str, left))}; see what holds it", flush=True)


def _until_gone(mark: str, patience: float) -> bool:
    end = time.monotonic() + patience
    while _leftovers(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _signal(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
