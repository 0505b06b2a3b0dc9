"""The real reconciler on a real event loop, with an engine that has no processes.

``Engine`` does what it is told and answers as a well-behaved one would, at once; where a test says
``hold``, it keeps an answer back until ``release``. Nothing here sleeps: tests wait for events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from instances import instance, worker

from supervisor.core.cluster import ClusterState
from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, RestartPolicy, Template
from supervisor.core.lifecycle import (
    Check,
    Diagnosed,
    Drained,
    EnteredRotation,
    Event,
    Exited,
    Outcome,
    Probed,
    Spawned,
    SpawnFailed,
    Stage,
    State,
    Status,
    StopRequested,
)
from supervisor.core.order import StartLimit
from supervisor.core.rollout import Member
from supervisor.daemon.adoption import survey
from supervisor.daemon.journal import Journal
from supervisor.daemon.reconciler import (
    GoDown,
    HandOver,
    InstanceEvent,
    Reconciler,
    StartSlot,
    StopSlot,
    Want,
)
from supervisor.daemon.state import State as Known
from supervisor.runtime.leftovers import Leftover

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
            self.deliver(
                spec.name, SpawnFailed(run, "there is no such program", CauseClass.WRONG_CONFIG)
            )
        else:
            self.deliver(spec.name, Spawned(run, 1000 + len(self.done)))

    def adopt(self, spec: InstanceSpec, status: Status) -> None:
        self._note("adopt", spec.name)
        self.runs[spec.name] = status.run

    def clear(self, name: str) -> None:
        self._note("clear", name)

    def controller_goes_on(self, spec: InstanceSpec) -> None:
        self._note("look through", "controller")

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
        self.deliver(spec.name, Diagnosed(run, f"{ended} (diagnosed)", CauseClass.UNKNOWN))

    def find_blockers(self, spec: InstanceSpec, run: int) -> None:
        self._note("find blockers of", spec.name)

    def drain(self, spec: InstanceSpec, run: int) -> None:
        self._note("drain", spec.name)
        self._answer("drained", spec.name, Drained(run))

    def controller_is_new(self, spec: InstanceSpec) -> None:
        self._note("put all back into", "controller")

    def forget(self, spec: InstanceSpec) -> None:
        self._note("forget", spec.name)

    def keep_listening(self, addresses: Collection[tuple[str, int]]) -> None:
        self.done.append(f"listen {sorted(addresses)}")

    def keep_templates(self, templates: Collection[Template]) -> None:
        self.done += [f"keep {template}" for template in templates]

    def exited(self, spec: InstanceSpec, pid: int | None, event: Exited) -> None:
        self._note("exited", spec.name)


class Story:
    """A running reconciler, and what a test wants to know of it."""

    def __init__(self, specs: Iterable[InstanceSpec], limit: StartLimit | None = None) -> None:
        self.engine = Engine()
        self.journal = Journal(lambda: 0.0)
        by_name = {spec.name: spec for spec in specs}
        self.reconciler = Reconciler(by_name, self.engine, self.journal, limit=limit)
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

    def stop_instances(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.reconciler.deliver(name, StopRequested(reason))

    def states(self) -> set[State]:
        return {status.state for status in self.reconciler.statuses.values()}

    def cluster_states(self) -> list[str]:
        return [entry.state for entry in self.journal.since(0) if not entry.instance]

    def order(self, what: str) -> list[str]:
        return [
            name for did, _, name in (d.rpartition(" ") for d in self.engine.done) if did == what
        ]


@contextlib.asynccontextmanager
async def running(
    *specs: InstanceSpec, up: bool = True, limit: StartLimit | None = None
) -> AsyncIterator[Story]:
    """A story whose supervision runs; it must end by itself once it has been told to."""
    story = Story(specs or CLUSTER, limit)
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


def story(tell: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs on an event loop of its own."""

    def run() -> None:
        asyncio.run(tell())

    run.__doc__ = tell.__doc__
    return run


# ---------------------------------------------------------------- coming up


@story
async def test_the_controller_first_then_workers_and_api_server_at_once() -> None:
    async with running(up=False) as told:
        told.engine.hold("answer controller")
        await told.until(controller=State.STARTING)
        assert told.order("spawn") == ["controller"], "everything else waits for it to be ready"
        assert told.reconciler.waiting_for("vicuna-0") == ["controller"]
        told.engine.hold("answer vicuna-0", "answer vicuna-1", "answer api_server")
        told.engine.release("answer controller")
        starting = State.STARTING
        await told.until(vicuna_0=starting, vicuna_1=starting, api_server=starting)
        assert told.order("spawn")[1:] == ["api_server", "vicuna-0", "vicuna-1"]
        assert told.reconciler.waiting_for("webui") == ["api_server"]
        for name in ("vicuna-0", "api_server", "vicuna-1"):
            told.engine.release(f"answer {name}")
        await told.ready()
        assert told.order("spawn")[-1] == "webui"


@story
async def test_a_worker_is_ready_when_the_controller_has_it() -> None:
    async with running(CONTROLLER, FIRST, up=False) as told:
        told.engine.hold("entered vicuna-0")
        await told.reconciler.until(lambda: "entered vicuna-0" in told.engine.kept)
        assert told.reconciler.statuses["vicuna-0"].state is State.STARTING
        told.engine.release("entered vicuna-0")
        await told.ready()


@story
async def test_the_journal_tells_who_did_what_and_why() -> None:
    async with running(CONTROLLER) as told:
        await told.ready()
        lines = [(e.instance, e.state, e.reason) for e in told.journal.since(0)]
        pid = told.reconciler.statuses["controller"].pid
        assert lines == [
            ("controller", "starting", f"started as pid {pid}, not ready yet"),
            ("controller", "ready", "it answers"),
            ("", "ready", "the cluster is ready"),
        ]


# ---------------------------------------------------------------- going down


@story
async def test_who_goes_down_does_not_hand_over() -> None:
    """The next program would take it for over, and start all of it again."""
    for messages in ([GoDown("down"), HandOver()], [HandOver(), GoDown("down")]):
        async with asyncio.timeout(PATIENCE):
            told = Story([FIRST])
            told.start()
            told.engine.hold("exit vicuna-0")
            supervision = asyncio.create_task(told.reconciler.run())
            await told.ready()
            for message in messages:
                told.reconciler.post(message)
            await told.until(vicuna_0=State.STOPPING)
            assert not supervision.done()
            told.engine.release("exit vicuna-0")
            assert await supervision is True


@story
async def test_everything_stops_in_reverse_at_once_where_it_can() -> None:
    async with running() as told:
        told.engine.hold(*(f"exit {spec.name}" for spec in CLUSTER))
        told.reconciler.post(GoDown("received SIGTERM"))
        stopping = State.STOPPING
        await told.until(webui=stopping, vicuna_0=stopping, vicuna_1=stopping)
        assert told.order("SIGTERM") == ["webui", "vicuna-0", "vicuna-1"]
        told.engine.release("exit webui")
        await told.until(api_server=stopping)
        for name in ("vicuna-1", "api_server", "vicuna-0"):
            assert told.reconciler.statuses["controller"].state is State.READY
            told.engine.release(f"exit {name}")
        await told.until(controller=State.STOPPING)
        told.engine.release("exit controller")
        await told.reconciler.until(lambda: told.states() == {State.STOPPED})
        reasons = {status.reason for status in told.reconciler.statuses.values()}
        assert reasons == {"received SIGTERM"}


@story
async def test_workers_leave_rotation_before_they_are_told_to_stop() -> None:
    async with running(CONTROLLER, FIRST) as told:
        told.reconciler.post(GoDown("received SIGTERM"))
        await told.reconciler.until(lambda: told.states() == {State.STOPPED})
        done = told.engine.done
        assert done.index("leave vicuna-0") < done.index("SIGTERM vicuna-0")


@story
async def test_going_down_twice_skips_the_grace_and_waits_for_nobody() -> None:
    async with running() as told:
        told.engine.hold(*(f"exit {spec.name}" for spec in CLUSTER))
        told.reconciler.post(GoDown("received SIGINT"))
        await told.until(webui=State.STOPPING)
        told.reconciler.post(GoDown("received SIGINT"))
        await told.until(controller=State.STOPPING)
        assert "SIGINT webui" in told.engine.done
        assert set(told.order("SIGTERM")) == {spec.name for spec in CLUSTER}
        told.reconciler.post(GoDown("received SIGINT"))
        await told.reconciler.until(lambda: "SIGKILL webui" in told.engine.done)


@story
async def test_going_down_while_nothing_is_up_yet() -> None:
    async with running(up=False) as told:
        told.engine.hold("answer controller")
        await told.until(controller=State.STARTING)
        told.reconciler.post(GoDown("received SIGINT"))
        await told.reconciler.until(lambda: told.states() == {State.STOPPED})
        assert told.order("spawn") == ["controller"], "what waited is not started any more"


@story
async def test_a_crash_while_going_down_is_no_reason_to_start_again() -> None:
    async with running() as told:
        told.engine.hold("exit webui")
        told.reconciler.post(GoDown("received SIGTERM"))
        await told.until(webui=State.STOPPING)
        told.engine.dies("controller")
        await told.until(controller=State.STOPPED)
        assert told.order("spawn").count("controller") == 1


@story
async def test_what_has_failed_does_not_keep_the_rest_from_ending() -> None:
    failing = replace(FIRST, restart=RestartPolicy(policy="never"))
    async with running(CONTROLLER, failing, up=False) as told:
        told.engine.missing.add("vicuna-0")
        await told.until(vicuna_0=State.FAILED)


# ---------------------------------------------------------------- keeping it up


@story
async def test_a_dead_worker_is_out_of_rotation_and_started_anew_before_anything_else() -> None:
    async with running() as told:
        mark = len(told.engine.done)
        told.engine.hold("answer vicuna-0")
        told.engine.dies("vicuna-0")
        await told.until(vicuna_0=State.STARTING)
        assert told.engine.done[mark : mark + 5] == [
            "exited vicuna-0",
            "probe no more vicuna-0",
            "leave vicuna-0",
            "diagnose vicuna-0",
            "spawn vicuna-0",
        ]
        told.engine.release("answer vicuna-0")
        await told.ready()
        assert told.order("spawn").count("vicuna-1") == 1


@story
async def test_a_dead_controller_restarts_no_worker_and_all_are_put_back() -> None:
    async with running() as told:
        spawned = len(told.order("spawn"))
        told.engine.hold("answer controller")
        told.engine.dies("controller")
        await told.until(controller=State.STARTING)
        assert told.engine.done[-1] != "put all back into controller", "it is not there yet"
        told.engine.release("answer controller")
        await told.ready()
        assert told.order("spawn")[spawned:] == ["controller"]
        assert told.order("put all back into") == ["controller", "controller"]
        assert told.order("SIGTERM") == []


@story
async def test_a_hung_worker_is_stopped_and_started() -> None:
    async with running(CONTROLLER, FIRST) as told:
        told.engine.fails("vicuna-0", Check.LIVENESS, times=2)
        await told.reconciler.until(lambda: told.order("spawn").count("vicuna-0") == 2)
        await told.ready()
        assert told.order("SIGTERM") == ["vicuna-0"]
        assert told.reconciler.statuses["vicuna-0"].restarts == 1


@story
async def test_one_that_can_never_start_ends_in_failed_and_disturbs_nobody() -> None:
    quick = replace(FIRST, restart=RestartPolicy(backoff=0.0))
    async with running(CONTROLLER, quick, SECOND, API, up=False) as told:
        told.engine.missing.add("vicuna-0")
        ready = State.READY
        await told.until(vicuna_0=State.FAILED, vicuna_1=ready, api_server=ready)
        assert told.reconciler.state is ClusterState.DEGRADED
        assert told.order("spawn").count("vicuna-0") == 3
        others = [told.order("spawn").count(name) for name in ("vicuna-1", "api_server")]
        assert others == [1, 1]
        assert "there is no such program" in told.reconciler.statuses["vicuna-0"].reason


# ---------------------------------------------------------------- requests


@story
async def test_stop_and_start_of_one_service_leave_the_others_alone() -> None:
    async with running() as told:
        told.stop_instances(["vicuna-0"], "asked to stop")
        await told.until(vicuna_0=State.STOPPED)
        assert told.reconciler.state is ClusterState.READY, "it was stopped on purpose"
        told.reconciler.start_instances(["vicuna-0"], "asked to start")
        await told.until(vicuna_0=State.READY)
        assert told.order("SIGTERM") == ["vicuna-0"]


@story
async def test_restart_of_everything_comes_up_in_order_again() -> None:
    async with running() as told:
        mark = len(told.order("spawn"))
        told.reconciler.restart_instances(told.reconciler.specs, "asked to restart")
        await told.reconciler.until(lambda: len(told.order("spawn")) == mark + len(CLUSTER))
        await told.ready()
        order = [one for one in told.order("spawn")[mark:] if "vicuna" not in one]
        assert order == ["controller", "api_server", "webui"]


@story
async def test_a_worker_stopped_and_started_with_its_controller_waits_for_it() -> None:
    async with running() as told:
        told.engine.hold("exit vicuna-0")
        told.stop_instances(["vicuna-0", "controller"], "asked to stop")
        told.reconciler.start_instances([], "nobody")
        await told.until(vicuna_0=State.STOPPING)
        told.reconciler.start_instances(["vicuna-0"], "asked to start")
        told.engine.release("exit vicuna-0")
        await told.until(controller=State.STOPPED, vicuna_0=State.STOPPED)
        assert told.reconciler.waiting_for("vicuna-0") == ["controller"]
        assert told.reconciler.statuses["vicuna-0"].wanted


@story
async def test_one_that_waits_in_vain_says_for_whom_until_somebody_helps() -> None:
    quick = replace(API, restart=RestartPolicy(backoff=0.0))
    async with running(CONTROLLER, quick, WEBUI, up=False) as told:
        told.engine.missing.add("api_server")
        await told.reconciler.until(lambda: told.reconciler.blocked_by("webui") == ["api_server"])
        assert told.reconciler.statuses["api_server"].state is State.FAILED
        assert told.reconciler.blocked_by("api_server") == []
        told.engine.missing.clear()
        told.reconciler.start_instances(["api_server"], "asked to start")
        await told.until(webui=State.READY)
        assert told.reconciler.blocked_by("webui") == []
        told.stop_instances(["api_server"], "asked to stop")
        await told.until(api_server=State.STOPPED)
        told.reconciler.restart_instances(["webui"], "asked to restart")
        await told.reconciler.until(lambda: told.reconciler.blocked_by("webui") == ["api_server"])


@story
async def test_a_crash_loop_without_a_startup_probe_degrades_the_cluster_once() -> None:
    loop = instance(
        "tick",
        startup=None,
        readiness=None,
        liveness=None,
        restart=RestartPolicy(backoff=0.0, stable_after=1.0),
    )
    async with running(CONTROLLER, loop) as told:
        for run in range(1, 6):
            await told.reconciler.until(
                lambda run=run: (
                    told.reconciler.statuses["tick"].ready_at is not None
                    and told.reconciler.statuses["tick"].run == run
                )
            )
            told.engine.dies("tick")
        await told.ready()
        assert told.cluster_states() == ["ready", "degraded", "ready"]


@story
async def test_what_is_said_of_an_instance_that_is_not_there_is_not_heard() -> None:
    async with running(CONTROLLER) as told:
        told.reconciler.post(InstanceEvent("nobody", Spawned(1, 1)))
        told.stop_instances(["controller"], "asked to stop")
        await told.until(controller=State.STOPPED)


# ---------------------------------------------------------------- the state of the whole


@story
async def test_the_cluster_from_starting_to_stopping() -> None:
    async with running(CONTROLLER, FIRST, up=False) as told:
        assert told.reconciler.state is ClusterState.STARTING
        await told.ready()
        told.engine.hold("answer vicuna-0")
        told.engine.dies("vicuna-0")
        await told.reconciler.until(lambda: told.reconciler.state is ClusterState.DEGRADED)
        told.engine.release("answer vicuna-0")
        await told.ready()
    assert told.cluster_states() == ["ready", "degraded", "ready", "stopping"]


@story
async def test_a_worker_that_falls_silent_degrades_the_cluster_until_it_has_answered_again() -> (
    None
):
    async with running(CONTROLLER, FIRST) as told:
        told.engine.fails("vicuna-0", Check.READINESS, times=3)
        await told.until(vicuna_0=State.UNREADY)
        assert told.engine.done[-1] == "leave vicuna-0"
        assert told.reconciler.state is ClusterState.DEGRADED
        told.engine.deliver("vicuna-0", Probed(1, Check.READINESS, Outcome.PASSED, "answers"))
        await told.ready()
        assert told.engine.done[-3:] == ["probe vicuna-0", "enter vicuna-0", "probe vicuna-0"]


# ---------------------------------------------------------------- until


@story
async def test_until_answers_only_when_all_messages_are_handled() -> None:
    async with running(CONTROLLER, API) as told:
        told.stop_instances(["api_server"], "asked to stop")
        # It is true now, but what was asked is not done.
        await told.reconciler.until(lambda: True)
        assert told.reconciler.statuses["api_server"].wanted is False


@story
async def test_any_number_may_wait() -> None:
    async with running(up=False) as told:
        waiting = [asyncio.create_task(told.ready()) for _ in range(10)]
        await asyncio.gather(*waiting)


@story
async def test_an_answer_that_says_what_the_last_one_said_changes_nothing() -> None:
    """So that nobody who waits looks through a thousand instances for it, nor is it noted."""
    async with running(CONTROLLER, FIRST) as told:

        async def after(detail: str) -> tuple[int, Status]:
            told.engine.deliver("vicuna-0", Probed(1, Check.READINESS, Outcome.PASSED, detail))
            await told.reconciler.until(lambda: True)
            return told.reconciler.changes, told.reconciler.statuses["vicuna-0"]

        changes, status = await after("answers, queue 0")
        again, same = await after("answers, queue 0")
        assert again == changes
        assert same is status
        more, other = await after("answers, queue 1")
        assert more > changes
        assert other.detail == "answers, queue 1"


# ---------------------------------------------------------------- defects


@story
async def test_an_exception_in_an_effect_does_not_end_supervision() -> None:
    async with running() as told:
        told.engine.broken.add("exited vicuna-0")
        told.engine.dies("vicuna-0")
        told.engine.dies("vicuna-1")
        await told.reconciler.until(lambda: told.order("spawn").count("vicuna-1") == 2)
        await told.until(vicuna_1=State.READY)
        told.stop_instances(["webui"], "asked to stop")
        await told.until(webui=State.STOPPED)
        told.engine.broken.clear()
        told.engine.runs["vicuna-0"] = told.reconciler.statuses["vicuna-0"].run
        told.engine.dies("vicuna-0")


@story
async def test_an_exception_in_one_effect_does_not_keep_the_next_from_being_carried_out() -> None:
    """A full disk: the exit cannot be marked in the log. It is started again all the same."""
    async with running(CONTROLLER, FIRST) as told:
        told.engine.broken.update({"exited vicuna-0", "leave vicuna-0", "diagnose vicuna-0"})
        told.engine.dies("vicuna-0")
        await told.reconciler.until(lambda: told.order("spawn").count("vicuna-0") == 2)
        await told.ready()


@story
async def test_a_listener_of_the_journal_that_fails_changes_nothing() -> None:
    """`llm-supervisor up | head`: a broken pipe must not leave a worker without its timer."""
    async with running(CONTROLLER, FIRST, up=False) as told:

        def broken_pipe(_: object) -> None:
            raise BrokenPipeError

        told.journal.listen(broken_pipe)
        await told.ready()
        told.engine.dies("vicuna-0")
        await told.reconciler.until(lambda: told.order("spawn").count("vicuna-0") == 2)
        await told.ready()


@story
async def test_an_exception_on_the_first_spawn_counts_as_a_spawn_that_failed() -> None:
    async with running(CONTROLLER, FIRST, SECOND, up=False) as told:
        told.engine.broken.add("spawn vicuna-0")
        await told.until(vicuna_0=State.BACKOFF, vicuna_1=State.READY)
        assert "a defect in spawn" in told.reconciler.statuses["vicuna-0"].reason


@story
async def test_whoever_asks_for_a_start_while_all_goes_down_is_not_heard() -> None:
    async with running() as told:
        told.engine.hold("exit webui", "exit vicuna-0")
        told.reconciler.post(GoDown("received SIGTERM"))
        await told.until(webui=State.STOPPING, vicuna_0=State.STOPPING)
        told.reconciler.start_instances(told.reconciler.specs, "asked to start")
        told.reconciler.restart_instances(["vicuna-0"], "asked to restart")
        told.engine.release("exit webui")
        told.engine.release("exit vicuna-0")
        await told.reconciler.until(lambda: told.states() == {State.STOPPED})
        assert len(told.order("spawn")) == len(CLUSTER)


# ---------------------------------------------------------------- how many start at once


CROWD = tuple(worker(f"w-{i}", service=f"w{i}", weights=i, depends_on=()) for i in (1, 2, 3))


@story
async def test_workers_start_one_after_the_other_the_largest_first() -> None:
    async with running(*CROWD, up=False, limit=StartLimit(1)) as told:
        told.engine.hold("answer w-3", "entered w-3")
        await told.until(w_3=State.STARTING)
        assert told.order("spawn") == ["w-3"]
        assert told.reconciler.held_back("w-3") is None
        why = "1 worker is starting (w-3), max_parallel_starts is 1"
        assert told.reconciler.held_back("w-1") == told.reconciler.held_back("w-2") == why
        told.engine.release("answer w-3")  # the controller still has to confirm it
        await told.until(w_1=State.READY, w_2=State.READY)
        assert told.order("spawn") == ["w-3", "w-2", "w-1"]
        assert told.reconciler.held_back("w-1") is None
        told.engine.release("entered w-3")
        await told.ready()


@story
async def test_a_greater_limit_starts_at_once_who_waits() -> None:
    async with running(*CROWD, up=False, limit=StartLimit(1)) as told:
        told.engine.hold("answer w-3", "answer w-2", "answer w-1")
        await told.until(w_3=State.STARTING)
        want(told, *CROWD, limit=StartLimit(2))
        await told.until(w_2=State.STARTING)
        assert told.order("spawn") == ["w-3", "w-2"]
        why = "2 workers are starting (w-2, w-3), max_parallel_starts is 2"
        assert told.reconciler.held_back("w-1") == why
        want(told, *CROWD, limit=StartLimit(1))
        told.engine.release("answer w-2")
        await told.until(w_2=State.READY)
        assert told.order("spawn") == ["w-3", "w-2"], "w-3 is still starting"
        told.engine.release("answer w-3")
        await told.until(w_1=State.STARTING)
        told.engine.release("answer w-1")
        await told.ready()


@story
async def test_a_restart_after_a_crash_waits_for_nobody_and_keeps_others_waiting() -> None:
    small, _, large = CROWD
    async with running(small, large, limit=StartLimit(1)) as told:
        told.engine.hold("answer w-2", "answer w-3", "answer w-1")
        want(told, *CROWD, limit=StartLimit(1))
        await told.reconciler.until(lambda: "w-2" in told.reconciler.specs)
        await told.until(w_2=State.STARTING)
        told.engine.dies("w-1")
        told.engine.dies("w-3")
        await told.until(w_1=State.STARTING, w_3=State.STARTING)
        told.engine.release("answer w-2")
        await told.until(w_2=State.READY)
        more = worker("w-4", depends_on=())
        want(told, *CROWD, more, limit=StartLimit(1))
        await told.reconciler.until(lambda: told.reconciler.held_back("w-4") is not None)
        told.engine.release("answer w-1")
        await told.until(w_1=State.READY)
        assert told.reconciler.statuses["w-4"].state is State.STOPPED
        told.engine.release("answer w-3")
        await told.until(w_4=State.READY)


@story
async def test_a_start_that_hangs_keeps_its_place_until_its_deadline_or_until_it_is_stopped() -> (
    None
):
    small, middle, large = CROWD
    assert large.startup is not None
    hung = replace(large, startup=replace(large.startup, deadline=0.01))
    async with running(small, middle, hung, up=False, limit=StartLimit(1)) as told:
        told.engine.hold("answer w-3", "exit w-3", "answer w-2")
        await told.until(w_3=State.STOPPING, w_2=State.STARTING)
        assert told.order("spawn") == ["w-3", "w-2"]
        told.stop_instances(["w-2"], "asked to stop")
        await told.until(w_1=State.READY)


@story
async def test_controller_and_api_server_wait_for_no_place() -> None:
    async with running(*CLUSTER, up=False, limit=StartLimit(1)) as told:
        told.engine.hold("answer vicuna-0", "answer api_server")
        await told.until(vicuna_0=State.STARTING, api_server=State.STARTING)
        assert told.order("spawn") == ["controller", "api_server", "vicuna-0"]
        told.engine.release("answer api_server")
        await told.until(webui=State.READY)
        assert told.reconciler.statuses["vicuna-1"].state is State.STOPPED
        told.engine.release("answer vicuna-0")
        await told.ready()


# ---------------------------------------------------------------- another file


def surging(launch: str, *, listen: tuple[str, int] | None = None) -> InstanceSpec:
    """A worker whose successor starts beside it."""
    plain = worker("owl-0", surge=True, launch=launch, listen=listen, drain_timeout=300.0)
    return replace(plain, beside=replace(plain, name="owl-0.b"))


def want(
    told: Story, *specs: InstanceSpec, retry: bool = False, limit: StartLimit | None = None
) -> None:
    told.reconciler.post(Want({one.slot: one for one in specs}, {}, retry, limit))


async def settled(told: Story) -> None:
    await told.reconciler.until(lambda: not told.reconciler.progress().under_way)


@story
async def test_one_more_is_started_and_one_less_is_drained_and_forgotten() -> None:
    more = worker("fox-0", drain_timeout=300.0)
    async with running() as told:
        runs = dict(told.engine.runs)
        want(told, *CLUSTER, more)
        await settled(told)
        assert told.reconciler.statuses["fox-0"].state is State.READY
        want(told, *CLUSTER)
        await settled(told)
        assert "fox-0" not in told.reconciler.specs
        done = [one for one in told.engine.done if one.endswith("fox-0") and "probe" not in one]
        assert done[-5:] == [
            "leave fox-0",
            "drain fox-0",
            "SIGTERM fox-0",
            "exited fox-0",
            "forget fox-0",
        ]
        assert {name: told.engine.runs[name] for name in runs} == runs
        assert told.cluster_states()[-1] == "ready"


@story
async def test_a_surge_stops_the_old_one_only_when_the_new_one_is_in_rotation() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.engine.hold("entered owl-0.b")
        want(told, CONTROLLER, surging("B"))
        await told.reconciler.until(
            lambda: (
                "owl-0.b" in told.reconciler.statuses
                and told.reconciler.statuses["owl-0.b"].in_rotation
            )
        )
        assert "leave owl-0" not in told.engine.done
        assert told.reconciler.state is ClusterState.UPDATING
        told.engine.release("entered owl-0.b")
        await settled(told)
        assert list(told.reconciler.specs) == ["controller", "owl-0.b"]
        assert told.reconciler.state is ClusterState.READY


@story
async def test_what_cannot_be_started_is_given_up_until_somebody_says_try_again() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.engine.missing.add("owl-0.b")
        want(told, CONTROLLER, surging("B"))
        await told.reconciler.until(lambda: bool(told.reconciler.progress().failed))
        await settled(told)
        assert list(told.reconciler.specs) == ["controller", "owl-0"]
        assert told.reconciler.failure("owl-0") is not None
        tries = told.order("spawn").count("owl-0.b")
        want(told, CONTROLLER, surging("B"))
        await settled(told)
        assert told.order("spawn").count("owl-0.b") == tries
        told.engine.missing.clear()
        want(told, CONTROLLER, surging("B"), retry=True)
        await settled(told)
        assert told.reconciler.failure("owl-0") is None
        assert list(told.reconciler.specs) == ["controller", "owl-0.b"]


@story
async def test_a_restart_of_a_worker_is_missed_by_nobody() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.reconciler.restart_instances(["owl-0"], "asked to restart")
        await told.reconciler.until(lambda: "owl-0.b" in told.reconciler.specs)
        await settled(told)
        assert list(told.reconciler.specs) == ["controller", "owl-0.b"]


@story
async def test_what_leaves_is_not_started_again_by_a_person() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.engine.hold("drained owl-0")
        want(told, CONTROLLER, surging("B"))
        await told.reconciler.until(lambda: told.reconciler.is_leaving("owl-0"))
        told.reconciler.start_instances(["owl-0"], "asked to start")
        told.engine.release("drained owl-0")
        await settled(told)
        assert list(told.reconciler.specs) == ["controller", "owl-0.b"]


def in_place(launch: str) -> InstanceSpec:
    """A worker whose successor takes its place."""
    return worker("owl-0", launch=launch, drain_timeout=300.0)


@story
async def test_a_stop_in_the_gap_between_two_versions_lasts() -> None:
    async with running(CONTROLLER, in_place("A")) as told:
        told.engine.hold("drained owl-0")
        want(told, CONTROLLER, in_place("B"))
        await told.reconciler.until(lambda: told.reconciler.is_leaving("owl-0"))
        told.reconciler.post(StopSlot("owl-0", "asked to stop"))
        told.engine.release("drained owl-0")
        await settled(told)
        assert told.reconciler.specs["owl-0"].launch == "B"
        assert told.order("spawn").count("owl-0") == 1
        told.reconciler.post(StartSlot("owl-0", "asked to start"))
        await told.until(owl_0=State.READY)


@story
async def test_a_stop_in_the_middle_of_a_surge_stops_both() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.engine.hold("entered owl-0.b")
        want(told, CONTROLLER, surging("B"))
        await told.reconciler.until(lambda: "owl-0.b" in told.engine.runs)
        told.reconciler.post(StopSlot("owl-0", "asked to stop"))
        await told.reconciler.until(
            lambda: all(
                status.state is State.STOPPED
                for name, status in told.reconciler.statuses.items()
                if name != "controller"
            )
        )


@story
async def test_try_again_also_starts_what_has_failed_at_its_first_start() -> None:
    async with running(CONTROLLER) as told:
        told.engine.missing.add("owl-0")
        want(told, CONTROLLER, in_place("A"))
        await told.until(controller=State.READY)
        await told.reconciler.until(lambda: State.FAILED in told.states())
        told.engine.missing.clear()
        want(told, CONTROLLER, in_place("A"), retry=True)
        await told.until(owl_0=State.READY)


@story
async def test_what_has_restarted_by_itself_is_not_restarted_once_more() -> None:
    """It waited for its turn in a restart of all, and crashed meanwhile."""
    async with running() as told:
        told.engine.hold("exit vicuna-0")
        told.reconciler.restart_instances(["vicuna-0", "vicuna-1"], "asked to restart")
        await told.until(vicuna_0=State.STOPPING)
        told.reconciler.deliver("vicuna-1", Exited(told.engine.runs["vicuna-1"], 1, None))
        told.engine.release("exit vicuna-0")
        await settled(told)
        assert told.order("spawn").count("vicuna-1") == 2


@story
async def test_a_controller_that_leaves_does_not_call_the_workers_back() -> None:
    leaves = replace(CONTROLLER, name="old", service="old", slot="old")
    async with running(leaves, up=False) as told:
        told.engine.hold("answer old")
        await told.reconciler.until(lambda: "old" in told.engine.runs)
        want(told)
        told.engine.release("answer old")
        await settled(told)
        assert "put all back into controller" not in told.engine.done


@story
async def test_a_forgotten_run_reports_too_late_to_hurt_the_next_one_of_its_name() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        old = told.engine.runs["owl-0"]
        for launch in "BC":  # to the other name and back
            want(told, CONTROLLER, surging(launch))
            await settled(told)
        assert told.engine.runs["owl-0"] > old
        told.reconciler.deliver("owl-0", Exited(old, 1, None))
        await told.reconciler.until(lambda: True)
        assert told.reconciler.statuses["owl-0"].state is State.READY


@story
async def test_going_down_in_the_middle_of_a_rollout_leaves_nothing() -> None:
    async with running(CONTROLLER, surging("A")) as told:
        told.engine.hold("entered owl-0.b")
        want(told, CONTROLLER, surging("B"))
        await told.reconciler.until(lambda: "owl-0.b" in told.engine.runs)
    assert told.states() == {State.STOPPED}


@story
async def test_a_socket_is_kept_while_somebody_is_about_to_serve_on_it() -> None:
    address = ("127.0.0.1", 8000)
    async with running(CONTROLLER, surging("A", listen=address)) as told:
        assert f"listen {[address]}" in told.engine.done
        want(told, CONTROLLER, surging("B", listen=address))
        await settled(told)
        assert "listen []" not in told.engine.done
        told.stop_instances(["owl-0.b"], "asked to stop")
        await told.reconciler.until(lambda: "listen []" in told.engine.done)


@story
async def test_a_controller_that_is_found_running_without_a_note_is_looked_through() -> None:
    """It may give requests to workers that are not adopted: their registration never expires."""
    async with asyncio.timeout(PATIENCE):
        told = Story([CONTROLLER])
        spec = CONTROLLER
        found = Leftover(5, 5, spec.name, 3, spec.port, spec.launch, True, spec.argv)
        told.reconciler.adopt(survey(Known(), [found], {spec.name: spec}, {5: 5}.get, now=0.0))
        supervision = asyncio.create_task(told.reconciler.run())
        await told.until(controller=State.READY)
        assert told.order("look through") == ["controller"]
        told.reconciler.post(GoDown("the test is over"))
        await supervision


# ---------------------------------------------------------------- templates


@story
async def test_what_is_started_when_a_supervisor_goes_on_finds_its_template() -> None:
    """A start that a killed one had decided is made again at once."""
    template = Template("worker", ("python", "template.py"), (), "/")
    spec = replace(FIRST, template=template)
    told = Story([spec])
    decided = Member(spec, Status(state=State.STARTING, wanted=True, run=1))
    adoption = survey(Known((decided,)), [], {spec.name: spec}, {}.get, now=0.0)
    told.reconciler.adopt(adoption)
    assert told.engine.done == ["keep template for workers", "spawn vicuna-0"]
