"""Templates in trouble: what becomes of them, and of those that wait to be forked from them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from harness import free_ports
from warm import Gate, House, template

from supervisor.core.lifecycle import Spawned


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
