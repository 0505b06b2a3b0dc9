"""What a leader that is no child of ours has left behind: looked for, but not ever more often."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import DEADLINE, alive, die_with_parent, until

from supervisor.core.lifecycle import Exited, Stage
from supervisor.runtime import tree
from supervisor.runtime.leftovers import Leftover
from supervisor.runtime.processes import Processes

MARK = "0123456789abcdef"
PR_SET_CHILD_SUBREAPER = 36
DEAF_CHILD = textwrap.dedent("""\
    import os, signal, sys
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        while True: signal.pause()
    signal.pause()
    """)


@pytest.fixture
def orphan() -> Iterator[tuple[int, int]]:
    """A leader that is no child of ours, and its child that ignores SIGTERM."""
    # Another test may have made us the reaper of orphans, and then it would be our child.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    between = [sys.executable, "-ISc", code]
    environ = {**os.environ, tree.MARK: f"{MARK}/one"}
    started = subprocess.Popen(
        [*between, sys.executable, "-ISc", DEAF_CHILD], stdout=subprocess.PIPE, env=environ
    )
    assert started.stdout is not None
    child = int(started.stdout.readline())
    started.wait()
    leader = tree.stat_of(child)
    assert leader is not None
    yield leader.parent, child
    started.stdout.close()
    for pid in (leader.parent, child):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_ends_meanwhile_does_not_multiply_the_looks(orphan: tuple[int, int]) -> None:
    leader, child = orphan
    told: list[Any] = []
    due: set[asyncio.TimerHandle] = set()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        processes = Processes(MARK, dict(os.environ), lambda name, event: told.append(event))
        call_later = loop.call_later

        def recorded(delay: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:
            def called() -> None:
                due.discard(handle)
                callback(*arguments)

            handle = call_later(delay, called)
            if getattr(callback, "__self__", None) is processes:
                due.add(handle)
            return handle

        loop.call_later = recorded  # type: ignore[method-assign]
        processes.prepare()
        processes.start()
        born = tree.born(leader)
        assert born is not None
        processes.adopt("one", 1, leader, born, told=False)
        processes.signal("one", Stage.TERM)
        while not due:
            await asyncio.sleep(0.01)
        for _ in range(5):
            assert await processes.call(["/bin/true"], "/", os.environ, 60) == 0
        assert len(due) == 1
        assert told == []
        processes.signal("one", Stage.KILL)
        while not told:
            await asyncio.sleep(0.01)

    async def with_patience() -> None:
        async with asyncio.timeout(DEADLINE):
            await story()

    asyncio.run(with_patience())
    assert isinstance(told[0], Exited)
    assert not alive(child)


def test_only_the_very_process_that_was_found_is_ended() -> None:
    """Between the look and the signal its number may have been given to another one."""
    bystander = subprocess.Popen(
        [sys.executable, "-ISc", "import signal; signal.pause()"], preexec_fn=die_with_parent
    )
    try:
        until(lambda: tree.born(bystander.pid), "it runs")
        born = tree.born(bystander.pid) or 0
        found = Leftover(bystander.pid, born - 1, "one", 1, None, "", True, ())
        processes = Processes(MARK, {}, lambda *_: None)
        asyncio.run(processes.end([found]))
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_an_exit_is_told_also_when_nobody_can_look_for_strays(
    orphan: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without any free descriptor, not even of the reserve; what is left is found later."""
    leader, child = orphan
    blind = True

    def unless_blind(look: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def looked(*arguments: int) -> list[int]:
            if blind:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return look(*arguments)

        return looked

    # Which of the two: the test before may have made us the reaper of orphans.
    monkeypatch.setattr(tree, "pids", unless_blind(tree.pids))
    monkeypatch.setattr(tree, "children", unless_blind(tree.children))

    async def story() -> None:
        nonlocal blind
        told: asyncio.Queue[Any] = asyncio.Queue()
        processes = Processes(MARK, dict(os.environ), lambda _, event: told.put_nowait(event))
        processes.prepare()
        processes.start()
        born = tree.born(leader)
        assert born is not None
        processes.adopt("one", 1, leader, born, told=False)
        os.kill(leader, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            assert isinstance(await told.get(), Exited)
            assert alive(child)
            blind = False
            while alive(child):
                await asyncio.sleep(0.01)

    asyncio.run(story())
