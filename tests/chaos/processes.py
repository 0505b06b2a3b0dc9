"""What runs on this machine, and whose it is. Linux, /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

MARK = "LLM_SUPERVISOR_INSTANCE"
GENERATION = "CHAOS_GENERATION"
"""A variable that the file sets, so that a process tells by which save of it it was started."""


@dataclass(frozen=True)
class Process:
    """One process of the cluster, as its environment, command line and parents show it."""

    pid: int
    parent: int
    comm: str
    argv: tuple[str, ...]
    instance: str
    """By its mark; empty for the supervisor, the log writer and who is not exec'd yet."""
    generation: str
    """Of the file that it was started by; see ``GENERATION``."""

    @property
    def is_log_writer(self) -> bool:
        return any(word.endswith("logwriter.py") for word in self.argv)

    @property
    def is_template(self) -> bool:
        """Or a copy of one that is about to become an instance."""
        return any(word.endswith("entry/template.py") for word in self.argv)

    @property
    def stray_of(self) -> int | None:
        """The leader of which a fake's stray was forked."""
        return int(self.comm[3:]) if self.comm.startswith("of-") else None

    def __str__(self) -> str:
        what = f"{self.instance or self.comm} (pid {self.pid}, child of {self.parent}"
        return f"{what}, stray of {self.stray_of})" if self.stray_of else f"{what})"


def having(token: str) -> list[Process]:
    """All processes with ``NAME=value`` in their environment, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                one = _look(int(entry), token.encode())
                if one:
                    found.append(one)
    return found


def _look(pid: int, token: bytes) -> Process | None:
    folder = Path("/proc", str(pid))
    variables = (folder / "environ").read_bytes().split(b"\0")
    if token not in variables:
        return None
    state, parent = stat(pid)
    if state == "Z":
        return None
    return Process(
        pid,
        parent,
        (folder / "comm").read_text().strip(),
        tuple((folder / "cmdline").read_text().split("\0")),
        _value(variables, MARK).rpartition("/")[2],
        _value(variables, GENERATION),
    )


def _value(variables: list[bytes], name: str) -> str:
    """Of a variable; empty if it is not set."""
    found = [one for one in variables if one.startswith(f"{name}=".encode())]
    return found[-1].decode().partition("=")[2] if found else ""


def stat(pid: int) -> tuple[str, int]:
    """State and parent. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def below(pid: int, processes: list[Process]) -> set[int]:
    """``pid`` and all of these below it."""
    found = {pid}
    while more := {one.pid for one in processes if one.parent in found} - found:
        found |= more
    return found


def heeds(pid: int, number: signal.Signals) -> bool:
    """Whether that signal does not simply end it: it is handled, or waits until it is."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return bool((int(status["SigBlk"], 16) | int(status["SigCgt"], 16)) >> (number - 1) & 1)
    return False
