"""Clients of the fakes: what they see of it all."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_TIMEOUT = 30.0
_PAUSE = 0.05
"""Seconds between a client's requests: the machine shall be busy, not at its limit."""


@dataclass(frozen=True)
class Failure:
    """Times are of the monotonic clock."""

    name: str
    began: float
    ended: float
    what: str


@dataclass(frozen=True)
class Span:
    """Slots that a blow has touched, from just before it until all was well again."""

    slots: Collection[str]
    began: float
    ended: float

    def excuses(self, failure: Failure) -> bool:
        overlaps = failure.began <= self.ended and self.began <= failure.ended
        return failure.name in self.slots and overlaps


class Clients:
    """Each asks one fake after the other, over connections of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._ports: Mapping[str, int] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures: list[Failure] = []
        self.requests = 0
        self.excused = 0

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(count)]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            self._stop.set()
            for one in threads:
                one.join()

    def offer(self, ports: Mapping[str, int]) -> None:
        """From now on these are asked."""
        self._ports = dict(ports)

    def unexcused(self, spans: Collection[Span]) -> list[Failure]:
        """The failures until now that no blow explains."""
        with self._lock:
            failures, self._failures = self._failures, []
        found = [one for one in failures if not any(span.excuses(one) for span in spans)]
        self.excused += len(failures) - len(found)
        return found

    def _ask_on(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._stop.wait(_PAUSE):
            if ports := self._ports:
                name = chance.choice(sorted(ports))
                self._ask(name, ports[name])

    def _ask(self, name: str, port: int) -> None:
        began = time.monotonic()
        what = ""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/work")
            answer = connection.getresponse()
            body = answer.read().decode()
            if answer.status != 200 or not body.startswith(f"{name} "):
                what = f"HTTP {answer.status}: {body[:80]}"
        except (OSError, http.client.HTTPException) as error:
            what = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        with self._lock:
            self.requests += 1
            if what:
                self._failures.append(Failure(name, began, time.monotonic(), what))
