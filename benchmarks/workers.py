"""Real FastChat workers, with tiny models: until they answer, answer again, and what they cost."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from answers import chat_answered, moment_when, port_open, prompt_answered
from clusters import Supervised, with_workers
from contestants import Contestant, OursCold, Work, launched
from processes import memory, of_this_run, with_descendants
from results import Quantity, Results
from sessions import PATIENCE, YOUNG, Settings, await_rest, share_of_core

_SIZED = "workers"
READY = Quantity("ready", "start → every worker has answered a chat completion", "s", _SIZED)
PROMPT = Quantity("kill to prompt", "kill -9 of a worker → it answers a prompt again", "s", _SIZED)
CHAT = Quantity(
    "kill to chat", "kill -9 of a worker → a chat completion is answered again", "s", _SIZED
)
WORKERS = Quantity("workers' memory", "memory of all workers (PSS)", "MB", _SIZED)
WHOLE = Quantity("whole memory", "memory of everything, supervisor included (PSS)", "MB", _SIZED)
CPU = Quantity("idle CPU with workers", "the supervisor at rest, of one core", "%", _SIZED)

_MOST, _KILLING = 4, 4.0
"""Workers are killed in clusters of at most so many; no more of them after so many seconds."""
_STARTING, _PROMPT, _CHAT = 0.03, 0.005, 0.01
"""Seconds between two questions: while all starts; to the worker; through the API server."""
_BY_HAND = {
    "CUDA_VISIBLE_DEVICES": "",
    "LOGDIR": "",
    "NO_PROXY": "127.0.0.1,localhost",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What whoever starts FastChat by hand sets as well, so that all do the same work."""


@dataclass(frozen=True)
class _Worker:
    name: str
    model: str
    port: int


class Session:
    """One contestant with so many workers, from its start to its end."""

    def __init__(
        self, contestant: type[Contestant], size: int, folder: Path, settings: Settings
    ) -> None:
        work = _work(size, folder)
        self._api = work.ports["api_server"]
        self._workers = [
            _Worker(name, _flag(words, "--model-names"), work.ports[name])
            for name, words in work.commands.items()
            if "--model-names" in words
        ]
        self._one = contestant(folder, settings.peers, work)
        self._span = settings.span

    def measure(self, results: Results) -> None:
        one, size = self._one, len(self._workers)

        def add(quantity: Quantity, value: float) -> None:
            results.add(quantity, one.name, size, value)

        try:
            add(READY, self._start())
            time.sleep(YOUNG)
            pids = one.pids()
            await_rest(one.own(set(pids.values())))
            own = one.own(set(pids.values()))  # what has helped with the start is gone
            everything = of_this_run()
            others = with_descendants([pids["controller"], pids["api_server"]])
            add(WORKERS, memory(everything - own - others))
            add(WHOLE, memory(everything))
            if one.restarts:
                add(CPU, share_of_core(own, self._span))
                for prompt, chat in self._kill_some(pids):
                    add(PROMPT, prompt)
                    add(CHAT, chat)
        finally:
            one.end()

    def warm_up(self) -> None:
        """Read its programs and FastChat from the disk, which is not to be measured."""
        try:
            self._start()
        finally:
            self._one.end()

    def _start(self) -> float:
        """Seconds until each worker has answered through the API server."""
        self._one.prepare()
        with ThreadPoolExecutor(len(self._workers)) as pool:
            began = time.monotonic()
            end = began + PATIENCE
            self._one.start()
            answered = [pool.submit(self._await_first_answer, one, end) for one in self._workers]
            return max(one.result() for one in answered) - began

    def _await_first_answer(self, worker: _Worker, end: float) -> float:
        what = f"{worker.name} has not answered"

        def open_() -> bool:
            self._one.check()
            return port_open(worker.port)

        def answered() -> bool:
            self._one.check()
            return chat_answered(self._api, worker.model)

        # Asking a closed port costs nothing; asking the API server would take time from all.
        moment_when(open_, every=_STARTING, end=end, what=what)
        return moment_when(answered, every=_STARTING, end=end, what=what)

    def _kill_some(self, pids: Mapping[str, int]) -> Iterator[tuple[float, float]]:
        """Nobody twice, and fewer if each takes long."""
        end = time.monotonic() + _KILLING
        for worker in self._workers if len(self._workers) <= _MOST else ():
            yield self._kill(worker, pids[worker.name])
            if time.monotonic() > end:
                return
            time.sleep(YOUNG)

    def _kill(self, worker: _Worker, pid: int) -> tuple[float, float]:
        """Seconds until it answers a prompt, and until a chat completion is answered."""
        end = time.monotonic() + PATIENCE
        what = f"{worker.name} has not answered again"
        descriptor = os.pidfd_open(pid)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        select.select([descriptor], [], [])  # or it would be the one that answers
        os.close(descriptor)

        def prompt() -> bool:
            return prompt_answered(worker.port, worker.model)

        def chat() -> bool:
            return chat_answered(self._api, worker.model)

        first = moment_when(prompt, every=_PROMPT, end=end, what=what)
        return first - killed, moment_when(chat, every=_CHAT, end=end, what=what) - killed


def _work(size: int, folder: Path) -> Work:
    """The command lines are those that our supervisor runs, but for the workers' registration.

    With our entry modules: without them FastChat does not start under transformers 5.
    """
    content = with_workers(size)
    planning = folder / "planning"
    planning.mkdir()
    cold = Supervised(planning, launched(content, OursCold.launch))
    changes = json.loads(cold.ask("plan", "--json"))["changes"]
    commands = {
        one["instance"]: [word for word in one["command"] if word != "--no-register"]
        for one in changes
    }
    # Workers that find no controller give up, so that it goes first.
    ordered = {name: commands[name] for name in sorted(commands, key=_turn)}
    ports = {name: int(_flag(words, "--port")) for name, words in commands.items()}
    return Work(ordered, content, ports, _BY_HAND)


def _turn(name: str) -> tuple[int, str]:
    return {"controller": 0, "api_server": 1}.get(name, 2), name


def _flag(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]
