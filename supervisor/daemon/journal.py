"""What happened, newest last: kept for ``events``, and told to whoever listens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

_KEPT = 2000


@dataclass(frozen=True, slots=True)
class Entry:
    """``time`` is seconds since the epoch; ``instance`` is empty for the cluster as a whole."""

    number: int
    time: float
    instance: str
    state: str
    reason: str
    pid: int | None = None


class Journal:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        self._number = 0
        self._listeners: list[Callable[[Entry], None]] = []
        self._changed = asyncio.Event()

    @property
    def number(self) -> int:
        """Of the last entry."""
        return self._number

    def go_on_from(self, number: int) -> None:
        """Number what comes as if this journal were that of an earlier supervisor."""
        self._number = max(self._number, number)

    def listen(self, listener: Callable[[Entry], None]) -> None:
        self._listeners.append(listener)

    def write(self, instance: str, state: str, reason: str, pid: int | None = None) -> None:
        self._number += 1
        entry = Entry(self._number, self._clock(), instance, state, reason, pid)
        self._entries.append(entry)
        for listener in self._listeners:
            # A closed pipe or a full disk behind our own output must not disturb supervision.
            with contextlib.suppress(OSError, ValueError):
                listener(entry)
        self._changed.set()
        self._changed = asyncio.Event()

    def since(self, number: int) -> list[Entry]:
        """Entries after ``number``, as far as they are still kept."""
        last = itertools.takewhile(lambda entry: entry.number > number, reversed(self._entries))
        return list(last)[::-1]

    async def follow(self, number: int) -> AsyncGenerator[Entry, None]:
        """Entries after ``number``, and each new one as it comes."""
        while True:
            changed = self._changed
            for entry in self.since(number):
                number = entry.number
                yield entry
            await changed.wait()
