"""Signals, heard in the event loop, and none is lost.

asyncio tells the loop their numbers through a socket that is full after some 280. A thousand deaths
at once are more: what comes then, be it SIGTERM, it never hears of, and Python complains for each.
Here that socket only wakes the loop up, for which a full one is as good, and the handlers that
Python itself calls say what has come.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_signal(
    number: signal.Signals,
    heard: Callable[[], object],
    came: Callable[[], object] = lambda: None,
) -> None:
    """Have ``heard`` called in the running loop for each signal, and ``came`` as soon as it comes,
    between two instructions of whatever runs. Must run in the main thread."""
    loop = asyncio.get_running_loop()

    def tell(*_: object) -> None:
        came()
        loop.call_soon_threadsafe(heard)

    loop.add_signal_handler(number, lambda: None)  # has signals wake the loop up
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    signal.signal(number, tell)
    signal.siginterrupt(number, False)  # as the loop had it
