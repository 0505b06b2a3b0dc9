"""runit (http://smarden.org/runit), and what s6 has in common with it: a folder per service."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from contestants.contestant import Contestant
from contestants.installing import debian_packages

_MOST = 1000
"""Services that runsvdir takes, compiled in."""


class OfFolders(Contestant):
    """Service folders lie in one place; a link in another one has a service run."""

    def prepare(self) -> None:
        self._here.mkdir()
        for name, words in self.work.commands.items():
            self._link(self._make(name, words))
        # As if it were not new: runsvdir waits for a second if it is.
        os.utime(self._here, (0, 0))

    def adding(self, name: str, command: list[str]) -> Callable[[], None] | None:
        made = self._make(name, command)
        return lambda: self._link(made)

    @property
    def _here(self) -> Path:
        return self.folder / "here"

    def _make(self, name: str, words: list[str]) -> Path:
        service = self.folder / "services" / name
        service.mkdir(parents=True)
        run = service / "run"
        run.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
        run.chmod(0o755)
        return service

    def _link(self, service: Path) -> None:
        (self._here / service.name).symlink_to(service)

    def _program(self, name: str) -> str:
        return str(self.programs / self.program / "usr" / "bin" / name)


class Runit(OfFolders):
    program = name = "runit"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return debian_packages(programs / cls.program, ["runit"], offline=offline)

    def command(self) -> list[str]:
        return [self._program("runsvdir"), "-P", str(self._here)]

    def environment(self) -> dict[str, str]:
        """runsvdir looks for runsv on the path."""
        inherited = super().environment()
        path = os.path.dirname(self._program("runsv"))
        return {**inherited, "PATH": f"{path}:{inherited['PATH']}"}

    def status(self) -> list[str]:
        return ["sh", "-c", f"exec {self._program('sv')} status {self._here}/*"]

    def adding(self, name: str, command: list[str]) -> Callable[[], None] | None:
        if len(self.work.commands) >= _MOST:
            return None
        return super().adding(name, command)
