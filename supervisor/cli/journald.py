"""Output fit for systemd's journal: a priority in front of each line, no time, no colour.

The journal takes the time itself, and the priority from a prefix as `<3>`: sd-daemon(3).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from supervisor.daemon.journal import Entry

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
"""Priorities of syslog(3)."""

_STATES = {
    "failed": ERROR,
    "given up": ERROR,
    "degraded": WARNING,
    "backoff": WARNING,
    "unready": WARNING,
    "ready": NOTICE,
    "stopping": NOTICE,
}


def is_our_output(environ: Mapping[str, str]) -> bool:
    """Whether stdout goes to the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        out = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{out.st_dev}:{out.st_ino}"


def lines(priority: int, text: str) -> str:
    return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def print_entry(entry: Entry) -> None:
    priority = _STATES.get(entry.state, INFO)
    text = f"{entry.instance or 'cluster'} {entry.state}: {entry.reason}"
    print(lines(priority, text), flush=True)


class Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            priority = ERROR
        else:
            priority = WARNING if record.levelno >= logging.WARNING else INFO
        return lines(priority, super().format(record))
