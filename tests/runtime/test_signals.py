"""However many signals come at once, none is lost, and nobody complains."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import pytest
from harness import DEADLINE

from supervisor.runtime.signals import on_signal


def test_a_thousand_deaths_in_one_turn_hide_no_sigterm(monkeypatch: pytest.MonkeyPatch):
    """As when a thousand instances are told to stop: a socket of asyncio's is full after 280."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def main() -> tuple[int, int]:
        deaths = came = 0
        asked_to_stop = asyncio.Event()

        def death() -> None:
            nonlocal deaths
            deaths += 1

        def one_came() -> None:
            nonlocal came
            came += 1

        on_signal(signal.SIGUSR1, death)
        on_signal(signal.SIGUSR2, asked_to_stop.set, one_came)
        for _ in range(1000):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        assert came == 1
        assert not asked_to_stop.is_set()
        await asyncio.wait_for(asked_to_stop.wait(), DEADLINE)
        return deaths, came

    assert asyncio.run(main()) == (1000, 1)
    assert not complaints


def test_a_signal_wakes_a_loop_that_sleeps():
    async def main() -> None:
        heard = asyncio.Event()
        on_signal(signal.SIGUSR1, heard.set)
        await asyncio.to_thread(signal.pthread_kill, main_thread, signal.SIGUSR1)
        await asyncio.wait_for(heard.wait(), DEADLINE)

    import threading

    main_thread = threading.get_ident()
    asyncio.run(main())
