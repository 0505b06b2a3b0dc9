"""The fast form: fake workers, hundreds of blows a minute."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path
from random import Random

from chaos import blows
from chaos.blows import NOBODY, Blow, Story
from chaos.clients import FakeClients
from chaos.form import Content, Form
from chaos.processes import GENERATION
from chaos.world import World

FAKES = 8

_PROGRAM = Path(__file__).with_name("fake.py")
_LEAST, _MOST = 4, 12
"""Services that a file has at least, and at most."""


def content(folder: Path) -> Content:
    ports = free_ports(FAKES + 40)
    return {
        "x-ports": ports[FAKES:],
        "logs": {"max_size": "256KiB", "keep": 100},
        "services": {f"fake-{i}": _fake(folder, f"fake-{i}", ports[i]) for i in range(FAKES)},
    }


def generations(content: Content) -> dict[str, str]:
    """By slot: what a process must bear to be of this file."""
    services = content["services"]
    return {name: one.get("env", {}).get(GENERATION, "") for name, one in services.items()}


def _fake(folder: Path, name: str, port: int) -> Content:
    url = f"http://127.0.0.1:{port}/health"
    program = [sys.executable, "-I", "-S", str(_PROGRAM)]
    return {
        "command": [*program, name, str(port), str(folder)],
        "ready": {"http": url},
        "probes": {
            "readiness": {"interval": "1s", "timeout": "5s"},
            "liveness": {"http": url, "interval": "1s", "timeout": "2s", "failures": 3},
        },
        "stop_grace": "1s",
        # Or a busy run would be one of waiting for backoffs.
        "restart": {"backoff": "0.1s", "backoff_max": "0.5s", "stable_after": "0s"},
    }


def free_ports(count: int) -> list[int]:
    """Away from those that the kernel gives to clients."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def pid(world: World, slot: str) -> int | None:
    """By the lock that it holds."""
    try:
        holder = int((world.folder / "locks" / slot).read_text().removeprefix("pid "))
        return holder if os.readlink(f"/proc/{holder}/exe") else None
    except (OSError, ValueError):
        return None


# ---------------------------------------------------------------- saves


def add_service(world: World, chance: Random) -> Story:
    services = world.content["services"]
    if len(services) >= _MOST:
        return
    name = next(f"fake-{i}" for i in range(_MOST) if f"fake-{i}" not in services)
    port = world.content["x-ports"].pop(chance.randrange(len(world.content["x-ports"])))
    services[name] = _fake(world.folder, name, port)
    world.save()
    yield [name]


def remove_service(world: World, chance: Random) -> Story:
    services = world.content["services"]
    if len(services) <= _LEAST:
        return
    name = chance.choice(world.running)
    world.content["x-ports"].append(blows.port_of(world, name))
    del services[name]
    world.save()
    yield [name]


def change_service(world: World, chance: Random) -> Story:
    """Another environment asks for another process."""
    names = chance.sample(world.running, chance.randint(1, 2))
    for name in names:
        world.content["services"][name]["env"] = {GENERATION: str(chance.randrange(10**6))}
    world.save()
    yield names


def change_nothing_that_runs(world: World, chance: Random) -> Story:
    service = world.content["services"][chance.choice(world.running)]
    service["description"] = f"number {chance.randrange(10**6)}"
    service["probes"]["readiness"]["timeout"] = f"{chance.randint(4, 8)}s"
    world.save()
    yield NOBODY


BLOWS = [
    Blow("kill -9 of an instance", blows.kill_instance, 10, quick=True),
    Blow("kill -9 of several at once", blows.kill_several, 3, quick=True),
    Blow("an instance exits by itself", blows.crash, 3),
    Blow("strays forked: group, session, daemon", blows.fork_strays, 3),
    Blow("strays forked, then kill -9 of their leader", blows.fork_strays_and_crash, 4, quick=True),
    Blow("strays forked, then a stop", blows.fork_strays_and_stop, 2),
    Blow("an instance frozen for a moment", blows.freeze_instance, 3),
    Blow("an instance frozen for good", blows.freeze_instance_for_good, 0.5),
    Blow("a flood of lines", blows.flood, 2),
    Blow("port taken while its instance is down", blows.take_port, 2),
    Blow("kill -9 of the supervisor", blows.kill_supervisor, 6, quick=True),
    Blow("… several times in a row", blows.kill_supervisor_twice, 1),
    Blow("… while instances die, too", blows.crash_without_supervisor, 3),
    Blow("… and their strays live on", blows.fork_and_crash_without_supervisor, 2),
    Blow("… and its state file is damaged", blows.corrupt_state, 4),
    Blow("the supervisor frozen for a moment", blows.freeze_supervisor, 3),
    Blow("kill -9 of the log writer", blows.kill_log_writer, 2, quick=True),
    Blow("upgrade", blows.upgrade, 2),
    Blow("upgrade by SIGUSR2", blows.upgrade_by_signal, 1, quick=True),
    Blow("SIGHUP", blows.reload, 1, quick=True),
    Blow("the clock jumps", blows.jump_clock, 2),
    Blow("the disk is full", blows.fill_disk, 1),
    Blow("no free descriptor", blows.starve, 1),
    Blow("the run directory is removed", blows.clean_run_dir, 0.5, alone=True),
    Blow("a service is restarted", blows.restart_service, 2),
    Blow("a service is stopped, and started", blows.stop_and_start, 2),
    Blow("saved: one service more", add_service, 3, quick=True),
    Blow("saved: one service less", remove_service, 3, quick=True),
    Blow("saved: a service changed", change_service, 3, quick=True),
    Blow("saved: nothing that runs changed", change_nothing_that_runs, 2, quick=True),
    Blow("saved: a broken file, then mended", blows.broken_file, 3, alone=True),
]

FORM = Form(
    "fast",
    content,
    generations,
    pid,
    lambda seed, _: FakeClients(seed),
    BLOWS,
    bound=60.0,
)
