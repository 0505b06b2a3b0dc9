"""One timer for all that is done again and again: what is due at about the same time is done in one
waking.

To wake up costs a sleeping process more than to ask one question more (on a small virtual machine
0.5 against 0.1 ms), so that a thousand timers of their own are a thousand times dearer than they
need be.
"""

from __future__ import annotations

import asyncio
import math

_AT_ONCE = 16
"""So many go on before others have a turn: a death is not to wait until a thousand are asked."""


class Rounds:
    """To be used from one running event loop."""

    def __init__(self) -> None:
        self._due: dict[float, list[asyncio.Future[None]]] = {}
        """Who waits for which moment of the loop's clock."""

    async def after(self, interval: float) -> None:
        """Sleep for ``interval`` seconds, or up to half of that less. Whoever asks again directly
        after a round gets the whole, if that is a number of seconds."""
        loop = asyncio.get_running_loop()
        moment = earlier(loop.time() + interval, interval)
        waiting = self._due.get(moment)
        if waiting is None:
            waiting = self._due[moment] = []
            loop.call_at(moment, self._wake, moment)
        future = loop.create_future()
        waiting.append(future)
        await future

    def _wake(self, moment: float) -> None:
        waiting = self._due.pop(moment)
        for future in waiting[:_AT_ONCE]:
            if not future.done():  # who waited may have been cancelled
                future.set_result(None)
        if len(waiting) > _AT_ONCE:
            self._due[moment] = waiting[_AT_ONCE:]
            asyncio.get_running_loop().call_soon(self._wake, moment)


def earlier(moment: float, interval: float) -> float:
    """The last step of a clock until ``moment``. Steps are powers of two, so that those of a longer
    interval are as a rule also those of a shorter one."""
    step = _step(interval)
    return math.floor(moment / step) * step


def _step(interval: float) -> float:
    """At most half of the interval, and one that it is a multiple of if there is one: 1 s for 2 and
    for 5 s, 2 s for 10 s."""
    largest = 2.0 ** math.floor(math.log2(interval / 2))
    steps = (largest / 2**i for i in range(4))
    return next((step for step in steps if interval % step == 0), largest / 2)
