"""Speaking to a service manager, over real sockets."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from supervisor.runtime.notify import Notifier, for_instances


@pytest.fixture(params=["path", "abstract"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """A socket like systemd's, and how NOTIFY_SOCKET names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@test-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(name.replace("@", "\0", 1))
        one.settimeout(60)
        yield one, name


def test_what_is_said_arrives_in_one_piece(manager: tuple[socket.socket, str]) -> None:
    ours, name = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": name})
    assert notifier is not None
    with closing(notifier):
        notifier.send("READY=1", "STATUS=2 of 2 instances ready")
    assert ours.recv(4096) == b"READY=1\nSTATUS=2 of 2 instances ready"


def say_for_ever(notifier: Notifier) -> None:
    while True:
        notifier.send("STATUS=again")


def test_a_manager_that_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        with closing(Notifier(str(tmp_path / "notify"))) as one, pytest.raises(BlockingIOError):
            say_for_ever(one)


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with closing(Notifier(str(tmp_path / "notify"))) as one, pytest.raises(FileNotFoundError):
        one.send("READY=1")


def test_it_is_heard_where_no_descriptor_is_free(manager: tuple[socket.socket, str]) -> None:
    """Or the watchdog would kill a supervisor that has clients to spare."""
    ours, name = manager
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(Notifier(name)) as notifier:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.open(os.devnull, os.O_RDONLY)
            notifier.send("WATCHDOG=1")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ours.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1"])
def test_without_an_address_that_we_know_there_is_nobody_to_speak_to(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    assert Notifier.from_environ(environ) is None


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(variables: dict[str, str], seconds: float | None) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": "/run/notify", **variables})
    assert notifier is not None
    notifier.close()
    assert notifier.watchdog == seconds


def test_instances_cannot_speak_in_our_name() -> None:
    said = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "JOURNAL_STREAM": "1:2"}
    assert for_instances({**said, "WATCHDOG_PID": "1", "HOME": "/"}) == {"HOME": "/"}
