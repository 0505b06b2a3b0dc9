"""The one interface to all contestants."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from processes import (
    command_line,
    end_all_of_this_run,
    environment,
    of_this_run,
    spawn,
    with_descendants,
)

_SAID = 1000
"""Characters of what a failed program has said that are told."""


@dataclass(frozen=True)
class Work:
    """What is to be run: as command lines, and the same as one of our cluster files."""

    commands: Mapping[str, list[str]]
    content: dict[str, Any]
    ports: Mapping[str, int] = field(default_factory=dict)
    """Of those that listen on one: in its command line, too."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What the command lines need besides, where nobody but a person sets it."""


class Contestant:
    """Runs some work in a folder of its own. What a class does not say, its program cannot do."""

    program: ClassVar[str]
    name: ClassVar[str]
    """In tables and figures."""
    restarts: ClassVar[bool] = True

    def __init__(self, folder: Path, programs: Path, work: Work) -> None:
        """``programs`` is where the program was installed, if it had to be."""
        self.folder, self.programs, self.work = folder, programs, work
        self.log = folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        """Its version; raises Missing."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write its files, which is not timed."""

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def start(self) -> None:
        """Does not wait for anything."""
        self._process = spawn(self.command(), self.log, env=self.environment())

    def check(self) -> None:
        """Raises RuntimeError if it has failed."""
        if self._process is not None and (status := self._process.poll()):
            said = self.log.read_text(errors="replace").strip()
            raise RuntimeError(f"it has ended with {status}: {said[-_SAID:]}")

    def end(self) -> None:
        end_all_of_this_run()
        if self._process is not None:
            self._process.wait()

    def environment(self) -> dict[str, str]:
        inherited = environment()
        inherited.pop("PYTHONPATH", None)  # it is for our interpreter, and not for others
        return {**inherited, **self.work.env}

    # ------------------------------------------------------------ what can be asked of it

    def status(self) -> list[str] | None:
        """The command line that shows what runs."""
        return None

    def reload(self) -> list[str] | None:
        """The command line that has its files read again, and returns when that is done."""
        return None

    def adding(self, name: str, command: list[str]) -> Callable[[], None] | None:
        """What has to be done for one process more; all that can be done before is done here."""
        return None

    # ------------------------------------------------------------ its processes

    def pids(self) -> dict[str, int]:
        """The processes that listen on ports, by name."""
        ports = {str(port): name for name, port in self.work.ports.items()}
        found: dict[str, int] = {}
        for pid in sorted(of_this_run(), reverse=True):
            words = command_line(pid)
            if "--port" in words[2:] and (port := words[words.index("--port") + 1]) in ports:
                found[ports[port]] = pid  # the first one, if it has forked
        return found

    def own(self, instances: set[int]) -> set[int]:
        """The supervisor's processes: all but these ones with their descendants."""
        return of_this_run() - with_descendants(instances)

    # ------------------------------------------------------------ for its methods

    def run(self, *words: str | Path) -> None:
        """A command to its end; raises RuntimeError with what it says if it fails."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise RuntimeError(f"{words[0]} ended with {done.returncode}: {said[-_SAID:]}")
