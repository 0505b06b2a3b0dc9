"""Many that stop at once do not look through all the others each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import pytest
from harness import DEADLINE
from instances import instance

from supervisor.core.lifecycle import Exited, Spawned, Stage
from supervisor.runtime import tree
from supervisor.runtime.processes import Processes
from supervisor.runtime.templates import Templates


@pytest.mark.parametrize("count", [3, 60])
def test_looking_for_strays_does_not_grow_with_those_that_stop(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    children, looks = tree.children, 0

    def counted(pid: int) -> list[int]:
        nonlocal looks
        looks += pid == os.getpid()
        return children(pid)

    async def until(kind: type[Any], events: list[Any]) -> None:
        async with asyncio.timeout(DEADLINE):
            while sum(isinstance(one, kind) for one in events) < count:
                await asyncio.sleep(0.01)

    async def story() -> None:
        nonlocal looks
        events: list[Any] = []
        processes = Processes("mark", dict(os.environ), lambda _, event: events.append(event))
        processes.prepare()
        processes.start()
        templates = Templates(lambda *_: 0)  # nobody needs one
        names = [f"nap-{i}" for i in range(count)]
        for name in names:
            spec = instance(name, argv=("sleep", "1000"), port=None)
            processes.spawn(spec, 1, lambda: os.open(os.devnull, os.O_WRONLY), templates)
        try:
            await until(Spawned, events)
            monkeypatch.setattr(tree, "children", counted)
            for name in names:
                processes.signal(name, Stage.TERM)
            assert looks == 1
            await until(Exited, events)
        finally:
            for one in events:
                if isinstance(one, Spawned):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGKILL)

    asyncio.run(story())
