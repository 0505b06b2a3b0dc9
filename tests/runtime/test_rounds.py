"""Cheap at rest: however many ask, and whenever they began, they wake us up a few times."""

from __future__ import annotations

import asyncio
import random

import pytest

from supervisor.runtime import rounds
from supervisor.runtime.rounds import Rounds, earlier


@pytest.mark.parametrize("interval", [0.01, 2.0, 3.7, 10.0, 3600.0])
@pytest.mark.parametrize("many", [10, 1000])
def test_wakings_do_not_grow_with_those_who_wait(interval: float, many: int):
    now = random.uniform(0, 1e6)
    asked = [now + random.uniform(0, interval) for _ in range(many)]
    assert len({earlier(one + interval, interval) for one in asked}) <= 17


@pytest.mark.parametrize("interval", [1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0])
def test_whoever_asks_again_soon_after_a_round_gets_the_whole_interval(interval: float):
    moment = earlier(random.uniform(0, 1e6), interval)
    assert earlier(moment + 0.05 * interval + interval, interval) == moment + interval


def test_it_is_never_too_late_nor_much_too_early():
    for _ in range(1000):
        now, interval = random.uniform(0, 1e6), random.uniform(0.001, 1e4)
        assert now + 0.5 * interval <= earlier(now + interval, interval) <= now + interval


def test_long_intervals_share_the_wakings_of_short_ones():
    moment = earlier(random.uniform(0, 1e6), 10.0)
    assert earlier(moment, 2.0) == moment


def test_a_thousand_that_are_due_at_once_let_others_have_a_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "earlier", lambda *_: 0.0)  # at once, and all together
    had_a_turn: list[int] = []

    async def main() -> None:
        one, done = Rounds(), 0

        async def wait() -> None:
            nonlocal done
            await one.after(1.0)
            done += 1
            if done == 1:  # a death, say
                asyncio.get_running_loop().call_soon(lambda: had_a_turn.append(done))

        await asyncio.gather(*(wait() for _ in range(1000)))

    asyncio.run(main())
    assert had_a_turn[0] < 100


def test_who_is_cancelled_is_not_woken_and_disturbs_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "earlier", lambda moment, interval: 0.0)

    async def main() -> None:
        one = Rounds()
        gone, there = (asyncio.create_task(one.after(1.0)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await there
        assert gone.cancelled()

    asyncio.run(main())
