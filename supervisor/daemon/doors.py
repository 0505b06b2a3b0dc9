"""The doors of the control API: who may come in, how many at a time, and for how long.

The Unix socket lets in whoever may open it (0600, in a directory of ours). The TCP listener is
optional and asks for a token. Behind either, nobody can keep the others out, or supervision from
its work: connections, requests, bodies and streams are counted, and who neither asks nor reads is
let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from supervisor.daemon.views import ErrorView, View
from supervisor.runtime.descriptors import is_exhaustion

_LONGEST_LINE = 128 * 1024
"""Bytes of a request's first line, in which every name of a large cluster may be."""


@dataclass(frozen=True)
class Limits:
    """Of one door. Generous to people and scripts; times are seconds."""

    connections: int = 100
    """At a time. One more takes the place of the one that has been silent for longest; if none is
    silent, it is turned away."""
    lasting: int = 64
    """Requests at a time that may take long: streams and waits. Less than `connections`, so that
    `status` and `down` always find a place."""
    bodies: int = 4
    """Requests at a time that bring a file or edits: each may take megabytes and a thread."""
    patience: float = 15.0
    """For a request to arrive, its body included, for an answer to be read, and between two."""
    unread: float = 300.0
    """For a stream that is not read; somebody may look at a page of it for a while."""
    rate: float = 200.0
    """Requests a second in the long run."""
    burst: int = 400
    """Requests at once."""
    pause: float = 1.0
    """What is beyond the rate is refused after this long, and so never comes faster than that."""


class Bucket:
    """A token bucket: `burst` at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = float(burst), now

    def take(self, now: float) -> bool:
        """Whether there is one left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Visit:
    """One connection. It is let go when it is silent for too long."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.rest()

    @property
    def is_over(self) -> bool:
        return self._connection.fileno() < 0

    @property
    def is_silent(self) -> bool:
        """No request of it is being worked on."""
        return self._timer is not None

    def work(self) -> None:
        """A request has arrived."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def rest(self) -> None:
        """It has to read its answer, and to ask again or go."""
        self.work()
        self._timer = asyncio.get_running_loop().call_later(self._patience, self.end)

    def end(self) -> None:
        self.work()
        if self.transport is not None:
            self.transport.abort()  # not close(), which would wait for what is not read
        else:
            with contextlib.suppress(OSError):  # in the middle of a TLS handshake, which fails now
                self._connection.shutdown(socket.SHUT_RDWR)


class Door:
    """Serves an application on a listening socket, within limits.

    ``token``: who does not bear it learns nothing, not even what there is. ``tls``: for https.
    """

    def __init__(
        self,
        routes: Callable[[web.Application, Door], None],
        *,
        largest: int,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits,
    ) -> None:
        self._token = token
        self._tls = tls
        self._limits = limits
        self._bucket = Bucket(limits.rate, limits.burst, asyncio.get_running_loop().time())
        self._visits: dict[asyncio.BaseProtocol, _Visit] = {}
        self._counts = {"lasting": 0, "bodies": 0}
        app = web.Application(client_max_size=largest, middlewares=[self._middleware()])
        app.on_response_prepare.append(_say_nothing_of_us)
        routes(app, self)
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            # A client that follows a quiet log and goes away must not leave its handler behind.
            handler_cancellation=True,
            access_log=None,
            logger=_http_log,
            shutdown_timeout=0.2,
            keepalive_timeout=limits.patience,
            lingering_time=1.0,
            max_line_size=_LONGEST_LINE,
            auto_decompress=False,  # nobody needs it, and a bomb may be in it
        )
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()

    async def listen(self, listener: socket.socket) -> None:
        """Let in whoever connects to ``listener``, ours from now on, and not to the one before."""
        if self._runner.server is None:
            await self._runner.setup()
            assert self._runner.server is not None
            self._runner.server.request_handler = _without_riddles(self._runner.server)
        await self._stop_listening()
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def close(self) -> None:
        await self._stop_listening()
        for greeting in self._greetings:
            greeting.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)
        await self._runner.cleanup()
        for visit in self._visits.values():
            visit.end()

    async def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    @contextlib.contextmanager
    def place(self, kind: str) -> Iterator[None]:
        """One of the places for ``lasting`` requests, or for ``bodies``. Raises TooMany."""
        if self._counts[kind] >= getattr(self._limits, kind):
            raise TooMany
        self._counts[kind] += 1
        try:
            yield
        finally:
            self._counts[kind] -= 1

    @property
    def limits(self) -> Limits:
        return self._limits

    # ------------------------------------------------------------ connections

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor left, or a client that has gone already
                if is_exhaustion(error):
                    said = {"message": "cannot accept a connection", "exception": error}
                    loop.call_exception_handler(said)  # who says it once: `descriptors.Complaint`
                await asyncio.sleep(0.1)
                continue
            await asyncio.sleep(0)  # accepting does not wait while there are any
            if self._makes_room():
                connection.setblocking(False)
                task = asyncio.create_task(self._greet(connection))
                self._greetings.add(task)
                task.add_done_callback(self._greetings.discard)
            else:
                await _turn_away(connection, plain=self._tls is None)

    def _makes_room(self) -> bool:
        if len(self._visits) < self._limits.connections:
            return True
        for protocol in [one for one, visit in self._visits.items() if visit.is_over]:
            self._visits.pop(protocol).work()
        if len(self._visits) < self._limits.connections:
            return True
        silent = (one for one, visit in self._visits.items() if visit.is_silent)
        first = next(silent, None)
        if first is not None:
            self._visits.pop(first).end()
        return first is not None

    async def _greet(self, connection: socket.socket) -> None:
        """Make a connection of it; with TLS that takes the client's part, too."""
        assert self._runner.server is not None
        protocol = self._runner.server()
        visit = self._visits[protocol] = _Visit(connection, self._limits.patience)
        try:
            visit.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.patience if self._tls else None,
                ssl_shutdown_timeout=1.0 if self._tls else None,
            )
        except (OSError, asyncio.CancelledError):  # no TLS, or no more of it
            connection.close()
            visit.work()
            self._visits.pop(protocol, None)

    # ------------------------------------------------------------ requests

    def _middleware(self) -> Middleware:
        @web.middleware
        async def enter(request: web.Request, handler: Handler) -> web.StreamResponse:
            visit = self._visits.get(request.protocol)
            if visit is None:  # it had to make room just now
                raise ConnectionResetError
            visit.work()
            try:
                return await self._admit(request, handler)
            finally:
                if not visit.is_over:
                    self._visits[request.protocol] = self._visits.pop(request.protocol, visit)
                    visit.rest()

        return enter

    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._bucket.take(asyncio.get_running_loop().time()):
            await asyncio.sleep(self._limits.pause)
            return refused(429, "too many requests; ask less often", close=True)
        if self._token is not None and not bears(request.headers.get("Authorization"), self._token):
            answer = refused(401, "unauthorized", close=True)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        try:
            return await handler(request)
        except TooMany:
            return refused(503, "too many requests of this kind at a time; try again in a moment")
        except web.HTTPException as error:  # no such route, a body that is too large
            answer = refused(error.status, error.reason.lower())
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer


def _without_riddles(server: web.Server) -> Callable[[web.BaseRequest], Any]:
    """aiohttp fails to quote a header that is no UTF-8 (Expect), before it asks the middleware."""
    inner = server.request_handler

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await inner(request)
        except UnicodeError:
            return refused(400, "a header is no text", close=True)

    return handle


class TooMany(Exception):
    """There is no place left for a request of this kind."""


def bears(authorization: str | None, token: str) -> bool:
    """Whether the header has the token. Takes as long for a nearly right one as for a wrong one."""
    scheme, _, given = (authorization or "").partition(" ")
    # Bytes that are no UTF-8 come as surrogates, which compare_digest would not take as text.
    said = given.strip().encode(errors="surrogateescape")
    return hmac.compare_digest(said, token.encode()) and scheme.lower() == "bearer"


def answered(view: View, status: int = 200) -> web.Response:
    """A view as JSON."""
    text = json.dumps(view.model_dump(mode="json"), ensure_ascii=False)
    # A file name need not be UTF-8; the escapes are JSON's own.
    body = text.encode(errors="backslashreplace")
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def refused(status: int, why: str, *, close: bool = False) -> web.Response:
    answer = answered(ErrorView(error=why), status)
    if close:
        answer.force_close()
    return answer


@contextlib.asynccontextmanager
async def read_within(seconds: float, request: web.Request) -> AsyncIterator[None]:
    """For something that the client has to do its part for: after that long it is let go."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client takes too long") from None


# ---------------------------------------------------------------- those for whom there is no room

_FULL_BODY = b'{"error": "too many connections at a time; try again in a moment"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


async def _turn_away(connection: socket.socket, *, plain: bool) -> None:
    """Takes a moment in any case: who knocks without end must not keep us busy."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError, TimeoutError):
        connection.setblocking(False)
        async with asyncio.timeout(0.02):
            await loop.sock_recv(connection, 65536)  # left unread, it would take our answer along
        if plain:
            connection.send(_FULL)
    await asyncio.sleep(0.01)


async def _say_nothing_of_us(request: web.Request, response: web.StreamResponse) -> None:
    """Which software answers, in which version, is of use to nobody who means well."""
    response.headers.popall("Server", None)


def _is_a_defect(record: logging.LogRecord) -> bool:
    """What is no HTTP is the client's affair, and no line of our log."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | ConnectionError)


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_is_a_defect)
