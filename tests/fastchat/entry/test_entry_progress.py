"""What a worker notes of its work, and what becomes of the record when something is wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import resource
import time
from types import SimpleNamespace

import httpx
import pytest
from harness import until


@pytest.fixture(scope="module")
def progress(entry_folder):
    """The module, by path: no part of the supervisor imports it."""
    spec = importlib.util.spec_from_file_location("progress", entry_folder / "progress.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notes(progress, tmp_path):
    return progress.Notes(str(tmp_path / "record"))


def record_of(path):
    with open(path) as stream:
        return json.loads(stream.read())


def answering(*messages, error=None, wait=None):
    """An ASGI application that answers so."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
        if wait is not None:
            await wait.wait()
        if error is not None:
            raise error

    return app


def start(status=200):
    return {"type": "http.response.start", "status": status}


def body(content, more=False):
    piece = content if isinstance(content, bytes) else json.dumps(content).encode()
    return {"type": "http.response.body", "body": piece, "more_body": more}


def piece(**content):
    return body(json.dumps(content).encode() + b"\0", more=True)


END = body(b"")
OK = {"text": "Hello", "error_code": 0}
CUDA = {
    "text": "**NETWORK ERROR DUE TO HIGH TRAFFIC.**\n\n(CUDA error: device-side assert)",
    "error_code": 50001,
}


def request(progress, notes, app, path="/worker_generate_stream"):
    async def sent(message):
        pass

    scope = {"type": "http", "path": path}
    return progress.Watched(app, notes)(scope, None, sent)


def ask(progress, notes, app, path="/worker_generate_stream"):
    """The record after a request that ``app`` answers."""

    async def story():
        try:
            await request(progress, notes, app, path)
        except (KeyError, OSError) as error:
            return error

    asyncio.run(story())
    return record_of(notes.path)


# ---------------------------------------------------------------- what becomes of a request


@pytest.mark.parametrize(
    ("app", "failures", "error"),
    [
        (answering(start(), body(OK)), 0, ""),
        (answering(start(), piece(**OK), piece(**OK), END), 0, ""),
        (answering(start(), body({"embedding": [[0.5] * 9], "token_num": 1})), 0, ""),
        (answering(start(), body(b"[" + b"0.5, " * 20000 + b"0]")), 0, ""),
        (answering(start(), body(CUDA)), 1, "error 50001: (CUDA error: device-side assert)"),
        (answering(start(), piece(**OK), piece(**CUDA), END), 1,
         "error 50001: (CUDA error: device-side assert)"),
        (answering(start(), body({"text": "out of memory", "error_code": 50002})), 1,
         "error 50002: out of memory"),
        (answering(start(500), body(b"Internal Server Error")), 1, "HTTP 500"),
        (answering(start(500), body(b""), error=KeyError("model")), 1, "KeyError('model')"),
        (answering(start(), piece(**OK), error=KeyError("cut")), 1, "KeyError('cut')"),
        (answering(), 1, "ended before anything was produced"),
        (answering(start(), error=OSError("gone")), 1, "ended before anything was produced"),
    ],
)  # fmt: skip
def test_a_request_succeeds_or_fails(progress, notes, app, failures, error):
    before = notes.success
    record = ask(progress, notes, app)
    assert (record["failures"], record["error"]) == (failures, error)
    assert (record["success"] != before) is (failures == 0)
    assert (record["in_flight"], record["oldest"]) == (0, None)


@pytest.mark.parametrize(
    "app",
    [
        answering(start(), body({"text": "too long", "error_code": 40303})),
        answering(start(422), body(b"{}")),
        answering(start(), piece(**OK), error=OSError("the client has gone")),
        answering(start(), piece(**OK)),
    ],
    ids=["a bad request", "not even one", "a client that goes", "one that is cut"],
)
def test_what_says_nothing_of_the_worker_is_neither(progress, notes, app):
    ask(progress, notes, answering(start(), body(CUDA)))
    record = ask(progress, notes, app)
    assert (record["failures"], record["success"]) == (1, None)


def test_a_success_ends_a_row_of_failures(progress, notes):
    for count in (1, 2, 3):
        assert ask(progress, notes, answering(start(), body(CUDA)))["failures"] == count
    assert ask(progress, notes, answering(start(), body(OK)))["failures"] == 0


def test_other_questions_are_no_work(progress, notes):
    before = record_of(notes.path)
    for path in ("/worker_get_status", "/count_token"):
        assert ask(progress, notes, answering(start(500), body(b"")), path) == before


def test_requests_in_flight_are_counted_until_they_end_or_are_cancelled(progress, notes):
    async def story():
        gate = asyncio.Event()
        slow = answering(start(), wait=gate)
        asked = [
            asyncio.create_task(request(progress, notes, slow, path))
            for path in ("/worker_generate", "/worker_get_embeddings")
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        both = record_of(notes.path)
        asked[0].cancel()
        await asyncio.gather(*asked[:1], return_exceptions=True)
        one = record_of(notes.path)
        gate.set()
        await asked[1]
        return both, one, record_of(notes.path)

    both, one, none = asyncio.run(story())
    assert (both["in_flight"], both["embeddings"]) == (2, 1)
    assert both["began"] <= both["oldest"] <= time.monotonic()
    assert (one["in_flight"], one["embeddings"]) == (1, 1)
    assert one["oldest"] > both["oldest"]
    assert (none["in_flight"], none["embeddings"], none["oldest"]) == (0, 0, None)


# ---------------------------------------------------------------- the file


def test_a_record_has_always_the_same_length_and_two_equal_numbers(progress, notes):
    for letter in ("\U0001f600", "\x01", '"', "a"):
        wide = {"text": letter * 5000, "error_code": 50001}
        record = ask(progress, notes, answering(start(), body(wide)))
        assert os.stat(notes.path).st_size == progress.LENGTH
        assert record["n"] == record["end"]
        assert record["pid"] == os.getpid()
    assert os.stat(notes.path).st_mode & 0o777 == 0o600


def test_a_removed_record_comes_back(progress, notes):
    os.unlink(notes.path)
    assert ask(progress, notes, answering(start(), body(OK)))["success"]


@pytest.mark.parametrize("path", ["missing/record", "/dev/full", "/proc/nothing"])
def test_where_nothing_can_be_written_requests_are_answered(progress, tmp_path, path):
    notes = progress.Notes(str(tmp_path / path))
    sent = []

    async def send(message):
        sent.append(message)

    app = progress.Watched(answering(start(), body(OK)), notes)
    asyncio.run(app({"type": "http", "path": "/worker_generate"}, None, send))
    assert sent == [start(), body(OK)]


def test_a_folder_that_comes_later_gets_the_record(progress, tmp_path):
    notes = progress.Notes(str(tmp_path / "later" / "record"))
    (tmp_path / "later").mkdir()
    assert ask(progress, notes, answering(start(), body(OK)))["success"]


def test_a_record_that_cannot_be_renewed_is_emptied(progress, notes):
    """An old one would look like a hang."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        notes.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.stat(notes.path).st_size == 0
    assert ask(progress, notes, answering(start(), body(OK)))["success"]


def test_without_a_path_nothing_is_noted(progress, monkeypatch):
    monkeypatch.delenv("LLM_SUPERVISOR_PROGRESS", raising=False)
    app = answering()
    assert progress.watched(app) is app


# ---------------------------------------------------------------- pieces


def test_pieces_are_noted_as_they_come_and_the_generator_is_closed(progress):
    closed = []
    noted = SimpleNamespace(count=0)
    noted.produced = lambda: setattr(noted, "count", noted.count + 1)

    def plain(self, params):
        try:
            yield from params
        finally:
            closed.append("plain")

    async def asynchronous(self, params):
        try:
            for one in params:
                yield one
        finally:
            closed.append("asynchronous")

    assert list(progress.noting(plain, noted)(None, "abc")) == ["a", "b", "c"]
    left = progress.noting(plain, noted)(None, "abc")
    assert next(left) == "a"
    left.close()

    async def story():
        pieces = progress.noting_async(asynchronous, noted)(None, "abc")
        assert await anext(pieces) == "a"
        await pieces.aclose()

    asyncio.run(story())
    assert noted.count == 5
    assert closed == ["plain", "plain", "asynchronous"]


# ---------------------------------------------------------------- FastChat's own worker


@pytest.fixture(scope="module")
def noted_worker(start_worker, models, tmp_path_factory):
    """A worker, and the path of its record."""
    path = tmp_path_factory.mktemp("progress") / "record"
    worker = start_worker(
        "model_worker",
        *("--model-path", str(models / "tiny-owl"), "--model-names", "tiny-owl"),
        *("--conv-template", "vicuna_v1.1", "--device", "cpu"),
        env={"LLM_SUPERVISOR_PROGRESS": str(path)},
    )
    worker.wait_until_served("POST", "/worker_get_status")
    return worker, path


def asked(worker, path, **more):
    question = {"model": "tiny-owl", "prompt": "Hello", "input": ["Hello"], "temperature": 0}
    answer = httpx.post(worker.url + path, json={**question, **more}, timeout=60)
    assert answer.status_code == 200
    return answer


def at_rest(path):
    """The record when nothing is in flight: an answer is there before its request has ended."""

    def rests():
        record = record_of(path)
        return None if record["in_flight"] else record

    return until(rests, "nothing is in flight")


@pytest.mark.parametrize(
    "path", ["/worker_generate", "/worker_generate_stream", "/worker_get_embeddings"]
)
def test_a_workers_successes_are_in_its_record(noted_worker, path):
    worker, record = noted_worker
    before = record_of(record)
    asked(worker, path, max_new_tokens=4)
    after = at_rest(record)
    assert (after["pid"], after["failures"]) == (worker.popen.pid, 0)
    assert after["success"] > (before["success"] or 0)
    assert after["progress"] > before["progress"]


def test_its_failures_too(noted_worker):
    worker, record = noted_worker
    asked(worker, "/worker_generate", max_new_tokens="many")
    after = at_rest(record)
    assert after["failures"] == 1
    assert after["error"].startswith("error 50001:")
    asked(worker, "/worker_generate", max_new_tokens=1)


def test_a_client_that_leaves_in_the_middle_leaves_nothing_in_flight(noted_worker):
    worker, record = noted_worker
    question = {"model": "tiny-owl", "prompt": "Hello", "temperature": 1, "max_new_tokens": 400}
    url = worker.url + "/worker_generate_stream"
    with httpx.stream("POST", url, json={**question, "stop_token_ids": []}, timeout=60) as answer:
        next(answer.iter_raw())
    at_rest(record)
