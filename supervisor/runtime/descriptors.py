"""When no file descriptor is free: what must not fail all the same, and what is said about it.

Looking for what a dead process has left behind needs one, and a restart a handful. They are held
back from the start, and given free for the moment in which nothing else is to be had.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_RESERVE = 8
"""A spawn takes the pipe of the log, a pipe to hear of a failed exec, and one or two of stdin."""
_QUIET = 10.0
"""Seconds without a complaint after which the next one is another story."""

Result = TypeVar("Result")
_held: list[int] = []


def hold_reserve() -> None:
    """Hold back what is missing of the reserve, as far as there is some. Never raises."""
    try:
        while len(_held) < _RESERVE:
            _held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        pass  # the next time


def with_reserve(action: Callable[[], Result]) -> Result:
    """``action()``, and once more with the reserve if it fails for want of a descriptor.

    To be called in the event loop's thread. Raises what ``action`` raises.
    """
    try:
        return action()
    except OSError as error:
        if not is_exhaustion(error) or not _held:
            raise
    while _held:
        os.close(_held.pop())
    try:
        return action()
    finally:
        hold_reserve()


def is_exhaustion(error: object) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class Complaint:
    """Exception handler of an event loop: that no connection could be accepted is said once.

    asyncio tries again every second, and has a traceback for each.
    """

    def __init__(self) -> None:
        self._last = -_QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not is_exhaustion(context.get("exception")):
            loop.default_exception_handler(context)
            return
        if loop.time() - self._last >= _QUIET:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.warning(
                "no file descriptor is free (at most %d): clients have to wait, the instances are "
                "supervised on; close clients that follow logs or events, or raise the limit "
                "(ulimit -n, LimitNOFILE=)",
                limit,
            )
        self._last = loop.time()
