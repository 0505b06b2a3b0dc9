"""What systemd hears of a cluster, over a real socket from a real reconciler."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_reconciler import CONTROLLER, FIRST, SECOND, Story, running

from supervisor.daemon.reconciler import GoDown
from supervisor.daemon.systemd import notifying

WATCHDOG = 0.03
"""Seconds: short, so that a test sees many beats."""


class Manager:
    """Stands for systemd: the other end of the socket."""

    def __init__(self, folder: Path, *, watchdog: float = 0) -> None:
        self.path = folder / "notify"
        self.environ = {"NOTIFY_SOCKET": str(self.path)}
        if watchdog:
            self.environ["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        self.reloader: Any = SimpleNamespace(problems=(), file=SimpleNamespace(path=Path("a.yaml")))
        self.open()

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.setblocking(False)

    async def hears(self) -> dict[str, str]:
        """The next message."""
        message = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return dict(line.split("=", 1) for line in message.decode().splitlines())

    async def hears_of(self, **fields: str) -> dict[str, str]:
        """The next message with these fields."""
        while True:
            message = await self.hears()
            if fields.items() <= message.items():
                return message

    def has_heard_nothing(self) -> bool:
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        return False


@contextlib.asynccontextmanager
async def told(manager: Manager, story: Story) -> AsyncIterator[None]:
    async with notifying(manager.environ, story.reconciler, manager.reloader):
        yield


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    one = Manager(tmp_path)
    yield one
    one.socket.close()


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Manager]:
    """One with a watchdog."""
    one = Manager(tmp_path, watchdog=WATCHDOG)
    yield one
    one.socket.close()


def test_ready_when_all_is_ready_and_more_time_until_then(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, FIRST, SECOND, up=False) as story:
            story.engine.hold("answer vicuna-0")
            async with told(manager, story):
                loading = "2 of 3 instances ready; vicuna-0 is loading"
                message = await manager.hears_of(STATUS=loading)
                assert int(message["EXTEND_TIMEOUT_USEC"]) > 30e6
                assert "READY" not in message
                story.engine.release("answer vicuna-0")
                await manager.hears_of(READY="1", STATUS="3 of 3 instances ready")

    asyncio.run(tell())


def test_ready_before_any_instance_was_asked_to_start_would_be_too_early(manager: Manager) -> None:
    async def tell() -> None:
        story = Story((CONTROLLER,))
        story.engine.hold("answer controller")
        story.start()
        async with told(manager, story):
            supervision = asyncio.create_task(story.reconciler.run())
            assert "READY" not in await manager.hears()
            story.engine.release("answer controller")
            await manager.hears_of(READY="1")
            supervision.cancel()

    asyncio.run(tell())


def test_ready_when_nothing_more_can_come(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, FIRST, up=False) as story:
            story.engine.missing.add("vicuna-0")
            async with told(manager, story):
                await manager.hears_of(READY="1")
                await manager.hears_of(STATUS="1 of 2 instances ready; vicuna-0 has failed")

    asyncio.run(tell())


def test_what_happens_later_is_told_and_is_no_reason_to_be_unready(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, FIRST) as story, told(manager, story):
            await manager.hears_of(READY="1")
            story.engine.hold("answer vicuna-0")
            story.engine.dies("vicuna-0")
            status = "1 of 2 instances ready; vicuna-0 is loading"
            assert "READY" in await manager.hears_of(STATUS=status)

    asyncio.run(tell())


def test_a_file_that_is_not_valid_is_told(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER) as story, told(manager, story):
            manager.reloader.problems = ("line 3",)
            story.stop_instances(["controller"], "asked to")
            status = "nothing is to run; a.yaml is not valid, and not applied"
            await manager.hears_of(STATUS=status)

    asyncio.run(tell())


def test_stopping_with_who_is_left_and_more_time_for_them(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, FIRST) as story, told(manager, story):
            story.engine.hold("exit vicuna-0")
            story.reconciler.post(GoDown("the test says so"))
            message = await manager.hears_of(STOPPING="1", STATUS="stopping: controller, vicuna-0")
            assert "EXTEND_TIMEOUT_USEC" in message
            assert "READY" not in message
            story.engine.release("exit vicuna-0")

    asyncio.run(tell())


def test_a_reload_is_told_from_its_beginning_to_its_end(watching: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER) as story, told(watching, story):
            await watching.hears_of(READY="1")
            async with watching.reloader.around():
                message = await watching.hears_of(RELOADING="1")
                assert int(message["MONOTONIC_USEC"]) > 0
                for _ in range(3):
                    assert "READY" not in await watching.hears(), "it would end the reload"
            await watching.hears_of(READY="1")

    asyncio.run(tell())


def test_what_is_not_up_yet_is_not_made_ready_by_a_reload(manager: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, up=False) as story:
            story.engine.hold("answer controller")
            async with told(manager, story):
                await manager.hears()
                async with manager.reloader.around():
                    pass
                story.reconciler.start_instances([], "nothing")
                story.engine.release("answer controller")
                while "READY" not in (message := await manager.hears()):
                    assert "RELOADING" not in message
                assert message["STATUS"] == "1 of 1 instances ready"

    asyncio.run(tell())


def test_the_watchdog_is_fed_while_nothing_happens(watching: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER) as story, told(watching, story):
            for _ in range(10):
                await watching.hears_of(WATCHDOG="1", READY="1")

    asyncio.run(tell())


def test_an_inbox_that_nobody_handles_is_not_fed(watching: Manager) -> None:
    """Though the loop turns."""

    async def tell() -> None:
        story = Story((CONTROLLER,))
        async with told(watching, story):
            await asyncio.sleep(WATCHDOG * 10)  # no event to wait for: nothing is to happen
            assert watching.has_heard_nothing()
            supervision = asyncio.create_task(story.reconciler.run())
            await watching.hears_of(WATCHDOG="1")
            supervision.cancel()

    asyncio.run(tell())


def test_a_manager_that_was_away_hears_all_of_it_again(watching: Manager) -> None:
    async def tell() -> None:
        async with running(CONTROLLER, up=False) as story:
            story.engine.hold("answer controller")
            async with told(watching, story):
                await watching.hears()
                watching.socket.close()
                watching.path.unlink()
                story.engine.release("answer controller")
                await story.ready()
                watching.open()
                await watching.hears_of(READY="1", STATUS="1 of 1 instances ready")

    asyncio.run(tell())


def test_without_a_service_manager_nothing_is_done() -> None:
    async def tell() -> None:
        story = Story((CONTROLLER,))
        reloader: Any = SimpleNamespace()
        async with notifying({}, story.reconciler, reloader):
            assert not hasattr(reloader, "around")

    asyncio.run(tell())
