"""The API server's entry module, beside FastChat's own: clients, keys, probes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import openai
import pytest

KEY = "sk-never-to-be-seen"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
QUESTION = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "tiny-owl", "messages": QUESTION, "temperature": 0, "max_tokens": 20}
COMPLETION = {"model": "tiny-owl", "prompt": "Hello", "temperature": 0, "max_tokens": 20}

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def client(api_server):
    with openai.OpenAI(base_url=api_server.url + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


def post(server, path, body, headers=AUTHORIZED):
    return httpx.post(server.url + path, json=body, headers=headers, timeout=60)


def events_of(answer):
    """The `data:` events of a streamed answer, without the closing [DONE]."""
    *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def test_a_streamed_chat_says_what_the_whole_one_says(client):
    whole = client.chat.completions.create(**CHAT)
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        choices = [chunk.choices[0] for chunk in stream]

    said = "".join(choice.delta.content or "" for choice in choices)
    assert said
    assert said == whole.choices[0].message.content
    assert choices[-1].finish_reason == whole.choices[0].finish_reason


def test_a_streamed_completion_says_what_the_whole_one_says(client):
    whole = client.completions.create(**COMPLETION)
    with client.completions.create(**COMPLETION, stream=True) as stream:
        said = "".join(chunk.choices[0].text for chunk in stream)

    assert said
    assert said == whole.choices[0].text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/chat/completions"])
def test_streamed_chats_leave_out_what_is_not_set(api_server, path):
    first, *middle, last = events_of(post(api_server, path, CHAT | {"stream": True}))

    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]
    assert all(set(event["choices"][0]["delta"]) == {"content"} for event in middle)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
)
def test_the_plain_server_streams_nothing(plain_api_server, path, body):
    with httpx.stream(
        "POST", plain_api_server.url + path, json=body | {"stream": True}, headers=AUTHORIZED
    ) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


def test_embeddings_are_answered(client):
    answer = client.embeddings.create(model="tiny-owl", input=["Hello", "Who are you?"])

    assert len(answer.data) == 2
    assert all(embedding.embedding for embedding in answer.data)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/chat/completions", CHAT),
        (
            "/api/v1/token_check",
            {"prompts": [{"model": "tiny-owl", "prompt": "Hello", "max_tokens": 1}]},
        ),
    ],
)
def test_a_key_is_asked_on_every_route(api_server, plain_api_server, path, body):
    refusal = post(api_server, "/v1/chat/completions", CHAT, headers={})
    refused = post(api_server, path, body, headers={})
    wrong = post(api_server, path, body, headers={"Authorization": "Bearer sk-wrong"})

    assert refused.status_code == wrong.status_code == refusal.status_code == 401
    assert refused.json() == wrong.json() == refusal.json()
    assert post(api_server, path, body).status_code == 200
    assert post(plain_api_server, path, body, headers={}).status_code == 200


def test_health_needs_no_key(api_server, plain_api_server):
    answer = httpx.get(api_server.url + "/health")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "instance": None}
    assert httpx.get(plain_api_server.url + "/health").status_code == 404


def test_a_browser_may_ask_for_permission_without_a_key(api_server):
    preflight = {"Origin": "http://example.org", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(api_server.url + "/api/v1/chat/completions", headers=preflight)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"]


def test_keys_are_seen_nowhere(api_server, plain_api_server):
    def traces(server):
        return Path(f"/proc/{server.popen.pid}/cmdline").read_text() + server.log()

    assert KEY not in traces(api_server)
    assert KEY not in Path(f"/proc/{api_server.popen.pid}/environ").read_text()
    assert KEY in traces(plain_api_server)


@pytest.mark.parametrize("secrets", ["", KEY, f'{{"api_keys": "{KEY}"}}'])
def test_it_never_serves_without_the_keys_that_were_promised(start, secrets):
    server = start("openai_api_server", stdin=secrets, env={"LLM_SUPERVISOR_SECRETS": "stdin"})

    assert server.exit_status() == 1
    assert "cannot read API keys from stdin" in server.log().splitlines()[-1]
    assert KEY not in server.log()


def test_listing_models_refreshes_nothing(client, controller, plain_api_server):
    before = len(controller.log())
    assert [model.id for model in client.models.list()] == ["tiny-owl"]
    assert "/refresh_all_workers" not in controller.log()[before:]

    httpx.get(plain_api_server.url + "/v1/models", headers=AUTHORIZED)
    assert "/refresh_all_workers" in controller.log()[before:]


def test_probes_are_not_logged(api_server):
    httpx.get(api_server.url + "/health")
    httpx.get(api_server.url + "/v1/models")

    assert "/health" not in api_server.log()
    assert "GET /v1/models" in api_server.log()


def test_health_asks_no_controller_and_the_server_ends_on_sigterm(start):
    server = start("openai_api_server", "--controller-address", "http://127.0.0.1:1")
    server.wait_until_served("GET", "/health")

    assert httpx.get(server.url + "/health").status_code == 200
    assert server.exit_status_after(signal.SIGTERM) == -signal.SIGTERM


def test_it_ends_when_its_port_is_taken(start, taken_port):
    server = start("openai_api_server", port=taken_port)

    assert server.exit_status() == 3
    last_line = server.log().splitlines()[-1]
    assert "cannot serve" in last_line
    assert "address already in use" in last_line
