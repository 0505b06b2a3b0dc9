"""An API server that answers nothing but 500 says so, once it has asked itself."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def asking_itself(entry_folder):
    spec = importlib.util.spec_from_file_location(
        "asking_itself", entry_folder / "asking_itself.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """FastChat's API server, as far as it is looked at; the test says what each path answers."""

    def __init__(self):
        self.answers = {
            "/v1/models": (200, {"data": [{"id": "owl"}, {"id": "fox"}]}),
            "/v1/chat/completions": (200, {}),
        }
        self.asked = []
        self.app_settings = SimpleNamespace(api_keys=(b"sk-one", b"sk-two"))
        self.logger = logging.getLogger("server")

    async def app(self, scope, receive, send):
        message = await receive() if receive else {}
        self.asked.append((scope["path"], message.get("body", b""), scope.get("headers")))
        status, content = self.answers[scope["path"]]
        body = json.dumps(content).encode()
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": body})
        if status == 500:
            raise RuntimeError("as its handler has done")


def story(asking_itself, server, *statuses, then=()):
    """Whether it calls itself failing, after answers of ``statuses``, asked twice."""
    checked = asking_itself.SelfCheck(server)

    async def answer(status):
        server.answers["/any"] = (status, {})
        try:
            await checked({"type": "http", "path": "/any"}, None, sent)
        except RuntimeError:
            assert status == 500

    async def sent(message):
        pass

    async def told():
        for status in statuses:
            await answer(status)
        found = [checked.is_failing()]
        if checked.asking:
            await checked.asking
        for status in then:
            await answer(status)
        return [*found, checked.is_failing()]

    return asyncio.run(told())


def test_nothing_but_500_and_no_better_answer_to_itself(asking_itself):
    server = Server()
    server.answers["/v1/chat/completions"] = (500, {})
    assert story(asking_itself, server, *[500] * 5) == [False, True]
    [models, chat] = [one for one in server.asked if one[0] != "/any"][:2]
    assert models[0] == "/v1/models"
    assert json.loads(chat[1])["model"] == "owl"
    assert (b"authorization", b"Bearer sk-one") in chat[2]


@pytest.mark.parametrize("status", [200, 400, 503])
def test_whoever_asks_nonsense_proves_nothing(asking_itself, status):
    """Its own question is answered, or says that somebody else is to blame."""
    server = Server()
    server.answers["/v1/chat/completions"] = (status, {})
    assert story(asking_itself, server, *[500] * 9) == [False, False]


def test_without_a_model_the_list_must_do(asking_itself):
    server = Server()
    server.answers["/v1/models"] = (200, {"data": []})
    assert story(asking_itself, server, *[500] * 5) == [False, False]
    server.answers["/v1/models"] = (500, {})
    assert story(asking_itself, server, *[500] * 5) == [False, True]


@pytest.mark.parametrize(
    "statuses", [[500] * 4, [*[500] * 4, 200, 500], [401] * 20, [503] * 20], ids=str
)
def test_without_a_doubt_it_asks_itself_nothing(asking_itself, statuses):
    server = Server()
    assert story(asking_itself, server, *statuses) == [False, False]
    assert {path for path, *_ in server.asked} == {"/any"}


def test_whoever_only_lacks_a_key_does_not_end_a_row_of_errors(asking_itself):
    server = Server()
    server.answers["/v1/models"] = (500, {})
    assert story(asking_itself, server, *[500, 401] * 5) == [False, True]


def test_a_success_of_anybody_ends_it(asking_itself):
    server = Server()
    server.answers["/v1/models"] = (500, {})
    assert story(asking_itself, server, *[500] * 5, then=[200]) == [False, False]
