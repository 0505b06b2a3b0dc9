"""The form on the real FastChat: the demo models, and clients of the API server."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from harness import ROOT
from traffic import Answer, Traffic  # of benchmarks/

from chaos import blows
from chaos.blows import NOBODY, Blow, Story
from chaos.fast import free_ports
from chaos.form import Content, Failure, Form, Span
from chaos.processes import GENERATION
from chaos.world import Hit, World

_OWL, _FOX, _CAT = "tiny-owl", "tiny-fox", "tiny-cat"
_CLIENTS = 4
_JUST_SENT = 0.1
"""Seconds: a request that is sent just when its server dies is lost with it."""
_RESTART = {"backoff": "0.1s", "backoff_max": "1s", "stable_after": "0s"}


def content(folder: Path) -> Content:
    controller, api, *others = free_ports(32)
    return {
        # Faults in FastChat's own processes, armed through a file: tests/faults.
        "env": {"PYTHONPATH": f"{ROOT}/tests/faults", "FAULTS": str(_orders(folder))},
        "controller": {"port": controller, "restart": dict(_RESTART)},
        "defaults": {
            "device": "cpu",
            "conv_template": "vicuna_v1.1",
            "restart": dict(_RESTART),
            "stop_grace": "5s",
            # Short, or a run would be one of waiting until somebody is found out.
            "probes": {
                "liveness": {"interval": "2s", "timeout": "10s", "failures": 3},
                "progress": {"interval": "1s", "stall_after": "40s", "idle_after": "60s"},
            },
        },
        "workers": {
            _OWL: {"model_path": f"{ROOT}/models/{_OWL}", "replicas": 2},
            _FOX: {"model_path": f"{ROOT}/models/{_FOX}"},
        },
        "api_server": {
            "port": api,
            "restart": dict(_RESTART),
            # A worker that is alone with its model is away for as long as it takes to start.
            "retry_for": "45s",
        },
        "port_range": f"{min(others)}-{min(others) + 500}",
    }


def _orders(folder: Path) -> Path:
    return folder / "faults"


def generations(content: Content) -> dict[str, str]:
    found = {"controller": "", "api_server": ""}
    for name, worker in content["workers"].items():
        for i in range(worker.get("replicas", 1)):
            found[f"{name}-{i}"] = worker.get("env", {}).get(GENERATION, "")
    return found


def pid(world: World, slot: str) -> int | None:
    """By its mark; the latest one while two of them share a slot."""
    found = [one.pid for one in world.processes() if one.instance in (slot, f"{slot}.b")]
    return max(found, default=None)


# ---------------------------------------------------------------- clients


class ChatClients:
    def __init__(self, content: Content) -> None:
        self._traffic = Traffic(
            f"http://127.0.0.1:{content['api_server']['port']}", tuple(content["workers"])
        )
        self._judged = 0
        self.excused = 0

    @property
    def requests(self) -> int:
        return len(self._traffic.answers)

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._traffic.running(_CLIENTS):
            yield

    def offer(self, world: World) -> None:
        self._traffic.offer(tuple(world.content["workers"]), None)

    def withdraw(self, world: World, slots: Collection[str]) -> None:
        gone = {slot.rpartition("-")[0] for slot in slots}
        self._traffic.offer(tuple(m for m in world.content["workers"] if m not in gone), None)

    def unexcused(self, world: World, spans: Collection[Span]) -> list[Failure]:
        answers = self._traffic.answers[self._judged :]
        self._judged += len(answers)
        failed = [one for one in answers if one.fault]
        found = [
            one
            for one in failed
            if not any(_excuses(world, hit, one, spans) for hit in world.hits)
            and not _was_hit_twice(world, one)
        ]
        self.excused += len(failed) - len(found)
        return [
            Failure(
                one.model,
                one.began,
                one.ended,
                f"{one.fault} (stream: {one.stream}, cut: {one.cut})",
            )
            for one in found
        ]


def _excuses(world: World, hit: Hit, answer: Answer, spans: Collection[Span]) -> bool:
    """What was under way in a process that was killed may be lost: all of it in the API server,
    in a worker what has begun to be answered. Anything else is asked again, or waits.

    More may fail, until all is well again, of a worker that is not dead but sick, and answers with
    its own errors; and of an API server that dies together with the supervisor: nobody has its
    socket then.
    """
    if hit.slot != "api_server" and hit.slot.rpartition("-")[0] != answer.model:
        return False
    under_way = answer.began <= hit.at + _JUST_SENT and answer.ended >= hit.at
    if under_way and (answer.cut or hit.slot == "api_server"):
        return True
    span = next((one for one in spans if one.began <= hit.at <= one.ended), None)
    if span is None or answer.ended < span.began or answer.began > span.ended:
        return False
    orphaned = not hit.supervised or any(span.began <= one <= span.ended for one in world.deaths)
    return hit.sick or (hit.slot == "api_server" and orphaned)


def _was_hit_twice(world: World, answer: Answer) -> bool:
    """Its second worker died, too (which may be there a tenth of a second after the first one):
    nobody asks a third one, since the request may be to blame."""
    hits = [
        hit
        for hit in world.hits
        if hit.slot.rpartition("-")[0] == answer.model
        and answer.began - _JUST_SENT <= hit.at <= answer.ended
    ]
    return len(hits) > 1


# ---------------------------------------------------------------- blows of its own


def _kill(slot: str) -> blows.Play:
    def play(world: World, _: Random) -> Story:
        blows.kill(world, slot)
        yield [slot]

    return play


def _freeze(slot: str) -> blows.Play:
    def play(world: World, chance: Random) -> Story:
        blows.freeze(world, slot, chance.uniform(0.2, 2.0))
        yield NOBODY

    return play


def kill_worker(world: World, chance: Random) -> Story:
    slot = chance.choice([one for one in world.running if one.startswith("tiny-")])
    blows.kill(world, slot)
    yield [slot]


def _sick(place: str, fault: str) -> blows.Play:
    """A fault in one worker, that a probe of its status does not see; it is replaced."""

    def play(world: World, chance: Random) -> Story:
        slot = chance.choice([one for one in world.running if one.startswith("tiny-")])
        pid = world.pid(slot)
        if pid is not None:
            world.hit(slot, sick=True)
            _orders(world.folder).write_text(f"{place} {fault} {pid}\n")
            try:
                blows.until_replaced(world, slot, pid)
            finally:
                _orders(world.folder).unlink()
        yield [slot]

    return play


def freeze_worker_for_good(world: World, chance: Random) -> Story:
    slot = chance.choice([one for one in world.running if one.startswith("tiny-")])
    pid = world.pid(slot)
    if pid is not None:
        world.hit(slot, sick=True)
        os.kill(pid, signal.SIGSTOP)
        blows.until_replaced(world, slot, pid)
    yield [slot]


def scale(world: World, chance: Random) -> Story:
    worker = world.content["workers"][_OWL]
    before, after = worker["replicas"], chance.choice([1, 2, 3])
    worker["replicas"] = after
    world.save()
    yield [f"{_OWL}-{i}" for i in range(min(before, after), max(before, after))]


def add_or_remove_model(world: World, _: Random) -> Story:
    workers = world.content["workers"]
    if _CAT in workers:
        world.withdraw([f"{_CAT}-0"])
        del workers[_CAT]
    else:
        workers[_CAT] = {"model_path": f"{ROOT}/models/{_CAT}"}
    world.save()
    yield [f"{_CAT}-0"]


def roll_out(world: World, chance: Random) -> Story:
    """Another process beside the old one, which finishes its requests."""
    name = chance.choice(sorted(world.content["workers"]))
    world.content["workers"][name]["env"] = {GENERATION: str(chance.randrange(10**6))}
    world.save()
    yield [slot for slot in world.running if slot.startswith(f"{name}-")]


def change_nothing_that_runs(world: World, chance: Random) -> Story:
    worker = world.content["workers"][_FOX]
    worker["description"] = f"number {chance.randrange(10**6)}"
    worker["drain_timeout"] = f"{chance.randint(60, 300)}s"
    world.save()
    yield NOBODY


def broken_file(world: World, chance: Random) -> Story:
    text = world.file.read_text()
    text = text.replace("model_path:", "modle_path:", 1) if chance.random() < 0.5 else text + "\n]"
    yield from blows.save_and_mend(world, text, chance)


def restart_service(world: World, chance: Random) -> Story:
    name = chance.choice(["api_server", "controller", *sorted(world.content["workers"])])
    slots = [slot for slot in world.running if slot == name or slot.startswith(f"{name}-")]
    before = {slot: world.pid(slot) for slot in slots}
    world.cli("restart", name)
    blows.until(world, lambda: all(world.pid(slot) != before[slot] for slot in slots))
    yield slots


BLOWS = [
    Blow("kill -9 of a worker", kill_worker, 6, quick=True),
    Blow("kill -9 of the controller", _kill("controller"), 3, quick=True),
    Blow("kill -9 of the API server", _kill("api_server"), 3),
    Blow("kill -9 of the supervisor", blows.kill_supervisor, 6, quick=True),
    Blow("… several times in a row", blows.kill_supervisor_twice, 2),
    Blow("… while instances die, too", blows.crash_without_supervisor, 1),
    Blow("… and its state file is damaged", blows.corrupt_state, 3),
    Blow("the supervisor frozen for a moment", blows.freeze_supervisor, 2),
    Blow("an instance frozen for a moment", blows.freeze_instance, 2),
    Blow("the controller frozen for a moment", _freeze("controller"), 1),
    Blow("a worker frozen for good", freeze_worker_for_good, 1),
    Blow("a worker's generations fail (CUDA)", _sick("generate", "cuda"), 1),
    Blow("a worker leaks its slots", _sick("piece", "leak"), 1),
    Blow("a worker's generations stand still", _sick("piece", "deadlock"), 1),
    Blow("kill -9 of the log writer", blows.kill_log_writer, 1, quick=True),
    Blow("upgrade", blows.upgrade, 3),
    Blow("upgrade by SIGUSR2", blows.upgrade_by_signal, 2, quick=True),
    Blow("the clock jumps", blows.jump_clock, 1),
    Blow("the disk is full", blows.fill_disk, 1),
    Blow("no free descriptor", blows.starve, 1),
    Blow("a service is restarted", restart_service, 3),
    Blow("saved: more replicas, or fewer", scale, 3, quick=True),
    Blow("saved: a model more, or less", add_or_remove_model, 2),
    Blow("saved: a model rolled out", roll_out, 3, quick=True),
    Blow("saved: nothing that runs changed", change_nothing_that_runs, 2, quick=True),
    Blow("saved: a broken file, then mended", broken_file, 2, alone=True),
]

FORM = Form(
    "fastchat",
    content,
    generations,
    pid,
    lambda _, content: ChatClients(content),
    BLOWS,
    bound=180.0,
    one_leader=True,
)
