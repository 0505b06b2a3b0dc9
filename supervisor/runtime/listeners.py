"""Listening sockets that outlive the processes they are given to.

While one server has ended and the next one is not up yet, connections wait in the socket's queue
instead of being refused; while two are up, either takes them.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from supervisor.runtime.ports import why_taken

Address = tuple[str, int]
_BACKLOG = 2048


class PortTaken(OSError):
    """Nothing can listen there; ``strerror`` is the reason for people."""


class Listeners:
    def __init__(self) -> None:
        self._sockets: dict[Address, socket.socket] = {}

    def open(self, address: Address) -> int:
        """The descriptor of the socket for ``address``, the same one until it is dropped.

        It takes the place of another one with this port, such as that of 127.0.0.1 where 0.0.0.0
        is wanted now. Raises PortTaken, also as long as a process has its copy of that other one.
        """
        if address not in self._sockets:
            self.keep([other for other in self._sockets if other[1] != address[1]])
            self._sockets[address] = listen(address)
        return self._sockets[address].fileno()

    def adopt(self, address: Address, listener: socket.socket) -> None:
        """Go on with a socket that somebody else has opened."""
        if (old := self._sockets.pop(address, None)) is not None:
            old.close()
        self._sockets[address] = listener

    @property
    def descriptors(self) -> dict[Address, int]:
        return {address: one.fileno() for address, one in self._sockets.items()}

    def keep(self, addresses: Collection[Address]) -> None:
        """Drop all others: who connects there is refused, once no process listens either."""
        for address in self._sockets.keys() - set(addresses):
            self._sockets.pop(address).close()


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises PortTaken."""
    host, port = address
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        why = why_taken(host, port) or error.strerror or str(error)
        raise PortTaken(error.errno or 0, why) from None
    return listener
