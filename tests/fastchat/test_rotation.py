"""Rotation against real controllers: ours, and a plain one of FastChat."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys

import aiohttp
import pytest
from harness import DEADLINE, ROOT, die_with_parent, free_ports

from supervisor.core.instance import InstanceSpec, RestartPolicy, Role
from supervisor.fastchat.client import Client
from supervisor.fastchat.rotation import Rotation

WORKER = InstanceSpec(
    name="owl-0",
    service="owl",
    role=Role.WORKER,
    kind="model_worker",
    argv=(),
    env=(),
    cwd="/",
    address="http://127.0.0.1:1",
    port=1,
    models=("owl",),
    gpus=(),
    depends_on=(),
    startup=None,
    readiness=None,
    liveness=None,
    restart=RestartPolicy(),
    stop_grace=1.0,
    in_rotation=True,
)
OTHER = dataclasses.replace(WORKER, name="fox-0", address="http://127.0.0.1:2", models=("fox",))


class Controller:
    """A controller process on a port that stays the same over restarts."""

    def __init__(self, module: list[str]) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, *module, "--host", "127.0.0.1", "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "LOGDIR": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def models(self, session: aiohttp.ClientSession) -> list[str]:
        async with session.post(f"{self.url}/list_models") as answer:
            return sorted((await answer.json())["models"])


OURS = [str(ROOT / "supervisor/fastchat/entry/controller.py")]
PLAIN = ["-m", "fastchat.serve.controller"]


@pytest.fixture(params=[OURS, PLAIN], ids=["ours", "plain"])
def controller(request):
    one = Controller(request.param)
    yield one
    one.kill()


class Scene:
    """A rotation at work, and questions to its controller that are asked until they hold."""

    def __init__(self, controller, session):
        self.controller = controller
        self.session = session
        self.rotation = Rotation(Client(session), controller.url, expires=False)

    async def enter(self, spec):
        """Enter; an event that is set once the controller has the worker."""
        entered = asyncio.Event()
        self.rotation.enter(spec, entered.set)
        return entered

    async def lists(self, *models):
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    if await self.controller.models(self.session) == sorted(models):
                        return
                await asyncio.sleep(0.02)


@pytest.fixture
def play(controller):
    def run(story):
        async def main():
            async with aiohttp.ClientSession() as session:
                scene = Scene(controller, session)
                try:
                    async with asyncio.timeout(DEADLINE):
                        await story(scene)
                finally:
                    await scene.rotation.close()

        asyncio.run(main())

    return run


def test_a_worker_that_enters_is_listed_and_one_that_leaves_is_not(play, controller):
    async def story(scene):
        controller.start()
        await (await scene.enter(WORKER)).wait()
        await (await scene.enter(OTHER)).wait()
        await scene.lists("fox", "owl")
        scene.rotation.leave("owl-0")
        await scene.lists("fox")

    play(story)


def test_entering_waits_for_a_controller_that_is_not_there_yet(play, controller):
    async def story(scene):
        entered = await scene.enter(WORKER)
        await asyncio.sleep(0)
        assert not entered.is_set()
        controller.start()
        await entered.wait()
        await scene.lists("owl")

    play(story)


def test_a_new_controller_gets_everybody_back(play, controller):
    async def story(scene):
        controller.start()
        await (await scene.enter(WORKER)).wait()
        controller.kill()
        controller.start()
        await scene.lists()
        scene.rotation.controller_is_new()
        await scene.lists("owl")

    play(story)


def test_a_forgetful_controller_is_noticed_at_the_next_queue_length(play, controller):
    """An external controller restarts without our knowing."""

    async def story(scene):
        controller.start()
        await (await scene.enter(WORKER)).wait()
        controller.kill()
        controller.start()
        await scene.lists()
        await scene.rotation.report_queue("owl-0", 3)
        await scene.lists("owl")

    play(story)


def test_leave_before_the_controller_answered_wins(play, controller):
    async def story(scene):
        entered = await scene.enter(WORKER)
        scene.rotation.leave("owl-0")
        controller.start()
        await (await scene.enter(OTHER)).wait()
        await scene.lists("fox")
        assert not entered.is_set()

    play(story)
