"""Templates and what is forked from them, as the supervisor has them, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import DEADLINE, ROOT, alive
from instances import instance

from supervisor.core.instance import InstanceSpec, Template
from supervisor.core.lifecycle import Event, Exited, Spawned, SpawnFailed
from supervisor.runtime import tree
from supervisor.runtime.processes import Processes
from supervisor.runtime.templates import Job, Templates

ENTRY = ROOT / "supervisor" / "fastchat" / "entry"
PROGRAM = Path(__file__).with_name("what_it_sees.py")
MARK = "fedcba9876543210"
OURS = {
    "LOGDIR": "",
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def template(kind: str = "server", **env: str) -> Template:
    argv = (sys.executable, str(ENTRY / "template.py"), kind)
    return Template(kind, argv, tuple(sorted((OURS | env).items())), "/")


def small_environment() -> dict[str, str]:
    """So that a test that fails shows nothing of who runs it."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ}


def run(story: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def with_patience() -> Any:
        async with asyncio.timeout(DEADLINE):
            return await story()

    return asyncio.run(with_patience())


async def until(condition: Callable[[], Any]) -> Any:
    """The first true answer."""
    while not (found := condition()):
        await asyncio.sleep(0.005)
    return found


@dataclass
class House:
    """Processes and templates; what they write goes to files in ``folder``."""

    folder: Path
    environ: Mapping[str, str] = field(default_factory=lambda: small_environment())
    told: list[tuple[str, Event]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    """Pids of the templates, in order."""

    def __post_init__(self) -> None:
        self.processes = Processes(
            MARK, self.environ, lambda name, event: self.told.append((name, event))
        )
        self.templates = Templates(self._start)

    def _start(self, name: str, template: Template, *more: Any) -> int:
        pid = self.processes.start_template(name, template, lambda: self.output(name), *more)
        self.started.append(pid)
        return pid

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        self.processes.prepare()
        self.processes.start()
        try:
            yield self
        finally:
            await self.templates.close()
            await self.processes.close(spare=None)
            self.processes.keep_listening(())
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def output(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.folder / f"{name}.log", flags, 0o600)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def spec(
        self,
        name: str,
        *words: str,
        template: Template | None,
        env: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> InstanceSpec:
        """An instance that writes down what it sees; ``words``: see ``what_it_sees.py``."""
        given = OURS | dict(template.env if template else ()) | dict(env or {})
        fields = {"cwd": str(self.folder), "launch": "a digest", "warmth": "warm"} | fields
        return instance(
            name,
            argv=(sys.executable, str(PROGRAM), str(self.seen_file(name)), *words),
            env=tuple(given.items()),
            template=template,
            **fields,
        )

    def seen_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    async def spawn(self, spec: InstanceSpec, run: int = 1) -> Spawned | SpawnFailed:
        """How it went."""
        before = len(self.told)
        self.processes.spawn(spec, run, lambda: self.output(spec.name), self.templates)

        def answer() -> Spawned | SpawnFailed | None:
            mine = [event for name, event in self.told[before:] if name == spec.name]
            return next((e for e in mine if isinstance(e, Spawned | SpawnFailed)), None)

        found: Spawned | SpawnFailed = await until(answer)
        return found

    async def warm(self, spec: InstanceSpec, run: int = 1) -> int:
        """Its pid. Fails if it was started cold."""
        spawned = await self.spawn(spec, run)
        assert isinstance(spawned, Spawned), spawned
        assert "forked" in spawned.how, self.log(spec.name)
        return spawned.pid

    async def seen(self, name: str) -> dict[str, Any]:
        """What an instance has seen of itself. Fails if it ends before."""
        path = self.seen_file(name)

        def there() -> bool:
            ends = [event for known, event in self.told[-1:] if known == name]
            assert not any(isinstance(one, Exited) for one in ends), self.log(name)
            return path.exists()

        await until(there)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    async def exited(self, name: str, run: int = 1) -> Exited:
        def there() -> Exited | None:
            mine = (event for known, event in self.told if known == name)
            return next((e for e in mine if isinstance(e, Exited) and e.run == run), None)

        found: Exited = await until(there)
        return found

    async def in_turn(self, *specs: InstanceSpec) -> list[dict[str, Any]]:
        """What they have seen, each after the one before has ended: they may have one name."""
        found = []
        for run, spec in enumerate(specs, 1):
            self.seen_file(spec.name).unlink(missing_ok=True)
            spawned = await self.spawn(spec, run)
            assert isinstance(spawned, Spawned), spawned
            assert ("forked" in spawned.how) is (spec.template is not None), spawned
            found.append(await self.seen(spec.name))
            os.kill(spawned.pid, signal.SIGKILL)
            await self.exited(spec.name, run)
        return found

    async def ready(self, template: Template) -> int:
        """Wait until it can be forked; the pid of the template."""

        def there() -> int | None:
            sights = [one for one in self.templates.look() if one.state == "ready"]
            wanted = [one.name for one in sights if one.kind == template.kind]
            return next((one.pid for one in sights if one.name in wanted), None)

        found: int = await until(there)
        return found

    def job(self, name: str = "one", *words: str, **env: str) -> Job:
        """What to ask ``templates.fork`` for; its output is thrown away."""
        argv = (sys.executable, str(PROGRAM), str(self.seen_file(name)), *words)
        mark = {tree.MARK: f"{MARK}/{name}"}
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return Job(argv, {**self.environ, **OURS, **env, **mark}, "/", null, null, {})


def left() -> list[int]:
    """Processes of this test's that are still there."""
    return [pid for pid in tree.marked(f"{MARK}/") if alive(pid)]


class Gate:
    """A template that starts with ``env`` stops in the middle of its imports until it may pass."""

    CODE = """
        if is_template:
            open({reached!r}, "w").close()
            with open({fifo!r}, "rb", buffering=0) as gate:
                gate.read(1)
    """

    def __init__(self, folder: Path) -> None:
        self._reached, fifo = folder / "reached", folder / "gate"
        os.mkfifo(fifo)
        self._inlet = os.open(fifo, os.O_RDWR)
        code = self.CODE.format(reached=str(self._reached), fifo=str(fifo))
        self.env = at_start(folder / "gate-keeper", code)

    def is_reached(self) -> bool:
        return self._reached.exists()

    async def reached(self) -> None:
        await until(self.is_reached)

    def open(self) -> None:
        """For all that come."""
        os.write(self._inlet, b"." * 1000)

    def close(self) -> None:
        """There is no way back for what has passed."""
        os.close(self._inlet)


def at_start(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python runs ``code`` first; ``is_template`` tells it where."""
    folder.mkdir()
    known = "import os, sys\nis_template = sys.orig_argv[1].endswith('template.py')\n"
    (folder / "sitecustomize.py").write_text(known + textwrap.dedent(code))
    return {"PYTHONPATH": str(folder)}
