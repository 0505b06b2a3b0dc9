"""What a service manager wants to hear of a service: the protocol of sd_notify(3).

One datagram of lines `KEY=value` to the socket named in NOTIFY_SOCKET. Nobody answers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM")
"""Variables that are meant for the supervisor alone: an instance that knows the protocol, too,
would speak in its name."""


def for_instances(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a service manager says to the supervisor alone."""
    return {name: value for name, value in environ.items() if name not in PRIVATE}


class Notifier:
    """Speaks to the service manager; ``watchdog`` is the longest silence in seconds, if any."""

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        self._address = _abstract(address)
        self.watchdog = watchdog
        # Opened once: where no descriptor is free, the watchdog must be fed all the same. Nothing
        # is connected, so that the manager may be restarted.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier | None:
        """None where no service manager wants to hear anything, or at no address of this kind."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        return cls(address, _watchdog(environ))

    def send(self, *lines: str) -> None:
        """Never blocks. Raises OSError; whoever must be heard says it again later."""
        message = "\n".join(lines).encode(errors="replace")
        self._socket.sendto(message, socket.MSG_DONTWAIT, self._address)

    def close(self) -> None:
        self._socket.close()


def _abstract(address: str) -> str:
    return f"\0{address[1:]}" if address.startswith("@") else address


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Seconds; None if there is no watchdog, or it is another process's."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
