"""Two API servers share a socket while one takes over: which of them answers decides."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from harness import DEADLINE
from instances import instance

from supervisor.core.instance import Ask, Question
from supervisor.core.lifecycle import Outcome
from supervisor.fastchat.asking import askers
from supervisor.fastchat.client import Client
from supervisor.fastchat.rotation import Rotation


def nothing(_: str) -> None:
    """There is no record of progress."""


async def ask(reply: web.Response) -> Outcome:
    async def health(_: web.Request) -> web.Response:
        return reply

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    spec = instance("api_server.b", address=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(session)
            asking = askers(client, Rotation(client, "http://127.0.0.1:9", expires=False), nothing)
            outcome, _ = await asking[Ask.HEALTH](spec, Question(Ask.HEALTH), DEADLINE)
            return outcome
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ({"instance": "api_server.b"}, Outcome.PASSED),
        ({"instance": None}, Outcome.PASSED),
        ({"status": "ok"}, Outcome.PASSED),
        ({"instance": "api_server"}, Outcome.UNASKED),
    ],
)
def test_only_its_own_answer_is_evidence(reply, outcome):
    async def story():
        return await ask(web.json_response(reply))

    assert asyncio.run(story()) is outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", Outcome.FAILED),
        ('{"instance": "api_server.b"}', Outcome.FAILED),
        ('{"instance": "api_server"}', Outcome.UNASKED),
    ],
)
def test_a_server_that_answers_with_an_error_has_failed_if_it_is_the_one(text, outcome):
    reply = web.Response(status=500, text=text)

    async def story():
        return await ask(reply)

    assert asyncio.run(story()) is outcome
