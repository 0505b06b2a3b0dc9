"""A steady traffic of chat completions that follows what is on offer. Nobody asks twice."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

TIMEOUT = 60.0
_SHORT, _LONG = 8, 800
"""Tokens of an answer, if its model never ends one by itself: a moment, and some seconds."""
_PATIENT_CLIENTS = 2
"""This many clients ask for long answers only, so that some are always under way."""
_PAUSE = 0.15
"""Seconds between a client's requests: the machine shall be busy, not at its limit."""


@dataclass(frozen=True)
class Answer:
    """One request that has ended. Times are of the monotonic clock."""

    model: str
    stream: bool
    long: bool
    began: float
    ended: float
    wall: float
    """When it ended, in seconds since the epoch, to be found in the logs."""
    fault: str | None
    cut: bool
    """It failed when a part of the answer was there already."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(eq=False)
class _Asking:
    model: str
    sent: bool = False
    """The last byte of the request is on its way."""

    def trace(self, event: str, _: object) -> None:
        """Called by httpcore at each of its steps."""
        self.sent = self.sent or event == "http11.send_request_body.complete"


class Traffic:
    """Clients with connections that they keep; every second request of each is streamed."""

    def __init__(self, url: str, models: tuple[str, ...], key: str | None = None) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._models, self._key = models, key
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self._asking: list[_Asking] = []
        self._answers: list[Answer] = []
        self._stop = threading.Event()

    @contextmanager
    def running(self, clients: int) -> Iterator[Traffic]:
        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(self._keep_asking, i) for i in range(clients)]
            try:
                yield self
            finally:
                self._stop.set()
                for one in asking:
                    one.result()

    @property
    def answers(self) -> list[Answer]:
        """All so far."""
        return list(self._answers)

    def offer(self, models: tuple[str, ...], key: str | None) -> None:
        """Ask for these from now on. Returns when all requests for others are under way."""
        with self._lock:
            self._models, self._key = models, key
            before = list(self._asking)
        while not all(one.sent for one in before if one in self._asking):
            time.sleep(0.001)

    def _keep_asking(self, number: int) -> None:
        limits = httpx.Limits(max_keepalive_connections=1, keepalive_expiry=None)
        with httpx.Client(trust_env=False, verify=False, timeout=TIMEOUT, limits=limits) as session:
            for i in itertools.count(number):
                if self._stop.wait(_PAUSE):
                    return
                self._ask(session, stream=i % 2 == 0, long=number < _PATIENT_CLIENTS)

    def _ask(self, session: httpx.Client, *, stream: bool, long: bool) -> None:
        with self._lock:
            model = self._models[next(self._turns) % len(self._models)]
            key = self._key
            asking = _Asking(model)
            self._asking.append(asking)
        fault, cut, parts = None, False, list[bytes]()
        began = time.monotonic()
        try:
            request = session.build_request(
                "POST",
                self._url,
                json=_body(model, stream=stream, long=long),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                extensions={"trace": asking.trace},
            )
            answer = session.send(request, stream=True)
            try:
                parts.extend(answer.iter_raw())
            finally:
                answer.close()
            fault = _fault(answer, b"".join(parts), stream=stream)
            cut = bool(fault and stream and answer.status_code == 200)
        except Exception as error:
            fault, cut = f"{type(error).__name__}: {error}", bool(parts)
        if fault:
            fault += f" [{b''.join(parts)[-300:].decode(errors='replace')}]"
        ended = time.monotonic()
        with self._lock:
            self._asking.remove(asking)
            self._answers.append(Answer(model, stream, long, began, ended, time.time(), fault, cut))


def _body(model: str, *, stream: bool, long: bool) -> dict[str, Any]:
    message = {"role": "user", "content": "Tell me a story." if long else "Hello"}
    tokens = _LONG if long else _SHORT
    wish = {"model": model, "messages": [message], "stream": stream}
    return {**wish, "temperature": 0.7, "max_tokens": tokens}


def _fault(answer: httpx.Response, content: bytes, *, stream: bool) -> str | None:
    """What is wrong with an answer that came to its end."""
    if answer.status_code != 200:
        return f"HTTP {answer.status_code}"
    return _fault_of_stream(content) if stream else _fault_of_whole(content)


def _fault_of_whole(content: bytes) -> str | None:
    choice = json.loads(content)["choices"][0]
    if not choice["message"]["content"]:
        return "empty answer"
    return None if choice["finish_reason"] else "answer without a finish_reason"


def _fault_of_stream(content: bytes) -> str | None:
    data = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        return "stream without an end"
    chunks = [json.loads(one) for one in data[:-1]]
    if any("error" in chunk or chunk.get("error_code") for chunk in chunks):
        return "stream with an error"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    if not any(choice["delta"].get("content") for choice in choices):
        return "empty stream"
    if not any(choice.get("finish_reason") for choice in choices):
        return "stream without a finish_reason"
    return None
