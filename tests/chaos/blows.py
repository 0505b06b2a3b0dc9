"""The blows: what can happen to a cluster. Each is a story that stops wherever all must be well.

A blow takes the world and the run's chance, and yields, whenever everything is to be checked, the
slots that it has touched since: all others must have kept their process, and their clients must
have noticed nothing.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import resource
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.world import World

Story = Iterator[Collection[str]]
Play = Callable[[World, Random], Story]
NOBODY: Collection[str] = ()

_PATIENCE = 180.0
"""Seconds until somebody must have been found out. Not a measure of speed."""


@dataclass(frozen=True)
class Blow:
    """``weight`` is how often it comes, against the others. One that is ``quick`` may come together
    with others, before anybody has recovered; one that is ``alone`` never does."""

    title: str
    play: Play
    weight: float
    quick: bool = False
    alone: bool = False


# ---------------------------------------------------------------- instances


def kill_instance(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    kill(world, slot)
    yield [slot]


def kill_several(world: World, chance: Random) -> Story:
    slots = chance.sample(world.running, min(len(world.running), chance.randint(2, 5)))
    for slot in slots:
        kill(world, slot)
    yield slots


def crash(world: World, chance: Random) -> Story:
    """It ends by itself, well or not."""
    slot = chance.choice(world.running)
    tell(world, slot, f"exit/{chance.choice([0, 1, 1, 3, 139])}")
    yield [slot]


def fork_strays(world: World, chance: Random) -> Story:
    """Children in its group, in sessions of their own, and of init: they may stay for now."""
    slot = chance.choice(world.running)
    for _ in range(chance.randint(1, 3)):
        fork(world, slot, chance)
    yield NOBODY


def fork_strays_and_crash(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    for _ in range(chance.randint(1, 3)):
        fork(world, slot, chance)
    kill(world, slot)
    yield [slot]


def fork_strays_and_stop(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    fork(world, slot, chance)
    world.cli("stop", slot)
    world.stopped.add(slot)
    yield [slot]
    world.cli("start", slot)
    world.stopped.discard(slot)
    yield [slot]


def freeze_instance(world: World, chance: Random) -> Story:
    """For a moment only: it is patience that is asked for."""
    freeze(world, chance.choice(world.running), chance.uniform(0.1, 1.0))
    yield NOBODY


def freeze_instance_for_good(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    pid = world.pid(slot)
    if pid is not None:
        world.hit(slot, sick=True)
        os.kill(pid, signal.SIGSTOP)
        until_replaced(world, slot, pid)
    yield [slot]


def flood(world: World, chance: Random) -> Story:
    """More lines at once than a pipe holds."""
    tell(world, chance.choice(world.running), f"say/{chance.randint(1000, 20000)}")
    yield NOBODY


def take_port(world: World, chance: Random) -> Story:
    """Somebody else is quicker, while the supervisor cannot look."""
    slot, seconds = chance.choice(world.running), chance.uniform(0.1, 0.8)
    port = port_of(world, slot)
    world.signal_supervisor(signal.SIGSTOP)
    try:
        kill(world, slot)
        with _listening_on(port):
            world.signal_supervisor(signal.SIGCONT)
            time.sleep(seconds)
    finally:
        world.signal_supervisor(signal.SIGCONT)
    yield [slot]


# ---------------------------------------------------------------- the supervisor


def kill_supervisor(world: World, _: Random) -> Story:
    with world.without_supervisor():
        pass
    yield NOBODY


def kill_supervisor_twice(world: World, chance: Random) -> Story:
    """The second time while it is just finding its feet."""
    for _ in range(chance.randint(2, 4)):
        with world.without_supervisor():
            pass
        time.sleep(chance.uniform(0.0, 0.8))
    yield NOBODY


def crash_without_supervisor(world: World, chance: Random) -> Story:
    slots = chance.sample(world.running, min(len(world.running), chance.randint(1, 3)))
    with world.without_supervisor():
        for slot in slots:
            kill(world, slot)
    yield slots


def fork_and_crash_without_supervisor(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    with world.without_supervisor():
        fork(world, slot, chance)
        kill(world, slot)
    yield [slot]


def corrupt_state(world: World, chance: Random) -> Story:
    """What it knew is damaged when it comes back. (Whom a person had stopped is among that.)"""
    how = chance.choice(list(CORRUPTIONS))
    path = world.run_dir / "state.json"
    with world.without_supervisor():
        with contextlib.suppress(FileNotFoundError):
            CORRUPTIONS[how](path, chance)
        if chance.random() < 0.3:
            (world.run_dir / "ports.json").write_text("}")
        if chance.random() < 0.3:
            (world.run_dir / "control.sock").unlink(missing_ok=True)
    yield NOBODY


def freeze_supervisor(world: World, chance: Random) -> Story:
    seconds = chance.uniform(0.1, 1.5)
    victim = chance.choice(world.running) if chance.random() < 0.6 else None
    world.signal_supervisor(signal.SIGSTOP)
    try:
        if victim:
            kill(world, victim)
        time.sleep(seconds)
    finally:
        world.signal_supervisor(signal.SIGCONT)
    yield [victim] if victim else NOBODY


def kill_log_writer(world: World, _: Random) -> Story:
    for one in world.processes():
        if one.is_log_writer:
            world.writer_killed = world.blow
            os.kill(one.pid, signal.SIGKILL)
    yield NOBODY


def upgrade(world: World, _: Random) -> Story:
    world.cli("upgrade")
    yield NOBODY


def upgrade_by_signal(world: World, _: Random) -> Story:
    world.tell_supervisor(signal.SIGUSR2)
    yield NOBODY


# ---------------------------------------------------------------- the machine


def jump_clock(world: World, chance: Random) -> Story:
    """An hour, a day, ten years, ahead or back; with somebody who dies meanwhile, or not."""
    hour = 3600
    world.clock.jump(chance.choice([-1, 1]) * chance.choice([hour, 24 * hour, 24 * 3650 * hour]))
    victims = [chance.choice(world.running)] if chance.random() < 0.5 else []
    for slot in victims:
        kill(world, slot)
    yield victims
    world.clock.jump(0)
    yield NOBODY


def fill_disk(world: World, chance: Random) -> Story:
    """No byte more for logs and state; somebody dies, and perhaps the supervisor does as well."""
    victim = chance.choice(world.running)
    ballast = world.disk / "ballast"
    try:
        _fill(ballast)
        kill(world, victim)
        yield [victim]
        if chance.random() < 0.5:
            yield from kill_supervisor(world, chance)
    finally:
        ballast.unlink(missing_ok=True)
    yield NOBODY


def starve(world: World, chance: Random) -> Story:
    """Clients of the API have all descriptors that the supervisor may have; and somebody dies."""
    victim, seconds = chance.choice(world.running), chance.uniform(0.1, 1.5)
    pid = world.supervisor
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(int(one) for one in os.listdir(f"/proc/{pid}/fd")) + 5
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(most):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(0.05)
                with contextlib.suppress(OSError):  # as many as it can hold wait, the others do not
                    client.connect(str(world.run_dir / "control.sock"))
            kill(world, victim)
            time.sleep(seconds)
    finally:
        if world.supervised:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    yield [victim]


def clean_run_dir(world: World, _: Random) -> Story:
    """What a cleaner of temporary files does to who is not known to it."""
    shutil.rmtree(world.run_dir)
    until(world, lambda: world.status() is not None)
    yield NOBODY
    # Their pipes have no name any more: the next ones are to be found again.
    slots = world.running
    for slot in slots:
        kill(world, slot)
    yield slots


# ---------------------------------------------------------------- persons


def restart_service(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    pid = world.pid(slot)
    world.cli("restart", slot)
    until(world, lambda: world.pid(slot) != pid)
    yield [slot]


def stop_and_start(world: World, chance: Random) -> Story:
    slot = chance.choice(world.running)
    world.cli("stop", slot)
    world.stopped.add(slot)
    yield [slot]
    world.cli("start", slot)
    world.stopped.discard(slot)
    yield [slot]


def reload(world: World, _: Random) -> Story:
    world.tell_supervisor(signal.SIGHUP)
    yield NOBODY


def broken_file(world: World, chance: Random) -> Story:
    """What runs goes on with the last good one, also when the supervisor dies just then."""
    text = world.file.read_text()
    how = chance.randint(0, 3)
    if how == 0:
        text = text[: chance.randint(1, len(text) // 2)] + "\n  : [}"
    elif how == 1:
        text = text.replace("command:", "comand:", 1)
    elif how == 2:
        text = "\0\xff" + text
    else:
        text += "\nworkers: {x: {model_path: /nowhere/at/all, replicas: -1}}\n"
    yield from save_and_mend(world, text, chance)


def save_and_mend(world: World, text: str, chance: Random) -> Story:
    """A file that cannot be read, for a while; perhaps the supervisor dies meanwhile."""
    world.save_broken(text)
    yield NOBODY
    if chance.random() < 0.4:
        yield from kill_supervisor(world, chance)
    world.save()
    yield NOBODY


# ---------------------------------------------------------------- how it is done


def tell(world: World, slot: str, what: str) -> None:
    """Have a fake do something. Whether it is heard is another matter: it may be just dying."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(world, slot), timeout=10)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", f"/{what}")
        connection.getresponse().read()
    connection.close()


def freeze(world: World, slot: str, seconds: float) -> None:
    pid = world.pid(slot)
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def fork(world: World, slot: str, chance: Random) -> None:
    kind = chance.choice(["group", "session", "daemon"])
    tell(world, slot, f"fork/{kind}{'-stubborn' if chance.random() < 0.3 else ''}")


def port_of(world: World, slot: str) -> int:
    return int(world.content["services"][slot]["command"][5])


def kill(world: World, slot: str) -> None:
    """kill -9 of its leader, and wait until that is dead."""
    pid = world.pid(slot)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        world.hit(slot)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], 10)
        finally:
            os.close(descriptor)


def until(world: World, condition: Callable[[], bool]) -> None:
    """Wait for it; whether it has ever come is for the check that follows to say."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and not condition():
        world.look_after_supervisor()
        time.sleep(0.02)


def until_replaced(world: World, slot: str, pid: int) -> None:
    """It is said to be ready until it has been found out: that is what is waited for."""
    began = time.monotonic()
    until(world, lambda: world.pid(slot) != pid)
    if world.pid(slot) == pid:
        world.violate(f"{slot} (pid {pid}) is not replaced after {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _listening_on(port: int) -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            taken.listen()
        yield


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    ballast.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def _truncate(path: Path, chance: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(max(1, len(content)))])


def _scribble(path: Path, chance: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(20):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def _from_the_future(path: Path, _: Random) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": 10_000}))


def _before_a_reboot(path: Path, _: Random) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "boot_id": "another"}))


CORRUPTIONS: dict[str, Callable[[Path, Random], object]] = {
    "deleted": lambda path, _: path.unlink(),
    "emptied": lambda path, _: path.write_bytes(b""),
    "truncated": _truncate,
    "scribbled": _scribble,
    "from the future": _from_the_future,
    "before a reboot": _before_a_reboot,
}
