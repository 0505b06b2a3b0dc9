"""Rotation against real controllers: ours, and a plain one of FastChat."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys

import aiohttp
import pytest
from aiohttp import web
from harness import DEADLINE, ROOT, die_with_parent, free_ports
from instances import worker

from supervisor.core.instance import Ask, Question
from supervisor.core.lifecycle import Outcome
from supervisor.fastchat.asking import askers
from supervisor.fastchat.client import Client, Refused
from supervisor.fastchat.rotation import Rotation

WORKER = worker("owl-0", address="http://127.0.0.1:1", models=("owl",))
OTHER = worker("fox-0", address="http://127.0.0.1:2", models=("fox",))


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
        scene.rotation.leave(WORKER)
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
        scene.rotation.controller_is_at(controller.url, expires=False)
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
        await scene.rotation.report_queue(WORKER, 3)
        await scene.lists("owl")

    play(story)


def test_leave_before_the_controller_answered_wins(play, controller):
    async def story(scene):
        entered = await scene.enter(WORKER)
        scene.rotation.leave(WORKER)
        controller.start()
        await (await scene.enter(OTHER)).wait()
        await scene.lists("fox")
        assert not entered.is_set()

    play(story)


# ---------------------------------------------------------------- services that talk nonsense


@contextlib.asynccontextmanager
async def answering(*texts):
    """A service that answers 200 with each text in turn, and with the last one for ever."""
    left = list(texts)

    async def answer(_):
        return web.Response(text=left.pop(0) if len(left) > 1 else left[0])

    app = web.Application()
    app.router.add_post("/{path}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


HTML = "<html>It works!</html>"


def asked(question, *texts, descriptors=None):
    """What a question comes back with from a worker that answers so."""

    async def main():
        async with answering(*texts) as url, aiohttp.ClientSession() as session:
            client = Client(session)
            rotation = Rotation(client, url, expires=False)
            rotation.enter(WORKER, lambda: None)
            while not rotation._workers[WORKER.address].settled:
                await asyncio.sleep(0.001)
            if descriptors is not None:  # to a name without a connection that is kept alive
                url = url.replace("127.0.0.1", "127.0.0.2")
            spec = dataclasses.replace(WORKER, address=url)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors or soft, hard))
            try:
                asking = askers(client, rotation, lambda name: None)
                return await asking[question](spec, Question(question), 5.0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await rotation.close()

    return asyncio.run(main())


@pytest.mark.parametrize("question", [Ask.STATUS, Ask.GENERATE, Ask.EMBED])
def test_an_answer_that_is_no_json_is_a_failure_that_says_so(question):
    outcome, detail = asked(question, "{}", HTML)
    assert outcome is Outcome.FAILED
    assert detail.startswith(f"{question} failed: answered no JSON")


@pytest.mark.parametrize("odd", [None, "x", -1, 2.5, [], True])
def test_an_odd_queue_length_is_not_passed_on_and_does_no_harm(odd):
    outcome, detail = asked(Ask.STATUS, "{}", json.dumps({"queue_length": odd}))
    assert (outcome, detail) == (Outcome.PASSED, "answers, queue unknown")
    assert asked(Ask.STATUS, '{"queue_length": 3}')[1] == "answers, queue 3"


@pytest.mark.parametrize("question", [Ask.STATUS, Ask.GENERATE, Ask.EMBED])
def test_without_descriptors_no_worker_could_be_asked(question):
    outcome, detail = asked(question, "{}", descriptors=3)
    assert outcome is Outcome.UNASKED
    assert "Too many open files" in detail


def test_a_controller_that_talks_nonsense_is_told_again_until_it_understands(caplog):
    async def main():
        async with answering(HTML, HTML, "null") as url, aiohttp.ClientSession() as session:
            rotation = Rotation(Client(session), url, expires=False)
            entered = asyncio.Event()
            rotation.enter(WORKER, entered.set)
            async with asyncio.timeout(DEADLINE):
                await entered.wait()
            await rotation.close()

    asyncio.run(main())
    assert [r.getMessage() for r in caplog.records if "answered no JSON" in r.getMessage()] == [
        f"the controller refuses {WORKER.address}: answered no JSON"
    ], "once in a row"


class _Broken:
    """A client with defects, as many as told, then none."""

    def __init__(self, defects):
        self.defects = defects

    async def register(self, *_, **__):
        if self.defects:
            self.defects -= 1
            raise AttributeError("a defect")

    async def heartbeat(self, *_):
        raise AttributeError("a defect")


def test_a_defect_does_not_end_the_way_of_a_worker_into_rotation(caplog):
    async def main():
        rotation = Rotation(_Broken(2), "http://127.0.0.1:1", expires=False)
        entered = asyncio.Event()
        rotation.enter(WORKER, entered.set)
        async with asyncio.timeout(DEADLINE):
            await entered.wait()
        await rotation.report_queue(WORKER, 1)  # raises nothing into the probe that reports it
        await rotation.close()

    asyncio.run(main())
    told = [record.getMessage() for record in caplog.records if record.exc_info]
    assert len(told) == 2
    assert "cannot settle" in told[0]


class _Unreachable:
    """A client to a controller that cannot be reached to say that a worker leaves, three times."""

    def __init__(self, error):
        self.error = aiohttp.ClientConnectorError(None, OSError(error, os.strerror(error)))
        self.tries = 0

    async def register(self, *_, **__):
        pass

    async def deregister(self, *_):
        self.tries += 1
        if self.tries <= 3:
            raise self.error
        return True


@pytest.mark.parametrize(
    ("error", "tries"), [(errno.ECONNREFUSED, 1), (errno.EMFILE, 4), (errno.EHOSTUNREACH, 4)]
)
def test_only_a_controller_that_is_not_there_is_not_told_that_a_worker_leaves(error, tries):
    async def main():
        client = _Unreachable(error)
        rotation = Rotation(client, "http://127.0.0.1:1", expires=False)
        entered = asyncio.Event()
        rotation.enter(WORKER, entered.set)
        async with asyncio.timeout(DEADLINE):
            await entered.wait()
            rotation.leave(WORKER)
            await rotation.until_out(WORKER)
        await rotation.close()
        return client.tries

    assert asyncio.run(main()) == tries


def test_a_client_says_that_an_answer_was_no_json():
    async def main():
        async with answering(HTML) as url, aiohttp.ClientSession() as session:
            with pytest.raises(Refused, match="answered no JSON"):
                await Client(session).worker_status(url, 5.0)

    asyncio.run(main())
