"""A client's view of the demo cluster: the real FastChat, the official OpenAI client."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter

import httpx
import openai
import pytest
from harness import until

pytestmark = pytest.mark.e2e

MODELS = ("tiny-owl", "tiny-fox")


@pytest.fixture
def client(healthy_demo):
    with openai.OpenAI(
        base_url=f"{healthy_demo.url}/v1", api_key=healthy_demo.key, max_retries=0
    ) as one:
        yield one


def ask(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_says_what_it_is(client, model):
    answer = client.chat.completions.create(model=model, messages=ask("Who are you?"))
    assert model in answer.choices[0].message.content


@pytest.mark.parametrize("model", MODELS)
def test_a_streamed_answer_arrives_in_pieces(client, model):
    stream = client.chat.completions.create(model=model, messages=ask("Hello"), stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 2
    assert model in "".join(pieces)


def test_embeddings_have_the_width_of_the_model(client):
    answer = client.embeddings.create(model="tiny-owl", input="Hello", encoding_format="float")
    assert len(answer.data[0].embedding) > 10


def test_both_models_are_listed(client):
    assert sorted(model.id for model in client.models.list()) == sorted(MODELS)


def test_both_replicas_get_requests(client, healthy_demo):
    """shortest_queue on queue lengths that the supervisor keeps fresh."""
    logs = healthy_demo.cluster

    def served() -> Counter[str]:
        names = ("tiny-owl-0", "tiny-owl-1")
        return Counter({n: logs.log(n).count("/worker_generate_stream") for n in names})

    before = served()
    for _ in range(6):
        for _chunk in client.chat.completions.create(
            model="tiny-owl", messages=ask("Hello"), stream=True
        ):
            pass
    until(lambda: sum((served() - before).values()) >= 6, "six requests are in the logs")
    assert all((served() - before)[name] for name in ("tiny-owl-0", "tiny-owl-1"))


def test_without_the_key_nobody_gets_in(healthy_demo):
    body = {"model": "tiny-owl", "messages": ask("Hello")}
    for path in ("/v1/chat/completions", "/api/v1/chat/completions"):
        assert (
            httpx.post(f"{healthy_demo.url}{path}", json=body, trust_env=False).status_code == 401
        )


def test_the_key_shows_nowhere(healthy_demo):
    cluster, key = healthy_demo.cluster, healthy_demo.key
    for arguments in (("status", "--json"), ("plan",), ("why", "api_server"), ("events",)):
        done = cluster.run(*arguments)
        assert done.returncode == 0
        assert key not in done.stdout + done.stderr
    for path in [*cluster.log_dir.iterdir(), cluster.output]:
        assert key not in path.read_text(), path
    for pid in cluster.processes():
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as stream:
                assert key.encode() not in stream.read()


def test_the_controller_tells_its_workers(healthy_demo):
    with urllib.request.urlopen(f"{healthy_demo.controller}/workers") as answer:
        workers = json.load(answer)["workers"]
    addresses = {
        one["address"]
        for one in healthy_demo.cluster.status()["instances"]
        if one["role"] == "worker"
    }
    assert set(workers) == addresses
