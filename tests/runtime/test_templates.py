"""Templates in trouble: what becomes of them, and of those that wait to be forked from them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from harness import alive, free_ports
from warm import Gate, House, at_start, template

from supervisor.core.lifecycle import Spawned, SpawnFailed, Stage
from supervisor.runtime import templates


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    one = Gate(tmp_path)
    yield one
    one.close()


# ---------------------------------------------------------------- what is forked


def test_a_socket_that_is_dropped_while_the_template_imports_is_handed_over_all_the_same(
    house: House, gate: Gate
) -> None:
    """Its number is another file's by then, which must not get into anybody's hands."""
    port = free_ports(1)[0]
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spec = house.spec("one", template=kind, listen=("127.0.0.1", port))
            house.processes.spawn(spec, 1, lambda: house.output("one"), house.templates)
            await gate.reached()
            house.processes.keep_listening(())
            with contextlib.ExitStack() as stack:
                for _ in range(20):  # whatever number it had, it is a secret's now
                    secret = os.open(house.folder / "gate", os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, secret)
                gate.open()
                seen = await house.seen("one")
            assert [type(event) for _, event in house.told] == [Spawned]
            (number,) = set(seen["descriptors"]) - {"0", "1", "2"}
            assert bytes.fromhex(seen["environment"]["LLM_SUPERVISOR_LISTEN_FD"]).decode() == number
            assert seen["descriptors"][number][0].startswith("socket:")
            socket.create_connection(("127.0.0.1", port)).close()
            assert len(house.started) == 1

    warm.run(story)


def test_no_free_descriptor_does_not_keep_a_process_from_being_forked(house: House) -> None:
    """The reserve is enough for it, and the template is not to blame."""
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await house.ready(kind)
            with no_free_descriptor():
                await house.warm(house.spec("one", template=kind))
            await house.seen("one")
            assert len(house.started) == 1

    warm.run(story)


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield


# ---------------------------------------------------------------- a template that does not answer


@pytest.mark.parametrize("when", ["idle", "importing"])
def test_one_that_somebody_has_stopped_goes_on_when_it_is_needed(
    house: House, gate: Gate, when: str
) -> None:
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await gate.reached()
            if when == "idle":
                gate.open()
                await house.ready(kind)
            os.kill(house.started[0], signal.SIGSTOP)
            gate.open()
            await house.warm(house.spec("one", template=kind))
            await house.seen("one")
            assert len(house.started) == 1

    warm.run(story)


def test_one_that_does_not_answer_is_replaced_and_the_process_is_started_cold(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(templates, "_FORK_PATIENCE", 0.2)
    hang = tmp_path / "hang"
    code = f"""
        if is_template:
            import time
            def hang():
                while os.path.exists({str(hang)!r}):
                    time.sleep(0.01)
            os.register_at_fork(before=hang)
    """
    kind = template(**at_start(tmp_path / "faults", code))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            first = await house.ready(kind)
            hang.touch()
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"
            hang.unlink()
            await house.seen("one")
            await warm.until(lambda: not alive(first))
            await house.ready(kind)
            await house.warm(house.spec("two", template=kind))
            assert (await house.seen("two"))["parent"] == os.getpid()

    warm.run(story)
    assert "one is started cold: it has not answered for 0.2 s" in caplog.text


def test_one_that_says_what_nobody_understands_is_done_without(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "nonsense.py"
    script.write_text(
        "import os, socket\n"
        "channel = socket.socket(fileno=int(os.environ['LLM_SUPERVISOR_TEMPLATE']))\n"
        "channel.send(b'[]')\n"
        "channel.recv(1)\n"
    )
    kind = replace(template(), argv=(sys.executable, str(script)))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"

    warm.run(story)
    assert "one is started cold: it says what nobody understands" in caplog.text


# ---------------------------------------------------------------- a stop


def test_what_is_stopped_while_its_template_imports_never_begins(house: House, gate: Gate) -> None:
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            house.processes.spawn(
                house.spec("one", template=kind), 1, lambda: house.output("one"), house.templates
            )
            await gate.reached()
            house.processes.signal("one", Stage.TERM)
            await warm.until(lambda: house.told)
            assert [type(event) for _, event in house.told] == [SpawnFailed]
            gate.open()
            await house.warm(house.spec("two", template=kind))
            assert not house.seen_file("one").exists()
            assert len(house.started) == 1

    warm.run(story)
