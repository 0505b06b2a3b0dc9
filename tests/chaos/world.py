"""The cluster under test: its file, its supervisor and who starts that again, what should be so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from harness import COMMAND, ROOT, die_with_parent, guard

from chaos import clock, control, processes
from chaos.clock import Clock
from chaos.form import Content, Form

_RETRY = 0.2
"""Seconds until a supervisor that could not be started is tried again."""


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    blow: int
    what: str

    def __str__(self) -> str:
        return f"blow {self.blow}: {self.what}"


@dataclass(frozen=True)
class Hit:
    """A process of an instance that was killed, or will be for what was done to it."""

    slot: str
    at: float
    """Of the monotonic clock."""
    supervised: bool
    sick: bool = False
    """Not dead at once: what it is asked fails until it has been found out."""
    unread: bool = False
    """What it wrote last has no reader, and dies with it: all who held its pipe are killed."""


@dataclass
class World:
    """``content`` is what the file wants, ``stopped`` which slots a person has stopped since."""

    folder: Path
    form: Form
    clock: Clock
    content: Content = field(init=False)
    run_dir: Path = field(init=False)
    log_dir: Path = field(init=False)
    stopped: set[str] = field(default_factory=set)
    broken: bool = False
    """The file as it is on the disk cannot be read; ``content`` is still in force."""
    withdraw: Callable[[Collection[str]], None] = lambda _: None
    """Clients are to ask for these no more; returns when all requests for them are under way."""
    hits: list[Hit] = field(default_factory=list)
    writer_killed: int = 0
    """The blow that has killed the log writer last."""
    deaths: list[float] = field(default_factory=list)
    """Of the supervisor, by our hand. Times of the monotonic clock."""
    violations: list[Violation] = field(default_factory=list)
    blow: int = 0

    def __post_init__(self) -> None:
        self.content = self.form.content(self.folder)
        self.disk = self.folder / "disk"
        self.run_dir, self.log_dir = self.disk / "run", self.disk / "logs"
        for name in ("disk", "locks", "duplicates", "diary"):
            (self.folder / name).mkdir(exist_ok=True)
        self.file = self.folder / "cluster.yaml"
        self.output = self.folder / "up.log"
        self.token = f"CHAOS_WORLD={os.getpid()}.{time.monotonic_ns()}"
        name, _, value = self.token.partition("=")
        self.environ = {**os.environ, name: value, **self.clock.environ}
        self.environ.pop("PYTHONPATH", None)  # which is for us
        self._process: subprocess.Popen[bytes] | None = None
        self._bystander: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._supervisors: list[int] = []
        self._ended_at = 0.0
        self._complained = -1
        """The blow after which it was told that the supervisor ends by itself."""

    # ------------------------------------------------------------ its supervisor

    def begin(self) -> None:
        self.save()
        self._guard = guard(self.token)
        env = {**os.environ, processes.MARK: "of-another-cluster/fake-0"}
        self._bystander = subprocess.Popen(
            ["sleep", "inf"], env=env, start_new_session=True, preexec_fn=die_with_parent
        )
        self.start_supervisor()

    @property
    def supervisor(self) -> int:
        """Its pid; of the one that has ended last while there is none."""
        assert self._process is not None
        return self._process.pid

    @property
    def supervised(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start_supervisor(self) -> None:
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*COMMAND, "up", *self.places],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self.environ,
                cwd=ROOT,
                preexec_fn=die_with_parent,
            )
        self._supervisors.append(self._process.pid)

    def kill_supervisor(self) -> None:
        """kill -9, and wait until it is dead."""
        if self._process is not None:
            self.deaths.append(time.monotonic())
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def without_supervisor(self) -> Iterator[None]:
        """It is killed, and started again afterwards, as a service manager would at once."""
        self.kill_supervisor()
        yield
        self.start_supervisor()

    def look_after_supervisor(self) -> None:
        """What a service manager does: start it again when it has ended. It never should."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            self._ended_at = 0.0
        elif not self._ended_at:
            self._ended_at = time.monotonic()
            if self._complained != self.blow:
                self._complained = self.blow
                words = self.output.read_text(errors="replace")[-600:]
                self.violate(f"the supervisor has ended by itself with {code}: …{words}")
        elif time.monotonic() - self._ended_at > _RETRY:
            self._ended_at = 0.0
            self.start_supervisor()

    def signal_supervisor(self, number: signal.Signals) -> None:
        os.kill(self.supervisor, number)

    def tell_supervisor(self, number: signal.Signals) -> None:
        """A signal that it handles; of one that was exec'd just now, not before it can."""
        end = time.monotonic() + 10
        while time.monotonic() < end and not processes.heeds(self.supervisor, number):
            self.look_after_supervisor()
            time.sleep(0.001)
        os.kill(self.supervisor, number)

    def cli(self, verb: str, *arguments: str) -> None:
        """One verb of the command line, to its end, which should be a good one."""
        done = subprocess.run(
            [*COMMAND, verb, *arguments, *self.places],
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=ROOT,
            check=False,
        )
        if done.returncode != 0:
            self.violate(
                f"`{verb} {' '.join(arguments)}` ends with {done.returncode}: {done.stderr}"
            )

    @property
    def places(self) -> list[str]:
        places = ["-c", str(self.file), "--run-dir", str(self.run_dir)]
        return [*places, "--log-dir", str(self.log_dir)]

    def end(self, bound: float) -> None:
        """Stop it all, as a service manager does. What is left then is a violation."""
        assert self._process is not None
        if not self.supervised:
            self.start_supervisor()
        self._process.terminate()
        try:
            code = self._process.wait(bound)
        except subprocess.TimeoutExpired:
            self.violate(f"the supervisor has not stopped within {bound:g} s")
        else:
            if code != 0:
                self.violate(f"the supervisor has stopped with {code}")
        left = self.processes()
        if left:
            self.violate(f"left behind at the end: {', '.join(map(str, left))}")
        self.check_bystander()

    def clean_up(self) -> None:
        """Kill all that is ours, whatever has happened."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        while left := self.processes():
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            time.sleep(0.01)
        if self._bystander is not None:
            self._bystander.kill()
            self._bystander.wait()
        if self._guard is not None:
            self._guard.communicate()
        clock.forget(self._supervisors)

    # ------------------------------------------------------------ its file

    def save(self) -> None:
        """What ``content`` says, as an editor saves it: beside the file, and renamed."""
        self._write(yaml.safe_dump(self.content, sort_keys=False))
        self.broken = False

    def save_broken(self, text: str) -> None:
        self._write(text)
        self.broken = True

    def _write(self, text: str) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.file)

    # ------------------------------------------------------------ what is so, and what should be

    def status(self) -> Any:
        return control.ask(self.run_dir / "control.sock", "/v1/status")

    def events(self, number: int) -> list[str]:
        """The last of them, for people."""
        answer = control.ask(self.run_dir / "control.sock", "/v1/events")
        events = answer["events"][-number:] if answer else []
        return [
            f"{one['time'][11:23]} {one['instance']} {one['state']} {one['reason']}"
            for one in events
        ]

    @property
    def slots(self) -> set[str]:
        """All that the file asks for."""
        return set(self.form.generations(self.content))

    @property
    def running(self) -> list[str]:
        """The slots in which something should run, in an order that depends on nothing else."""
        return sorted(self.slots - self.stopped)

    def pid(self, slot: str) -> int | None:
        """Of the leader in that slot, with or without a supervisor."""
        return self.form.pid(self, slot)

    def hit(self, slot: str, *, sick: bool = False) -> None:
        """To be noted just before it happens."""
        unread = not self.supervised and self.writer_killed == self.blow
        self.hits.append(Hit(slot, time.monotonic(), self.supervised, sick, unread))

    def processes(self) -> list[processes.Process]:
        return processes.having(self.token)

    def violate(self, what: str) -> None:
        self.violations.append(Violation(self.blow, what))
        print(f"  VIOLATION {self.violations[-1]}", file=sys.stderr, flush=True)

    def check_bystander(self) -> None:
        if self._bystander is not None and self._bystander.poll() is not None:
            self.violate("a process of somebody else was ended")
