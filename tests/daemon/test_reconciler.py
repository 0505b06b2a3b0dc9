"""The real reconciler on a real event loop, with an engine that has no processes.

``Engine`` does what it is told and answers as a well-behaved one would, at once; where a test says
``hold``, it keeps an answer back until ``release``. Nothing here sleeps: tests wait for events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import pytest
from instances import instance, worker

from supervisor.core.cluster import ClusterState
from supervisor.core.instance import InstanceSpec, RestartPolicy
from supervisor.core.lifecycle import (
    Check,
    Diagnosed,
    EnteredRotation,
    Event,
    Exited,
    Outcome,
    Probed,
    Spawned,
    SpawnFailed,
    Stage,
    State,
)
from supervisor.daemon.journal import Journal
from supervisor.daemon.reconciler import GoDown, InstanceEvent, Reconciler

CONTROLLER = instance("controller")
FIRST = worker("vicuna-0")
SECOND = worker("vicuna-1")
API = instance("api_server", depends_on=("controller",))
WEBUI = instance("webui", depends_on=("api_server",))
CLUSTER = (WEBUI, API, FIRST, SECOND, CONTROLLER)
PATIENCE = 60.0
"""Seconds after which an event counts as never coming. Not a measure of speed."""


class Engine:
    def __init__(self) -> None:
        self.done: list[str] = []
        """What it was told, in order: `spawn controller`, `SIGTERM vicuna-0`."""
        self.runs: dict[str, int] = {}
        self.told: set[str] = set()
        self.held: set[str] = set()
        self.kept: dict[str, Callable[[], None]] = {}
        self.broken: set[str] = set()
        self.missing: set[str] = set()
        self.deliver: Callable[[str, Event], None] = lambda *_: None

    def hold(self, *what: str) -> None:
        """Keep back the answer to each of these, as `answer controller`, `exit vicuna-0`."""
        self.held.update(what)

    def release(self, what: str) -> None:
        self.held.discard(what)
        self.kept.pop(what)()

    def dies(self, name: str, signal: str = "SIGKILL") -> None:
        self.deliver(name, Exited(self.runs[name], None, signal))

    def fails(self, name: str, check: Check, times: int) -> None:
        for _ in range(times):
            self.deliver(name, Probed(self.runs[name], check, Outcome.FAILED, "silent"))

    def _note(self, what: str, name: str) -> None:
        self.done.append(f"{what} {name}")
        if f"{what} {name}" in self.broken:
            raise RuntimeError(f"a defect in {what}")

    def _answer(self, what: str, name: str, event: Event) -> None:
        key = f"{what} {name}"
        if key in self.held:
            self.kept[key] = lambda: self.deliver(name, event)
        else:
            self.deliver(name, event)

    # -- the protocol

    def spawn(self, spec: InstanceSpec, run: int) -> None:
        self._note("spawn", spec.name)
        self.runs[spec.name] = run
        self.told.discard(spec.name)
        if spec.name in self.missing:
            self.deliver(spec.name, SpawnFailed(run, "there is no such program", hopeless=True))
        else:
            self.deliver(spec.name, Spawned(run, 1000 + len(self.done)))

    def signal(self, spec: InstanceSpec, stage: Stage) -> None:
        self._note(stage, spec.name)
        if spec.name not in self.told:
            self.told.add(spec.name)
            self._answer("exit", spec.name, Exited(self.runs[spec.name], 0, None))

    def start_probes(self, spec: InstanceSpec, run: int, checks: tuple[Check, ...]) -> None:
        self._note("probe", spec.name)
        if Check.STARTUP in checks:
            passed = Probed(run, Check.STARTUP, Outcome.PASSED, "it answers")
            self._answer("answer", spec.name, passed)

    def stop_probes(self, spec: InstanceSpec) -> None:
        self._note("probe no more", spec.name)

    def enter_rotation(self, spec: InstanceSpec, run: int) -> None:
        self._note("enter", spec.name)
        self._answer("entered", spec.name, EnteredRotation(run))

    def leave_rotation(self, spec: InstanceSpec) -> None:
        self._note("leave", spec.name)

    def diagnose(self, spec: InstanceSpec, run: int, ended: str) -> None:
        self._note("diagnose", spec.name)
        self.deliver(spec.name, Diagnosed(run, f"{ended} (diagnosed)", hopeless=False))

    def controller_is_new(self) -> None:
        self._note("put all back into", "controller")

    def exited(self, spec: InstanceSpec, pid: int | None, event: Exited) -> None:
        self._note("exited", spec.name)


class Story:
    """A running reconciler, and what a test wants to know of it."""

    def __init__(self, specs: Iterable[InstanceSpec]) -> None:
        self.engine = Engine()
        self.journal = Journal(lambda: 0.0)
        self.reconciler = Reconciler({s.name: s for s in specs}, self.engine, self.journal)
        self.engine.deliver = self.reconciler.deliver

    def start(self) -> None:
        self.reconciler.start_instances(self.reconciler.specs, "the cluster starts")

    async def until(self, **states: State) -> None:
        """Wait until these instances are in these states (`vicuna_0` is `vicuna-0`)."""
        wanted = {
            name: next(n for n in self.reconciler.specs if n.replace("-", "_") == name)
            for name in states
        }
        await self.reconciler.until(
            lambda: all(
                self.reconciler.statuses[wanted[name]].state is state
                for name, state in states.items()
            )
        )

    async def ready(self) -> None:
        await self.reconciler.until(lambda: self.reconciler.state is ClusterState.READY)

    def states(self) -> set[State]:
        return {status.state for status in self.reconciler.statuses.values()}

    def cluster_states(self) -> list[str]:
        return [entry.state for entry in self.journal.since(0) if not entry.instance]

    def order(self, what: str) -> list[str]:
        return [name for did, _, name in (d.rpartition(" ") for d in self.engine.done) if did == what]


@contextlib.asynccontextmanager
async def running(*specs: InstanceSpec, up: bool = True) -> AsyncIterator[Story]:
    """A story whose supervision runs; it must end by itself once it has been told to."""
    story = Story(specs or CLUSTER)
    story.start()
    async with asyncio.timeout(PATIENCE):
        supervision = asyncio.create_task(story.reconciler.run())
        try:
            if up:
                await story.ready()
            yield story
            story.engine.held.clear()
            story.reconciler.post(GoDown("the test is over"))
            for what in list(story.engine.kept):
                story.engine.release(what)
            await supervision
        finally:
            supervision.cancel()


def test(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a story on a loop of its own."""

    def run() -> None:
        asyncio.run(story())

    run.__name__, run.__doc__ = story.__name__, story.__doc__
    return run


test.__test__ = False  # type: ignore[attr-defined]
