"""A door lets in who may, as many as it can bear, nobody for ever. Real sockets, small limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from certificates import make_certificate

from supervisor.daemon.doors import Bucket, Door, Limits, bears, read_within
from supervisor.spec.checks import tls_context

TOKEN = "0123456789abcdef"
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = 0.3
"""Seconds of patience where a test waits for its end; LONG where it must not be what ends it."""
LONG = 60.0

Story = Callable[["House"], Awaitable[None]]


class House:
    """A door on a Unix socket, and what stands behind it."""

    def __init__(self, folder: Path, door: Door) -> None:
        self.path = folder / "door"
        self.door = door
        self.held = asyncio.Event()
        self.cancelled = 0

    async def connect(
        self, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        more = {"ssl": tls, "server_hostname": "127.0.0.1"} if tls else {}
        return await asyncio.open_unix_connection(str(self.path), **more)

    async def ask(self, request: bytes = GET) -> bytes:
        """One request over a connection of its own; all that comes until the door closes it."""
        reader, writer = await self.connect()
        try:
            writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            return await reader.read()
        finally:
            writer.close()


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1000)
    return listener


def visit(
    folder: Path,
    story: Story,
    limits: Limits | None = None,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    async def run() -> None:
        houses: list[House] = []

        def routes(app: web.Application, door: Door) -> None:
            async def hello(request: web.Request) -> web.StreamResponse:
                return web.Response(text="hello")

            async def hold(request: web.Request) -> web.StreamResponse:
                try:
                    with door.place("lasting"):
                        await houses[0].held.wait()
                except asyncio.CancelledError:
                    houses[0].cancelled += 1
                    raise
                return web.Response(text="let go")

            async def take(request: web.Request) -> web.StreamResponse:
                async with read_within(door.limits.patience, request):
                    return web.Response(text=str(len(await request.read())))

            async def flood(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    async with read_within(door.limits.unread, request):
                        await response.write(b"x" * 65536)

            async def large(request: web.Request) -> web.StreamResponse:
                return web.Response(body=b"x" * 10_000_000)

            for path, handler in (("/hello", hello), ("/hold", hold), ("/flood", flood)):
                app.router.add_get(path, handler)
            app.router.add_get("/large", large)
            app.router.add_post("/take", take)

        door = Door(routes, largest=1000, token=token, tls=tls, limits=limits or Limits())
        house = House(folder, door)
        houses.append(house)
        await door.listen(listening(house.path))
        try:
            await story(house)
        finally:
            await door.close()

    asyncio.run(asyncio.wait_for(run(), 120))


# ---------------------------------------------------------------- who may come in


def test_another_socket_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """As when somebody has cleaned /tmp; who is inside already stays."""

    async def story(house: House) -> None:
        reader, writer = await house.connect()
        house.path = tmp_path / "another"
        await house.door.listen(listening(house.path))
        assert (await house.ask()).endswith(b"hello")
        writer.write(GET)
        assert b"200 OK" in await reader.readline()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(str(tmp_path / "door"))

    visit(tmp_path, story)


@pytest.mark.parametrize(
    ("header", "good"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Bearer ", False),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN.upper()}", False),
        (f"Bearer {TOKEN} {TOKEN}", False),
        ("Bearer \udcff\udcfe", False),
        ("Bearer é" + TOKEN, False),
    ],
)
def test_a_token_is_right_or_wrong(header: str | None, good: bool) -> None:
    assert bears(header, TOKEN) is good


def test_who_has_no_token_learns_nothing(tmp_path: Path) -> None:
    """The same answer, whether there is such a route or not; nor what software answers."""

    async def story(house: House) -> None:
        answers = set()
        for line in (b"GET /hello", b"GET /none", b"POST /hello", b"DELETE /", b"OPTIONS /hello"):
            for header in (b"", b"\r\nAuthorization: Bearer wrong", b"\r\nOrigin: http://evil"):
                answer = await house.ask(line + b" HTTP/1.1\r\nHost: x" + header + b"\r\n\r\n")
                head, _, body = answer.partition(b"\r\n\r\n")
                lines = [one for one in head.split(b"\r\n") if not one.startswith(b"Date:")]
                answers.add((*lines, body))
        (only,) = answers
        assert only[0] == b"HTTP/1.1 401 Unauthorized"
        assert only[-1] == b'{"error": "unauthorized"}'
        names = {line.partition(b":")[0].lower() for line in only[1:-1]}
        known = {b"content-type", b"content-length", b"connection", b"www-authenticate"}
        assert names <= known
        good = await house.ask(GET[:-2] + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert good.endswith(b"hello")
        assert b"Access-Control" not in good

    visit(tmp_path, story, token=TOKEN)


def test_behind_tls(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def story(house: House) -> None:
        trusting = ssl.create_default_context(cafile=str(cert))
        reader, writer = await house.connect(trusting)
        writer.write(GET[:-2] + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b"200 OK" in await reader.readline()
        writer.close()
        assert await house.ask(GET) == b""  # without TLS there is nothing to be had

    visit(tmp_path, story, token=TOKEN, tls=tls_context(cert, key))


def test_who_never_ends_the_handshake_is_let_go(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def story(house: House) -> None:
        visitors = [await house.connect() for _ in range(3)]
        for reader, writer in visitors:
            assert await reader.read() == b""
            writer.close()

    visit(tmp_path, story, replace(Limits(), patience=SHORT), tls=tls_context(cert, key))


def test_a_crowd_amid_the_handshake_keeps_nobody_out(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def story(house: House) -> None:
        crowd = [await house.connect() for _ in range(20)]
        reader, writer = await house.connect(ssl.create_default_context(cafile=str(cert)))
        writer.write(GET)
        assert b"200 OK" in await reader.readline()
        for _, one in (*crowd, (reader, writer)):
            one.close()

    limits = replace(Limits(), connections=5, patience=LONG)
    visit(tmp_path, story, limits, tls=tls_context(cert, key))


# ---------------------------------------------------------------- how many


def test_who_is_silent_for_longest_makes_room(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        silent = [await house.connect() for _ in range(5)]
        assert (await house.ask()).endswith(b"hello")
        assert await silent[0][0].read() == b""
        for reader, writer in silent[1:]:  # the others are still there
            writer.write(GET)
            assert b"200 OK" in await reader.readline()
        for _, writer in silent:
            writer.close()

    visit(tmp_path, story, replace(Limits(), connections=5, patience=LONG))


def test_if_all_are_busy_one_more_is_turned_away(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        busy = [asyncio.create_task(house.ask(GET.replace(b"hello", b"hold"))) for _ in range(5)]
        while house.door._counts["lasting"] < 5:
            await asyncio.sleep(0.01)
        assert b"too many connections" in await house.ask()
        house.held.set()
        for answer in await asyncio.gather(*busy):
            assert answer.endswith(b"let go")
        assert (await house.ask()).endswith(b"hello")

    visit(tmp_path, story, replace(Limits(), connections=5, lasting=5, patience=LONG))


def test_what_lasts_leaves_places_for_the_rest(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        hold = GET.replace(b"hello", b"hold")
        lasting = [asyncio.create_task(house.ask(hold)) for _ in range(3)]
        while house.door._counts["lasting"] < 3:
            await asyncio.sleep(0.01)
        refused = await house.ask(hold)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"too many requests of this kind" in refused
        assert (await house.ask()).endswith(b"hello")
        lasting[0].cancel()  # its client goes away
        while house.door._counts["lasting"] > 2:
            await asyncio.sleep(0.01)
        assert house.cancelled == 1
        house.held.set()
        assert (await house.ask(hold)).endswith(b"let go")
        await asyncio.gather(*lasting[1:])

    visit(tmp_path, story, replace(Limits(), lasting=3, patience=LONG))


def test_more_than_there_are_descriptors_for(tmp_path: Path) -> None:
    """Who was let in stays, and when there are descriptors again, so are the others."""

    async def story(house: House) -> None:
        reader, writer = await house.connect()
        writer.write(GET)
        await reader.readuntil(b"hello")
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = socket.socket(socket.AF_UNIX)  # for the client, which lives in this process too
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno() + 1, before[1]))
        try:
            spare.setblocking(False)
            await asyncio.get_running_loop().sock_connect(spare, str(house.path))
            spare.send(GET)
            writer.write(GET)
            await reader.readuntil(b"hello")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert b"200 OK" in await asyncio.get_running_loop().sock_recv(spare, 1000)
        spare.close()
        writer.close()

    visit(tmp_path, story)


# ---------------------------------------------------------------- how fast


def test_a_bucket_fills_up_again_but_never_over() -> None:
    bucket = Bucket(rate=2.0, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.6)
    assert [bucket.take(9999.0) for _ in range(4)] == [True, True, True, False]


def test_what_comes_too_fast_is_refused_and_the_connection_ends(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        reader, writer = await house.connect()
        writer.write(GET * 4)
        answers = await reader.read()
        assert answers.count(b"200 OK") == 3
        assert answers.count(b"429 Too Many Requests") == 1
        writer.close()

    visit(tmp_path, story, replace(Limits(), rate=0.001, burst=3, pause=0.01))


def test_guesses_count_too(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        answers = [await house.ask() for _ in range(4)]
        assert [answer.split()[1] for answer in answers] == [b"401", b"401", b"401", b"429"]

    visit(tmp_path, story, replace(Limits(), rate=0.001, burst=3, pause=0.01), token=TOKEN)


# ---------------------------------------------------------------- for how long


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /hel",
        GET + GET[:-2],  # a second request that never ends
        b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nabc",
        b"POST /take HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",  # and reads nothing of it
        b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_who_takes_for_ever_is_let_go(tmp_path: Path, beginning: bytes) -> None:
    async def story(house: House) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(house.path))
        client.send(beginning)
        while not house.door._visits:
            await asyncio.sleep(0.01)
        (one,) = house.door._visits.values()
        while not one.is_over:
            await asyncio.sleep(0.01)
        assert (await house.ask()).endswith(b"hello")
        client.close()

    visit(tmp_path, story, replace(Limits(), patience=SHORT, unread=SHORT))


def test_a_dribble_of_headers_is_no_progress(tmp_path: Path) -> None:
    """A byte now and then keeps nobody in: the whole request has its time."""

    async def story(house: House) -> None:
        reader, writer = await house.connect()
        ended = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET /hello HTTP/1.1\r\n")
            while not ended.done():
                writer.write(b"X-A: b\r\n")
                await writer.drain()
                await asyncio.sleep(SHORT / 10)
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await ended
        writer.close()

    visit(tmp_path, story, replace(Limits(), patience=SHORT))


# ---------------------------------------------------------------- what is no request


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET\r\n\r\n",
        b"GET /hello HTTP/9.9\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nA" + b"x" * 100_000 + b": y\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"POST /take HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /take HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: x\r\nExpect: \xff\xfe\r\n\r\n",
        b"\0" * 1000,
    ],
)
def test_what_is_no_http_is_refused_without_a_line_in_our_log(
    tmp_path: Path, noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(house: House) -> None:
        reader, writer = await house.connect()
        with contextlib.suppress(ConnectionError):
            writer.write(noise)
            writer.write_eof()
            answer = await reader.read()
            assert answer == b"" or answer.split()[1][:1] == b"4"
        writer.close()
        assert (await house.ask()).endswith(b"hello")

    with caplog.at_level(logging.INFO):
        visit(tmp_path, story)
    assert caplog.records == []


def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        head = b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n"
        answer = await house.ask(head + b"x" * 2000)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'{"error": "' in answer

    visit(tmp_path, story)


def test_a_closed_door_lets_everybody_go(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        hold = asyncio.create_task(house.ask(GET.replace(b"hello", b"hold")))
        silent, writer = await house.connect()
        while house.door._counts["lasting"] < 1:
            await asyncio.sleep(0.01)
        await house.door.close()
        assert await silent.read() == b""
        await asyncio.gather(hold, return_exceptions=True)
        with pytest.raises(ConnectionRefusedError):
            await house.connect()
        writer.close()

    visit(tmp_path, story, replace(Limits(), patience=LONG))
