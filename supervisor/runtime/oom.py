"""Whether the kernel has just killed something for want of memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_INTERVAL = 30.0
"""Seconds between two looks: a kill counts as recent for once to twice as long."""


class OomKills:
    """Watches the kernel's count of processes that it has killed for want of memory.

    The count is the machine's and names nobody, so only a recent kill is evidence: a supervisor
    runs for months. To be used from one running event loop.
    """

    def __init__(self, vmstat: Path = _VMSTAT) -> None:
        self._vmstat = vmstat
        self._before = self._last = self._count()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Look every now and then from now on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look_again)

    def look(self) -> None:
        """What was counted before the last look is no news any more."""
        self._before, self._last = self._last, self._count()

    def recent(self) -> bool:
        """Whether there was one since the look before the last one."""
        return self._count() > self._before

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look_again(self) -> None:
        self.look()
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look_again)

    def _count(self) -> int:
        """``oom_kill`` of /proc/vmstat, which the kernel has since 4.13; 0 where there is none."""
        try:
            for line in self._vmstat.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            pass
        return 0
