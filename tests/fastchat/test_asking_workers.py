"""Questions to a worker, in the light of what can be seen of it without asking."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from instances import GENERATE, worker

from supervisor.core.instance import Ask, InstanceSpec, Progress, Question
from supervisor.core.lifecycle import Outcome
from supervisor.core.probing import Answer
from supervisor.core.progress import Look, Record
from supervisor.fastchat.asking import askers
from supervisor.fastchat.client import Client
from supervisor.fastchat.rotation import Rotation

NOW = 1000.0
STALL = 30.0
REST = Record(
    pid=7,
    began=0.0,
    in_flight=0,
    embeddings=0,
    oldest=None,
    progress=NOW - 1,
    success=NOW - 1,
    failures=0,
    error="",
)
BUSY = replace(REST, in_flight=2, oldest=NOW - 5)
HUNG = replace(REST, in_flight=2, oldest=NOW - STALL, progress=NOW - STALL)
IDLE = replace(REST, success=NOW - 400)
SUSPECT = replace(REST, failures=3, error="HTTP 500")


def seen(record: Record, *, stopped: bool = False) -> Look:
    return Look(NOW, record, stopped=stopped, worked_at=0.0)


class World:
    """A worker that answers as it is told to, or not at all; a controller that knows it."""

    def __init__(self, *looks: Look | None, answer: Any = None, silent: bool = False) -> None:
        self.looks = list(looks)
        self.answer = answer
        self.silent = silent
        self.asked: list[str] = []
        self.queues: list[int] = []

    def look_at(self, name: str) -> Look | None:
        assert name == "owl-0"
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    async def serve(self, request: web.Request) -> web.Response:
        if request.path == "/register_worker":
            return web.json_response(None)
        if request.path == "/receive_heart_beat":
            self.queues.append((await request.json())["queue_length"])
            return web.json_response({"exist": True})
        self.asked.append(request.path)
        if self.silent:
            await asyncio.Event().wait()
        if isinstance(self.answer, int):
            return web.Response(status=self.answer)
        return web.json_response(self.answer or {"text": "Hello", "error_code": 0})

    def ask(self, ask: Ask, *, timeout: float = 0.05, **progress: Any) -> Answer:
        settings = {"stall_after": STALL, "question": GENERATE} | progress
        return asyncio.run(self._ask(ask, timeout, Progress(**settings)))

    async def _ask(self, ask: Ask, timeout: float, progress: Progress) -> Answer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.serve)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        spec: InstanceSpec = worker("owl-0", address=address, models=("owl",), progress=progress)
        try:
            async with aiohttp.ClientSession() as session:
                client = Client(session)
                rotation = Rotation(client, address, expires=False)
                entered = asyncio.Event()
                rotation.enter(spec, entered.set)
                await entered.wait()
                try:
                    return await askers(client, rotation, self.look_at)[ask](
                        spec, Question(ask), timeout
                    )
                finally:
                    await rotation.close()
        finally:
            await runner.cleanup()


# ---------------------------------------------------------------- status


def test_work_excuses_a_worker_that_does_not_answer_and_others_go_elsewhere() -> None:
    world = World(seen(BUSY), silent=True)
    answer = world.ask(Ask.STATUS)
    assert answer == (Outcome.PASSED, "too busy to answer: works on 2 requests")
    assert world.queues == [2]


@pytest.mark.parametrize("look", [None, seen(REST), seen(HUNG), seen(BUSY, stopped=True)], ids=str)
def test_nothing_else_does(look: Look | None) -> None:
    outcome, text = World(look, silent=True).ask(Ask.STATUS)
    assert (outcome, text) == (Outcome.FAILED, "no answer to status within 0.05 s")


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ("look", "outcome"),
    [
        (seen(REST), Outcome.PASSED),
        (seen(BUSY), Outcome.PASSED),
        (seen(HUNG), Outcome.CONDEMNED),
        (None, Outcome.UNASKED),
    ],
)
def test_what_can_be_seen_need_not_be_asked(look: Look | None, outcome: Outcome) -> None:
    world = World(look)
    assert world.ask(Ask.PROGRESS)[0] is outcome
    assert world.asked == []


@pytest.mark.parametrize("record", [IDLE, SUSPECT])
@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"error_code": 0}, Outcome.PASSED),
        ({"error_code": 40303, "text": "too long"}, Outcome.PASSED),
        ({"error_code": 50001, "text": "CUDA error"}, Outcome.FAILED),
        (500, Outcome.FAILED),
    ],
)
def test_in_doubt_one_token_decides(record: Record, answer: Any, outcome: Outcome) -> None:
    world = World(seen(record), answer=answer)
    assert world.ask(Ask.PROGRESS)[0] is outcome
    assert world.asked == ["/worker_generate"]


def test_one_that_only_embeds_is_asked_for_an_embedding() -> None:
    world = World(seen(IDLE))
    assert world.ask(Ask.PROGRESS, question=Question(Ask.EMBED))[0] is Outcome.PASSED
    assert world.asked == ["/worker_get_embeddings"]


def test_one_of_which_nobody_knows_what_it_can_is_not_asked() -> None:
    world = World(seen(IDLE))
    assert world.ask(Ask.PROGRESS, question=None)[0] is Outcome.UNASKED
    assert world.asked == []


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (HUNG, Outcome.CONDEMNED),
        (replace(REST, in_flight=9, oldest=NOW - 0.001), Outcome.UNASKED),
        (SUSPECT, Outcome.FAILED),
    ],
    ids=["it hangs", "others are before us", "it says nothing"],
)
def test_a_token_that_never_comes(
    record: Record, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.fastchat.asking._MARGIN", 0.0)
    world = World(seen(IDLE), seen(record), silent=True)
    assert world.ask(Ask.PROGRESS, stall_after=0.05)[0] is outcome
