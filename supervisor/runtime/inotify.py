"""inotify(7), which Python's library does not have: it only tells that something has happened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Collection
from types import TracebackType

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF of the
kernel's include/uapi/linux/inotify.h: all but opening and reading."""
_BATCH = 65536
"""Bytes of events that are thrown away at once."""


class Inotify:
    """Events of places, which are folders and files. Raises OSError if there are none to be had.

    What happened is not looked at: a queue that overflows, a place that is no more and a name that
    is no text are events like any other.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._checked(self._libc.inotify_init1(_FLAGS))
        self._watches: set[int] = set()

    def __enter__(self) -> Inotify:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def watch(self, places: Collection[str]) -> None:
        """Have events of these places, as what they are now, and of no others. Raises OSError.

        To be called again when one of them may be another one of that name: it costs nothing for
        those that are still the same.
        """
        add = self._libc.inotify_add_watch
        now = {self._checked(add(self._fd, os.fsencode(place), _MASK)) for place in places}
        for old in self._watches - now:
            self._libc.inotify_rm_watch(self._fd, old)  # may have ended with its place
        self._watches = now

    def wait(self, bell: int, timeout: float) -> None:
        """Return when there are events, when ``bell`` (an eventfd) rings, or after that many
        seconds."""
        poll = select.poll()
        for descriptor in (self._fd, bell):
            poll.register(descriptor, select.POLLIN)
        poll.poll(1000 * timeout)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, _BATCH)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(bell)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result
