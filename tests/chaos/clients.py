"""Clients of the fakes: what they see of it all."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from chaos.blows import port_of
from chaos.form import Failure, Span
from chaos.world import World

_TIMEOUT = 30.0
_PAUSE = 0.05
"""Seconds between a client's requests: the machine shall be busy, not at its limit."""


_CLIENTS = 4


class FakeClients:
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
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(_CLIENTS)]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            self._stop.set()
            for one in threads:
                one.join()

    def offer(self, world: World) -> None:
        self._ports = {slot: port_of(world, slot) for slot in world.running}

    def withdraw(self, world: World, slots: Collection[str]) -> None:
        pass  # what fails of what is touched is excused

    def unexcused(self, _: World, spans: Collection[Span]) -> list[Failure]:
        with self._lock:
            failures, self._failures = self._failures, []
        found = [one for one in failures if not any(_excuses(span, one) for span in spans)]
        self.excused += len(failures) - len(found)
        return found

    def _ask_on(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._stop.wait(_PAUSE):
            began = time.monotonic()  # before the choice, which may just be being withdrawn
            if ports := self._ports:
                name = chance.choice(sorted(ports))
                self._ask(name, ports[name], began)

    def _ask(self, name: str, port: int, began: float) -> None:
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


def _excuses(span: Span, failure: Failure) -> bool:
    overlaps = failure.began <= span.ended and span.began <= failure.ended
    return failure.name in span.slots and overlaps
