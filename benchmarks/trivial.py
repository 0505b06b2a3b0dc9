"""Trivial processes, of which there are many: what is measured is the supervisor alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contestants import Contestant, Work
from processes import memory
from results import Quantity, Results
from sessions import PATIENCE, YOUNG, Settings, await_rest, milliseconds, share_of_core
from told import Tellers

_SIZED = "trivial processes"
FIRST = Quantity("first exec", "start → the first process is exec'd", "ms", _SIZED)
ALL = Quantity("all exec", "start → all are exec'd", "ms", _SIZED)
KILL = Quantity("kill to exec", "kill -9 → exec'd again", "ms", _SIZED)
ADD = Quantity("save to exec", "one more in the file → exec'd", "ms", _SIZED)
STATUS = Quantity("status", "the status command", "ms", _SIZED)
RELOAD = Quantity("reload", "reload of a file that has not changed", "ms", _SIZED)
MEMORY = Quantity("memory", "memory of the supervisor, all its processes (PSS)", "MB", _SIZED)
CPU = Quantity("idle CPU", "the supervisor at rest, of one core", "%", _SIZED)

_KILLS, _FEWEST, _KILLING = 10, 3, 8.0
"""Processes that are killed: so many, but after so many seconds no more than a few."""
_COMMANDS, _ADDED = 3, 2


class Session:
    """One contestant with so many trivial processes, from its start to its end."""

    def __init__(
        self,
        contestant: type[Contestant],
        size: int,
        folder: Path,
        settings: Settings,
        told: list[str],
    ) -> None:
        self._tellers = Tellers(folder, told)
        self._names = [f"told-{i}" for i in range(size)]
        commands = {name: self._tellers.command(name) for name in self._names}
        content = {"services": {name: {"command": words} for name, words in commands.items()}}
        self._one = contestant(folder, settings.peers, Work(commands, content))
        self._tellers.check = self._one.check
        self._span = settings.span

    def measure(self, results: Results) -> None:
        one, size = self._one, len(self._names)

        def add(quantity: Quantity, *values: float) -> None:
            results.add(quantity, one.name, size, *values)

        try:
            started = self._start()
            add(FIRST, min(started))
            add(ALL, max(started))
            time.sleep(YOUNG)
            await_rest(one.own(self._tellers.pids()))
            own = one.own(self._tellers.pids())  # what has helped with the start is gone
            add(MEMORY, memory(own))
            add(CPU, share_of_core(own, self._span))
            add(KILL, *self._kill_some())
            for _ in range(_COMMANDS):
                for quantity, words in ((STATUS, one.status()), (RELOAD, one.reload())):
                    if words is not None:
                        add(quantity, milliseconds(words, one))
            for i in range(_ADDED):
                more = f"more-{i}"
                if act := one.adding(more, self._tellers.command(more)):
                    add(ADD, self._add(more, act))
        finally:
            self._end()

    def warm_up(self) -> None:
        """Read its programs from the disk, which is not to be measured."""
        try:
            self._start()
        finally:
            self._end()

    def _end(self) -> None:
        self._one.end()
        self._tellers.close()

    def _start(self) -> list[float]:
        """Milliseconds until each is exec'd."""
        self._one.prepare()
        began = time.monotonic()
        self._one.start()
        return [1000 * (told.at - began) for told in self._tellers.await_all(self._names, PATIENCE)]

    def _kill_some(self) -> Iterator[float]:
        """Nobody twice, and less often if each takes long."""
        end = time.monotonic() + _KILLING
        for i, name in enumerate(random.sample(self._names, min(len(self._names), _KILLS))):
            if i >= _FEWEST and time.monotonic() > end:
                return
            time.sleep(random.uniform(0.1, 1.1))  # some look once a second: this is no beat
            yield self._kill(name)

    def _kill(self, name: str) -> float:
        """Milliseconds until its successor says that it runs."""
        before = self._tellers.latest[name]
        killed = time.monotonic()
        os.kill(before.pid, signal.SIGKILL)
        return 1000 * (self._tellers.await_successor(before, PATIENCE).at - killed)

    def _add(self, name: str, act: Callable[[], None]) -> float:
        began = time.monotonic()
        act()
        return 1000 * (self._tellers.await_all([name], PATIENCE)[0].at - began)
