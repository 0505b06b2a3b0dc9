"""Clients that mean no good, at the control API of a running supervisor: supervision goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from harness import Cluster, until

from supervisor.cli.main import main
from supervisor.daemon.api import ROUTES

AMOUNT = int(os.environ.get("LLM_SUPERVISOR_FUZZ", "1"))
"""Times as many random cases as in an ordinary run; see `test_random_requests`."""

MEGABYTES = 48
"""How much more memory a supervisor may need than before. What is bounded needs a few; what is not
bounded takes hundreds in these tests."""

FILE = """
watch: false
services:
  steady: {command: [sleep, '1000'], restart: {backoff: 10ms}}
  crashing: {command: [sh, -c, 'sleep 0.2; exit 1'], restart: {backoff: 10ms, backoff_max: 50ms}}
  babbling: {command: [sh, -c, 'yes babble; sleep 1000']}
logs: {max_size: 2MiB, keep: 1}
"""


@pytest.fixture
def busy(cluster: Cluster) -> Cluster:
    """One instance is quiet, one crashes again and again, one floods its log."""
    cluster.write(FILE).up("--log-format", "json")
    cluster.until("steady", "ready")
    return cluster


def connect(cluster: Cluster, timeout: float = 30.0) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(timeout)
    one.connect(str(cluster.run_dir / "control.sock"))
    return one


def pid_of(cluster: Cluster) -> int:
    assert cluster.process is not None
    return cluster.process.pid


def memory(cluster: Cluster) -> float:
    """MB that it has now."""
    for line in Path(f"/proc/{pid_of(cluster)}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    pytest.fail("the supervisor has ended")


def descriptors(cluster: Cluster) -> int:
    return len(os.listdir(f"/proc/{pid_of(cluster)}/fd"))


def complaints(cluster: Cluster) -> list[str]:
    """What the supervisor says of itself where something is not as it should be."""
    lines = cluster.output.read_text(errors="replace").splitlines()
    return [line for line in lines if "Traceback" in line or "please report" in line]


def steady_pid(cluster: Cluster) -> int:
    """By another way than the API, which others may keep busy."""
    lines = cluster.output.read_text(errors="replace").splitlines()
    events = [json.loads(line) for line in lines if '"instance": "steady"' in line]
    return next(event["pid"] for event in reversed(events) if event["state"] == "ready")


# ---------------------------------------------------------------- a mob


def silent(cluster: Cluster) -> Iterator[socket.socket]:
    for _ in range(300):
        yield connect(cluster)


def slow(cluster: Cluster) -> Iterator[socket.socket]:
    for _ in range(300):
        one = connect(cluster)
        with contextlib.suppress(OSError):
            one.send(b"GET /v1/status HTTP/1.1\r\nX-A: ")
        yield one


def deaf(cluster: Cluster) -> Iterator[socket.socket]:
    """They ask for streams, and read nothing of them."""
    paths = ["/v1/events?follow=1", "/v1/services/babbling/logs?follow=1&lines=1000000"]
    paths.append("/v1/services/babbling/logs?lines=1000000")
    for i in range(300):
        one = connect(cluster)
        with contextlib.suppress(OSError):
            one.send(f"GET {paths[i % 3]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield one


def waiting(cluster: Cluster) -> Iterator[socket.socket]:
    """Each change is a question to all of these."""
    for i in range(300):
        one = connect(cluster)
        path = ("/v1/wait?service=crashing&timeout=86400", "/v1/settled?timeout=86400")[i % 2]
        with contextlib.suppress(OSError):
            one.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield one


def half_sent(cluster: Cluster) -> Iterator[socket.socket]:
    """Bodies of megabytes, of which the last byte never comes."""
    for _ in range(30):
        one = connect(cluster, timeout=0.05)
        with contextlib.suppress(OSError):
            size = 8 * 1024 * 1024
            head = f"POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
            one.sendall(head.encode() + b"x" * (size - 1))
        yield one


@pytest.mark.parametrize("crowd", [silent, slow, deaf, waiting, half_sent])
def test_a_crowd_keeps_neither_supervision_nor_others_from_their_work(
    busy: Cluster, crowd: Any
) -> None:
    before, opened = memory(busy), descriptors(busy)
    with contextlib.ExitStack() as stack:
        for one in crowd(busy):
            stack.enter_context(one)
        steady = busy.instance("steady")  # who asks something finds a place
        os.kill(steady["pid"], signal.SIGKILL)
        until(lambda: busy.instance("steady")["restarts"] == 1, "it is restarted")
        crashes = busy.instance("crashing")["restarts"]
        until(lambda: busy.instance("crashing")["restarts"] > crashes + 2, "so are others")
        assert memory(busy) < before + MEGABYTES
        assert descriptors(busy) < opened + 240  # a followed log is a file, too
    until(lambda: descriptors(busy) <= opened + 5, "all descriptors are closed")
    assert complaints(busy) == []


def test_a_flood_of_requests_does_not_stall_supervision(busy: Cluster) -> None:
    """Several clients ask as fast as they can; a process that is killed is replaced meanwhile."""
    before, opened = memory(busy), descriptors(busy)
    victim = busy.instance("steady")["pid"]
    over = threading.Event()
    answers: dict[bytes, int] = {}

    def flood() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), connect(busy, timeout=5.0) as one:
                while not over.is_set():
                    one.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
                    status = one.recv(100_000)[:12]
                    if not status:
                        break
                    answers[status] = answers.get(status, 0) + 1

    floods = [threading.Thread(target=flood) for _ in range(8)]
    for one in floods:
        one.start()
    try:
        until(lambda: answers.get(b"HTTP/1.1 429"), "the flood is refused")
        os.kill(victim, signal.SIGKILL)
        until(lambda: steady_pid(busy) != victim, "it is restarted")
    finally:
        over.set()
        for one in floods:
            one.join()
    until(lambda: busy.run("status").returncode == 0, "others are answered again")
    assert busy.instance("steady")["restarts"] == 1
    assert memory(busy) < before + MEGABYTES
    until(lambda: descriptors(busy) <= opened + 5, "all descriptors are closed")
    assert complaints(busy) == []


# ---------------------------------------------------------------- names


NAMES = [
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    ".",
    "steady/../../x",
    "steady\n--flag",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "-rf",
    "steady\0",
    "\x1b[2J",
    "é\u202e",
    "x" * 5000,
    "%2e%2e%2f",
    "{name}",
    "*",
]


def ask(cluster: Cluster, request: bytes, timeout: float = 10.0) -> bytes:
    """Send it and return the head of the answer, and what of the body comes with it."""
    with connect(cluster, timeout) as one:
        with contextlib.suppress(OSError):
            one.sendall(request)
        found = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in found and (more := one.recv(65536)):
                found += more
            one.settimeout(0.05)
            found += one.recv(65536) if found.endswith(b"\r\n\r\n") else b""
        return found


def all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def asking(name: str) -> Iterator[bytes]:
    """Every request that a name can be part of, in every spelling."""
    for route in ROUTES:
        spelt = {quote(name, safe=""), quote(name, safe="/"), quote(quote(name, safe=""), safe="")}
        for one in spelt:
            if "{name}" in route.path:
                target = route.path.replace("{name}", one)
            elif "service" in route.query:
                target = f"{route.path}?service={one}&timeout=0.01"
            else:
                continue
            yield f"{route.method} {target} HTTP/1.1\r\n{_CLOSE}\r\n".encode()
    if not (set(name) & set("\r\n\0 ")):
        yield f"GET /v1/services/{name}/logs HTTP/1.1\r\n{_CLOSE}\r\n".encode()
    for verb in ("add", "remove", "set", "unset"):
        edit = {"verb": verb, "name": name, "fields": {}, "keys": []}
        if verb == "unset":
            edit["keys"] = ["model_path"]
        elif verb != "remove":
            edit["fields"] = {"model_path": "x"}
        body = json.dumps({"edits": [edit]}).encode()
        head = f"POST /v1/edit HTTP/1.1\r\n{_CLOSE}Content-Length: {len(body)}\r\n\r\n"
        yield head.encode() + body


_CLOSE = "Host: x\r\nConnection: close\r\n"


def test_no_name_leads_anywhere_over_the_api(cluster: Cluster) -> None:
    cluster.write("services: {steady: {command: [sleep, '1000']}}").up().ready()
    text, before, pid = cluster.file.read_text(), all_files(cluster.folder), pid_of(cluster)
    for name in NAMES:
        for request in asking(name):
            answer = ask(cluster, request)
            status = answer.split()[1] if answer else b"none"
            first = request.partition(b"\r\n")[0]
            harmless = b"/v1/settled" in first
            assert status[:1] == b"4" or (harmless and status == b"200"), (first, answer)
            assert b"root:" not in answer
            time.sleep(0.005)  # the API counts requests
    assert all_files(cluster.folder) == before
    assert cluster.file.read_text() == text
    assert (pid_of(cluster), cluster.instance("steady")["restarts"]) == (pid, 0)
    assert complaints(cluster) == []


def test_no_name_leads_anywhere_on_the_command_line(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.write("services: {steady: {command: [sleep, '1000']}}").up().ready()
    monkeypatch.chdir(cluster.folder)
    text, before = cluster.file.read_text(), all_files(cluster.folder)
    for name in NAMES:
        for verb, *more in (
            ("start",),
            ("stop",),
            ("restart",),
            ("why",),
            ("logs",),
            ("wait",),
            ("add", "--model-path", "x"),
            ("remove",),
            ("scale", "2"),
            ("set", "replicas=2"),
            ("unset", "replicas"),
        ):
            if verb in ("set", "unset") and name == ".":
                continue  # the top of the file has this very name
            arguments = [verb, *cluster.places, "--", name, *more]
            if verb == "add":
                arguments = [verb, *cluster.places, *more, "--", name]
            status = main(arguments)
            said = capsys.readouterr()
            assert status in (1, 2), (verb, name, said)
            assert "Traceback" not in said.err
            assert "\x1b[2J" not in said.err + said.out
    assert all_files(cluster.folder) == before
    assert cluster.file.read_text() == text
    assert cluster.instance("steady")["restarts"] == 0
    assert complaints(cluster) == []


# ---------------------------------------------------------------- random requests


_WORDS = [
    *("nan", "inf", "-1", "1e400", "9" * 5000, "0x10", "", "true", "%00", "%ff%fe", "é", "%F0%9F"),
    *("..", "%2f", "steady", "crashing", "*", "'", '"', "\ud800", "a" * 3000, "None", "[]", "{}"),
]
_HEADERS = [
    b"Content-Length: 5",
    b"Content-Length: -5",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br",
    b"Expect: 100-continue",
    b"Expect: the worst",
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Connection: close",
    b"Range: bytes=0-1",
    b"Cookie: " + b"a=b;" * 1000,
    b"Authorization: Bearer \xff\xfe",
    b"Content-Type: application/json; charset=utf-7",
    b"Content-Type: multipart/form-data; boundary=x",
    b"Host: \xff",
    b": empty",
    b"X\0Y: z",
]
_EDIT = b'{"edits": [{"verb": "set", "name": "steady", "fields": {"stop_grace": 3}}], "dry_run": 1}'


def _body(chance: random.Random) -> bytes:
    kind = chance.randrange(8)
    if kind == 0:
        return b"[" * chance.choice([10, 1000, 200_000])
    if kind == 1:
        return b'{"edits":' * chance.choice([10, 5000])
    if kind == 2:
        return json.dumps({"text": chance.choice(_WORDS) * chance.choice([1, 100])}).encode()
    if kind == 3:
        fields = {chance.choice(_WORDS): chance.choice([1, None, [], {}, 1e308, 2**70, "\ud800"])}
        verb, name = chance.choice(["add", "set", "remove", "unset", "?"]), chance.choice(_WORDS)
        edit = {"verb": verb, "name": name, "fields": fields, "keys": list(fields)}
        return json.dumps({"edits": [edit] * chance.choice([1, 50]), "dry_run": True}).encode()
    if kind == 4:
        return chance.randbytes(chance.choice([1, 100, 10_000]))
    if kind == 5:
        return _EDIT.replace(b"3", b"9" * 5000)
    return _mutated(_EDIT, chance)


def _mutated(text: bytes, chance: random.Random) -> bytes:
    out = bytearray(text)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(4):
            case 0:
                out[at : at + 1] = chance.randbytes(1)
            case 1:
                del out[at : at + chance.randrange(1, 20)]
            case 2:
                out[at:at] = out[: chance.randrange(1, 40)]
            case 3:
                out[at:at] = chance.choice(_WORDS).encode(errors="surrogatepass")
    return bytes(out)


def random_request(chance: random.Random) -> bytes:
    """A request of the table, more or less; none that ends the cluster."""
    route = chance.choice([route for route in ROUTES if route.path != "/v1/down"])
    name = chance.choice(_WORDS).encode(errors="surrogatepass")
    target = route.path.encode().replace(b"{name}", name)
    asked = [q for q in route.query if chance.random() < 0.7]
    if asked:
        values = [chance.choice(_WORDS).encode(errors="surrogatepass") for _ in asked]
        pairs = [q.encode() + b"=" + v for q, v in zip(asked, values, strict=True)]
        target += b"?" + b"&".join(pairs * chance.choice([1, 1, 1, 50]))
    method = route.method.encode()
    if chance.random() < 0.2:
        method = chance.choice([b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"BREW", b"get", b"\xff"])
    body = _body(chance) if route.body or chance.random() < 0.1 else b""
    headers = [b"Host: x", *(chance.sample(_HEADERS, chance.choice([0, 0, 1, 2])))]
    if body and chance.random() < 0.9:
        headers.append(b"Content-Length: %d" % len(body))
    request = method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
    if chance.random() < 0.3 and b"/v1/" in request:
        request = _mutated(request, chance)
    return request if b"/v1/down" not in request else b"\r\n"


def test_random_requests(busy: Cluster, request: pytest.FixtureRequest) -> None:
    """2000 of them; `LLM_SUPERVISOR_FUZZ=50` makes it 100,000 with other seeds.

    No answer is a 500, the supervisor lives, says of no defect, and needs no more than before.
    """
    opened, pid = descriptors(busy), pid_of(busy)
    before = 0.0
    for round_ in range(AMOUNT):
        chance = random.Random(f"requests {round_}")
        for i in range(2000):
            if i == 500 and not round_:
                before = memory(busy)  # with all that is imported when it is first needed
            asked = random_request(chance)
            answer = ask(busy, asked, timeout=0.1)
            status = answer[9:12]
            assert not status.startswith(b"50") or status == b"503", (round_, i, asked, answer)
            assert b"Traceback" not in answer
        assert complaints(busy) == [], (round_, asked)
    assert (pid_of(busy), busy.status()["cluster"]["pid"]) == (pid, pid)
    assert busy.run("start", "steady").returncode == 0  # some of the requests were good ones
    assert memory(busy) < before + MEGABYTES
    until(lambda: descriptors(busy) <= opened + 5, "all descriptors are closed")
