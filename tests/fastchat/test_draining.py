"""When a worker that has left rotation counts as empty."""

from __future__ import annotations

import asyncio
import resource

import aiohttp
import pytest
from aiohttp import web
from harness import DEADLINE
from instances import worker

from supervisor.fastchat import draining
from supervisor.fastchat.client import Client
from supervisor.fastchat.rotation import Rotation

NOWHERE = "http://127.0.0.1:9"


def play(answers, then):
    """Drain a worker whose statuses are ``answers``; the last one goes on. What it was asked."""

    async def main():
        asked = []

        async def status(_):
            asked.append(answers[min(len(asked), len(answers) - 1)])
            if asked[-1] is Exception:
                return web.Response(status=500)
            return web.json_response({"queue_length": asked[-1]})

        app = web.Application()
        app.router.add_post("/worker_get_status", status)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        spec = worker("owl-0", address=f"http://127.0.0.1:{port}")
        async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE):
            client = Client(session)
            rotation = Rotation(client, NOWHERE, expires=False)
            await then(client, rotation, spec)
            await rotation.close()
        await runner.cleanup()
        return asked

    return asyncio.run(main())


def test_it_is_empty_after_some_answers_in_a_row_without_a_request():
    asked = play([2, 1, 0, 0, 1, 0], draining.drained)
    assert asked == [2, 1, 0, 0, 1, 0, 0, 0, 0, 0]


def test_one_that_does_not_answer_is_busy():
    asked = play([0, 0, Exception, 0], draining.drained)
    assert asked == [0, 0, Exception, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("odd", [None, "x", -1, 0.0, True, []])
def test_one_that_does_not_tell_is_busy(odd):
    assert play([0, odd, 0, odd, 0], draining.drained) == [0, odd, 0, odd, 0, 0, 0, 0, 0]


def test_one_that_we_have_no_descriptors_to_ask_is_busy(monkeypatch):
    tried = asyncio.Event()
    ask = Client.worker_status

    async def asking(*args):
        try:
            return await ask(*args)
        finally:
            tried.set()

    monkeypatch.setattr(Client, "worker_status", asking)

    async def without_descriptors(client, rotation, spec):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            drained = asyncio.create_task(draining.drained(client, rotation, spec))
            for _ in range(3):
                await tried.wait()
                tried.clear()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await drained

    assert play([0], without_descriptors) == [0] * 5


def test_one_that_is_gone_has_no_requests():
    async def elsewhere(client, rotation, _):
        await draining.drained(client, rotation, worker("owl-0", address=NOWHERE))

    assert play([1], elsewhere) == []


def test_it_is_asked_only_after_the_controller_has_let_go_of_it(monkeypatch):
    """Until then it may get one more request."""
    order = []

    async def until_out(self, spec):
        order.append("out")

    monkeypatch.setattr(Rotation, "until_out", until_out)

    async def noting(client, rotation, spec):
        await draining.drained(client, rotation, spec)
        order.append("empty")

    play([0], noting)
    assert order == ["out", "empty"]
