"""Clients of a cluster: ask until there is an answer, and a steady load of requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

_POLL = 0.05
_TIMEOUT = 60.0


def client() -> httpx.Client:
    """Without proxies, and without a TLS context, which takes longer to make than an answer."""
    return httpx.Client(trust_env=False, verify=False, timeout=_TIMEOUT)


def body(model: str, *, stream: bool = False) -> dict[str, object]:
    message = {"role": "user", "content": "Hello"}
    return {"model": model, "messages": [message], "temperature": 0, "stream": stream}


# ---------------------------------------------------------------- the first answer


def time_first_answers(
    url: str, models: Iterable[str], act: Callable[[], object], patience: float
) -> float:
    """Call ``act``; seconds from its begin until each model has answered a chat completion."""
    stop = threading.Event()
    with client() as session, ThreadPoolExecutor() as pool:
        began = time.monotonic()
        try:
            answers = [
                pool.submit(first_answer, session, url, model, began + patience, stop)
                for model in models
            ]
            act()
            return max(answer.result() for answer in answers) - began
        finally:
            stop.set()


def first_answer(
    session: httpx.Client, url: str, model: str, end: float, stop: threading.Event | None = None
) -> float:
    """Ask every 50 ms; the moment of the first answer. Raises TimeoutError at ``end``."""
    while time.monotonic() < end and not (stop and stop.is_set()):
        if _answers(session, url, model):
            return time.monotonic()
        time.sleep(_POLL)
    raise TimeoutError(f"{model} has not answered")


def _answers(session: httpx.Client, url: str, model: str) -> bool:
    try:
        answer = session.post(f"{url}/v1/chat/completions", json=body(model))
        return answer.status_code == 200 and bool(_content(answer))
    except httpx.HTTPError:
        return False


def _content(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


# ---------------------------------------------------------------- a steady load


@dataclass(frozen=True)
class Request:
    """One request of the load: when it began and ended, and what went wrong, if anything."""

    began: float
    ended: float
    fault: str | None


class Load:
    """Threads that ask one model again and again; every second question of each is streamed."""

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._model = model
        self._stop = threading.Event()
        self._requests: list[Request] = []

    @contextmanager
    def running(self, threads: int) -> Iterator[Load]:
        with ThreadPoolExecutor(threads) as pool:
            asking = [pool.submit(self._keep_asking, i % 2 == 0) for i in range(threads)]
            try:
                yield self
            finally:
                self._stop.set()
                for one in asking:
                    one.result()

    def requests(self) -> list[Request]:
        """All that have ended so far."""
        return list(self._requests)

    def _keep_asking(self, stream: bool) -> None:
        with client() as session:
            while not self._stop.is_set():
                began = time.monotonic()
                fault = self._fault(session, stream)
                self._requests.append(Request(began, time.monotonic(), fault))
                stream = not stream

    def _fault(self, session: httpx.Client, stream: bool) -> str | None:
        try:
            ask = self._ask_streamed if stream else self._ask
            return ask(session)
        except (httpx.HTTPError, ValueError) as error:
            return type(error).__name__

    def _ask(self, session: httpx.Client) -> str | None:
        answer = session.post(self._url, json=body(self._model))
        if answer.status_code != 200:
            return f"HTTP {answer.status_code}"
        return None if _content(answer) else "empty answer"

    def _ask_streamed(self, session: httpx.Client) -> str | None:
        with session.stream("POST", self._url, json=body(self._model, stream=True)) as answer:
            if answer.status_code != 200:
                return f"HTTP {answer.status_code} to a stream"
            data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        if not data or data[-1] != "[DONE]":
            return "stream without an end"
        chunks = [json.loads(one) for one in data[:-1]]
        if any(chunk.get("error_code") for chunk in chunks):
            return "stream with an error"
        texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        return None if any(texts) else "empty stream"
