"""What a client of the API server sees while the controller or a worker is away."""

from __future__ import annotations

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

NOBODY = "http://127.0.0.1:1"
QUESTION = [{"role": "user", "content": "Hello"}]
ANSWER = "Tu-whit tu-who"
ASKS_AGAIN = "asks again for up to"
names = (f"model-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def cluster(start):
    """A controller and an API server that asks again for as long as a test may take.

    The server's environment has a proxy that does not work: it must not be asked.
    """
    proxy = {"HTTP_PROXY": NOBODY, "http_proxy": NOBODY, "NO_PROXY": "", "no_proxy": ""}
    return Cluster(start, {"LLM_SUPERVISOR_RETRY_SECONDS": "60"} | proxy)


@pytest.fixture(scope="module")
def impatient(start):
    """A controller and an API server that asks again, but hardly."""
    env = {"LLM_SUPERVISOR_RETRY_SECONDS": "0.1", "FASTCHAT_WORKER_API_TIMEOUT": "1"}
    return Cluster(start, env)


class Cluster:
    def __init__(self, start, env, controller=None):
        self.start = start
        self.env = env
        self.controller = controller or start("controller")
        flags = ("--controller-address", self.controller.url)
        self.server = start("openai_api_server", *flags, env=env)
        self.controller.wait_until_served("GET", "/test_connection")
        self.server.wait_until_served("GET", "/health")

    def beside(self, env):
        """Another API server for this controller."""
        return Cluster(self.start, self.env | env, self.controller)

    def restart_controller(self):
        self.controller = self.start("controller", port=self.controller.port)
        self.controller.wait_until_served("GET", "/test_connection")

    def client(self):
        return openai.OpenAI(base_url=self.server.url + "/v1", api_key="-", max_retries=0)

    def chat(self, model, **more):
        body = {"model": model, "messages": QUESTION} | more
        return httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=60)

    def events(self, model):
        """The events of a streamed chat before its [DONE]."""
        *events, done, end = self.chat(model, stream=True).text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.fixture
def client(cluster):
    with cluster.client() as client:
        yield client


@pytest.fixture
def model():
    """The name of a model that no other test uses."""
    return next(names)


@pytest.fixture
def in_background():
    with ThreadPoolExecutor() as executor:
        yield executor.submit


def whole(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION)
    return answer.choices[0].message.content


def streamed(client, model):
    with client.chat.completions.create(model=model, messages=QUESTION, stream=True) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def completed(client, model):
    with client.completions.create(model=model, prompt="Hello", stream=True) as stream:
        return "".join(chunk.choices[0].text for chunk in stream)


every_way = pytest.mark.parametrize("ask", [whole, streamed, completed])


def dying(worker, after=0):
    """Let `worker` die in its next generation, `after` so many words."""
    worker.hook = lambda words: worker.die() if words == after else None


@every_way
def test_a_replica_answers_for_one_that_is_gone(
    cluster, client, model, fake_worker, register_worker, ask
):
    worker = fake_worker()
    # The controller names the shortest queue, and adds one to it each time.
    register_worker(cluster.controller, NOBODY, model, queue_length=0)
    register_worker(cluster.controller, worker.url, model, queue_length=3)

    assert ask(client, model) == ANSWER
    assert len(worker.prompts()) == 1


@every_way
def test_a_replica_answers_for_one_that_dies_before_its_first_word(
    cluster, client, model, fake_worker, register_worker, ask
):
    mortal, worker = fake_worker(), fake_worker()
    dying(mortal)
    register_worker(cluster.controller, mortal.url, model, queue_length=0)
    register_worker(cluster.controller, worker.url, model, queue_length=3)

    assert ask(client, model) == ANSWER
    assert len(mortal.prompts()) == len(worker.prompts()) == 1


@every_way
def test_a_request_that_may_have_killed_two_workers_gets_no_third(
    cluster, client, model, fake_worker, register_worker, ask
):
    workers = [fake_worker() for _ in range(3)]
    for worker in workers:
        dying(worker)
        register_worker(cluster.controller, worker.url, model)

    with pytest.raises(openai.APIError, match="broke off"):
        ask(client, model)
    assert sorted(len(worker.prompts()) for worker in workers) == [0, 1, 1]


def test_a_worker_that_answers_503_is_asked_again(
    cluster, client, model, fake_worker, register_worker
):
    full, worker = fake_worker(), fake_worker()
    full.status = 503
    register_worker(cluster.controller, full.url, model, queue_length=0)
    register_worker(cluster.controller, worker.url, model, queue_length=5)

    assert whole(client, model) == ANSWER
    assert len(full.asked) > 2
    assert len(worker.prompts()) == 1


@every_way
def test_a_controller_that_restarts_is_waited_for(
    cluster, client, model, fake_worker, register_worker, in_background, ask
):
    worker = fake_worker()
    register_worker(cluster.controller, worker.url, model)
    ask(client, model)
    before = len(cluster.server.log())
    cluster.controller.kill()
    answer = in_background(ask, client, model)
    cluster.server.wait_until_logged(ASKS_AGAIN, since=before)
    listed = in_background(client.models.list)

    cluster.restart_controller()
    assert listed.result().data == []
    cluster.server.wait_until_logged(f"No worker serves {model!r}", since=before)
    assert cluster.chat("never-seen").status_code == 400
    assert not answer.done()
    register_worker(cluster.controller, worker.url, model)
    assert answer.result() == ANSWER


@every_way
def test_the_only_worker_is_waited_for(
    cluster, client, model, fake_worker, register_worker, in_background, ask
):
    mortal, worker = fake_worker(), fake_worker()
    dying(mortal)
    register_worker(cluster.controller, mortal.url, model)
    answer = in_background(ask, client, model)
    cluster.server.wait_until_logged(mortal.url)
    deregister(cluster.controller, mortal)
    cluster.server.wait_until_logged(mortal.url + "/worker_generate")

    assert not answer.done()
    register_worker(cluster.controller, worker.url, model)
    assert answer.result() == ANSWER


def test_a_worker_is_waited_for_also_when_no_model_was_listed(
    cluster, model, fake_worker, register_worker, in_background
):
    tokens = {"prompts": [{"model": model, "prompt": "Hello", "max_tokens": 1}]}
    gone, worker = fake_worker(), fake_worker()
    gone.status = 503
    register_worker(cluster.controller, gone.url, model)
    url = cluster.server.url + "/api/v1/token_check"
    answer = in_background(httpx.post, url, json=tokens, timeout=60)
    cluster.server.wait_until_logged(gone.url)
    deregister(cluster.controller, gone)
    cluster.server.wait_until_logged(f"No worker serves {model!r}")

    register_worker(cluster.controller, worker.url, model)
    assert answer.result().json()["prompts"][0]["fits"] is True


def test_a_model_that_nobody_has_seen_is_refused_at_once(cluster):
    refusal = cluster.chat("never-seen")

    assert refusal.status_code == 400
    assert refusal.json()["code"] == 40301
    assert "never-seen" in refusal.json()["message"]
    tokens = {"prompts": [{"model": "never-seen", "prompt": "Hello", "max_tokens": 1}]}
    assert_503(httpx.post(cluster.server.url + "/api/v1/token_check", json=tokens), 50005)


def test_a_new_server_waits_for_a_model_of_the_cluster_file(
    cluster, model, fake_worker, register_worker, in_background
):
    """It has seen no model yet, and this one is just being started anew."""
    new = cluster.beside({"LLM_SUPERVISOR_MODELS": json.dumps([model, "another"])})
    answer = in_background(new.chat, model)
    new.server.wait_until_logged(f"No worker serves {model!r}")

    assert new.chat("never-seen").status_code == 400
    assert not answer.done()
    register_worker(cluster.controller, fake_worker().url, model)
    assert answer.result().status_code == 200


@pytest.mark.parametrize("models", ["no JSON", '{"model": 1}', "[5, null, []]"])
def test_a_list_of_models_that_is_none_does_no_harm(cluster, models):
    new = cluster.beside({"LLM_SUPERVISOR_MODELS": models})

    assert new.chat("model").status_code == 400


def assert_503(answer, code):
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json().keys() == {"object", "message", "code"}
    assert answer.json()["object"] == "error"
    assert answer.json()["code"] == code
    assert "try again" in answer.json()["message"]


def test_a_worker_that_stays_away_is_a_503(impatient, model, register_worker):
    register_worker(impatient.controller, NOBODY, model)

    assert_503(impatient.chat(model), 50006)


def test_a_generation_that_dies_is_a_503(impatient, model, fake_worker, register_worker):
    worker = fake_worker()
    dying(worker)
    register_worker(impatient.controller, worker.url, model)

    assert_503(impatient.chat(model), 50006)


def test_a_model_that_has_just_left_is_a_503(impatient, model, fake_worker, register_worker):
    worker = fake_worker()
    register_worker(impatient.controller, worker.url, model)
    assert impatient.chat(model).status_code == 200
    deregister(impatient.controller, worker)

    assert_503(impatient.chat(model), 50005)


def test_a_controller_that_stays_away_is_a_503(impatient, model):
    impatient.controller.kill()
    try:
        assert_503(impatient.chat(model), 50005)
        assert_503(httpx.get(impatient.server.url + "/v1/models"), 50005)
    finally:
        impatient.restart_controller()


def deregister(controller, worker):
    httpx.post(controller.url + "/deregister_worker", json={"worker_name": worker.url})


def assert_ends_with_error(events, code):
    *_, last = events
    assert last["error_code"] == last["error"]["code"] == code
    assert last["text"] == last["error"]["message"]
    assert last["error"]["type"] == "server_error"


@pytest.mark.parametrize("ask", [streamed, completed])
def test_a_stream_that_is_cut_off_ends_with_an_error(
    cluster, client, model, fake_worker, register_worker, ask
):
    first, second = fake_worker(), fake_worker()
    for worker in (first, second):
        dying(worker, after=1)
        register_worker(cluster.controller, worker.url, model)

    assert_ends_with_error(cluster.events(model), 50006)
    with pytest.raises(openai.APIError, match="broke off"):
        ask(client, model)
    assert len(first.prompts()) == len(second.prompts()) == 1


@pytest.mark.parametrize("after", [0, 1])
def test_a_stream_that_halts_ends_with_an_error(
    impatient, model, fake_worker, register_worker, after
):
    worker, over = fake_worker(), threading.Event()
    worker.hook = lambda words: words == after and over.wait()
    register_worker(impatient.controller, worker.url, model)

    assert_ends_with_error(impatient.events(model), 50006)
    assert len(worker.prompts()) == 1
    over.set()


def test_a_stream_that_makes_no_sense_ends_with_an_error(
    cluster, model, fake_worker, register_worker
):
    worker = fake_worker()
    worker.words = ["nonsense"]
    register_worker(cluster.controller, worker.url, model)

    assert_ends_with_error(cluster.events(model), 50001)


@pytest.mark.parametrize("ask", [streamed, completed])
def test_an_error_that_a_worker_reports_in_a_stream_is_raised(
    cluster, client, model, fake_worker, register_worker, ask
):
    worker = fake_worker()
    worker.words = ["error 50002"]
    register_worker(cluster.controller, worker.url, model)

    assert_ends_with_error(cluster.events(model), 50002)
    with pytest.raises(openai.APIError, match="error 50002"):
        ask(client, model)


def test_a_stream_that_its_client_leaves_is_left(cluster, model, fake_worker, register_worker):
    worker = fake_worker()
    worker.words = [" "] * 100_000
    worker.hook = lambda words: time.sleep(0.001)  # lets the server keep up
    register_worker(cluster.controller, worker.url, model)

    body = {"model": model, "messages": QUESTION, "stream": True}
    with httpx.stream("POST", cluster.server.url + "/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if "content" in line)
    assert worker.left_alone.wait(60)


def test_a_template_that_changes_is_used(cluster, client, model, fake_worker, register_worker):
    worker = fake_worker()
    register_worker(cluster.controller, worker.url, model)
    whole(client, model)
    worker.template = worker.template | {"roles": ["ASKED", "ANSWERED"]}
    whole(client, model)

    before, after = worker.prompts()
    assert "USER: Hello" in before
    assert "ASKED: Hello" in after


@pytest.mark.parametrize("bound", ["soon", "-1", "nan"])
def test_a_bound_that_is_no_number_is_refused(start, bound):
    server = start("openai_api_server", env={"LLM_SUPERVISOR_RETRY_SECONDS": bound})

    assert server.exit_status() == 1
    assert f"LLM_SUPERVISOR_RETRY_SECONDS is {bound!r}" in server.log()
