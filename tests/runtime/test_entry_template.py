"""What a process that was forked from a template sees of itself, against one that was started."""

from __future__ import annotations

import copy
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import warm
from harness import free_ports
from warm import House, template

from supervisor.core.lifecycle import Exited
from supervisor.runtime import leftovers, tree

Seen = dict[str, Any]

ENV = {
    "NOT_UTF8": os.fsdecode(b"\xff\xfe=\n\x80"),
    "EMPTY": "",
    "UNICODE": "schöne Grüße, 你好",
    "HUGE": "x" * 100_000,
    "CUDA_VISIBLE_DEVICES": "1,0",
    "OMP_NUM_THREADS": "2",
}
WORDS = ["--", "--odd", os.fsdecode(b"not utf-8: \xff"), "schöne Grüße", "", "a\nb", "y" * 100_000]
GLIBCS_OWN = 0b11 << 31
"""Signals 32 and 33, which glibc handles once there has been a thread."""
ITS_OWN = {"pid", "group", "session", "initial environment", "drawn"}
"""What no other process has, and what is different for a reason."""


@dataclass
class Workers:
    """Two that were forked from one template, and one that was started: the same instance."""

    forked: Seen
    sibling: Seen
    started: Seen


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    house = House(tmp_path_factory.mktemp("workers"))
    kind = template("worker", OMP_NUM_THREADS="2")

    async def story() -> Workers:
        async with house.open():
            house.templates.keep([kind])
            words = ("torch", "numpy", *WORDS)
            forked = house.spec("one", *words, template=kind, env=ENV, port=4711)
            started = house.spec("one", *words, template=None, env=ENV, port=4711)
            seen = await house.in_turn(forked, forked, started)
            return Workers(*seen)

    found: Workers = warm.run(story)
    return found


def test_all_that_it_sees_is_as_if_it_had_been_started(workers: Workers) -> None:
    """Arguments, environment for Python and for C, descriptors, signals, limits, streams, ..."""
    forked, started = copy.deepcopy((workers.forked, workers.started))
    for one in (forked, started):
        caught = int(one["signals"]["SigCgt"], 16) & ~GLIBCS_OWN
        one["signals"]["SigCgt"] = hex(caught)
    del forked["threads"], started["threads"]  # of the one that was started, a library's are new
    births = [one.pop("environment").pop("LLM_SUPERVISOR_BIRTH") for one in (forked, started)]
    assert births == [f"{run}:4711:a digest".encode().hex() for run in (1, 3)]
    forked_c, started_c = (sorted(one.pop("C environment")) for one in (forked, started))
    assert [w for w in forked_c if births[0] not in w] == [
        w for w in started_c if births[1] not in w
    ]
    assert {k: v for k, v in forked.items() if k not in ITS_OWN} == {
        k: v for k, v in started.items() if k not in ITS_OWN
    }


def test_siblings_draw_different_random_numbers(workers: Workers) -> None:
    forked, sibling = workers.forked["drawn"], workers.sibling["drawn"]
    assert {"random", "numpy", "numpy generator", "torch", "torch seed"} <= forked.keys()
    same = [name for name in forked if forked[name] == sibling[name]]
    assert same == ["hash"]  # CPython draws its secret once, when an interpreter starts


def test_it_leads_a_session_of_its_own_as_our_child(workers: Workers) -> None:
    for one in (workers.forked, workers.sibling, workers.started):
        assert one["session"] == one["group"] == one["pid"]
        assert one["parent"] == os.getpid()
    assert workers.forked["threads"] == 1


def test_only_proc_tells_a_leader_from_what_it_forks(workers: Workers) -> None:
    forked, started = workers.forked, workers.started
    leader = f"LLM_SUPERVISOR_LEADER={forked['pid']}".encode().hex()
    before, after = started["initial environment"], forked["initial environment"]
    births = {b"LLM_SUPERVISOR_BIRTH=%d:4711:a digest" % run for run in (1, 3)}
    assert set(after) - set(before) - {one.hex() for one in births} == {leader}
    assert set(before) - set(after) <= {one.hex() for one in births}
    assert leader not in forked["C environment"]


@pytest.mark.parametrize("what", ["interrupts", "hangups"])
def test_signals_that_we_ignore_are_ignored(tmp_path: Path, what: str) -> None:
    """As by a process that is started: `nohup`, or a shell's background, has it so."""
    number = signal.SIGINT if what == "interrupts" else signal.SIGHUP
    house, kind = House(tmp_path), template()

    async def story() -> list[Seen]:
        async with house.open():
            before = signal.signal(number, signal.SIG_IGN)
            try:
                house.templates.keep([kind])
                specs = [house.spec("one", template=kind), house.spec("one", template=None)]
                return await house.in_turn(*specs)
            finally:
                signal.signal(number, before)

    forked, started = warm.run(story)
    assert forked["handlers"] == started["handlers"]
    assert forked["handlers"][number.name] == "<Handlers.SIG_IGN: 1>"


def test_hash_seeds_are_those_of_the_environment(tmp_path: Path) -> None:
    house = House(tmp_path)
    kinds = [template(PYTHONHASHSEED=seed) for seed in ("1", "2")]

    async def story() -> list[Seen]:
        async with house.open():
            house.templates.keep(kinds)
            started = replace(house.spec("one", template=kinds[1]), template=None)
            specs = [house.spec("one", template=kind) for kind in kinds]
            return await house.in_turn(*specs, started)

    first, second, started = warm.run(story)
    assert first["drawn"]["hash"] != second["drawn"]["hash"] == started["drawn"]["hash"]


def test_words_are_the_same_bytes_in_whatever_encoding_python_reads_them(tmp_path: Path) -> None:
    house = House(tmp_path)
    kind = template(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")

    async def story() -> list[Seen]:
        async with house.open():
            house.templates.keep([kind])
            forked = house.spec("one", *WORDS, template=kind, env=ENV)
            return await house.in_turn(forked, replace(forked, template=None))

    forked, started = warm.run(story)
    assert forked["streams"][1][0] == "ascii"
    for what in ("cmdline", "argv", "original argv"):
        assert forked[what] == started[what]
    for name in ENV:
        assert forked["environment"][name] == started["environment"][name]


def test_a_relative_path_in_the_environment_is_relative_to_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text("")
    house, kind = House(tmp_path), replace(template(PYTHONPATH="own"), cwd=str(tmp_path))

    async def story() -> list[Seen]:
        async with house.open():
            house.templates.keep([kind])
            forked = house.spec("one", "mine", template=kind)
            return await house.in_turn(forked, replace(forked, template=None))

    forked, started = warm.run(story)
    assert forked["path"] == started["path"]


def test_what_is_on_stdin_and_the_numbered_descriptors_are_its_own(tmp_path: Path) -> None:
    house, kind = House(tmp_path), template()
    secrets = {name: f"the secret of {name}\n".encode() * 10_000 for name in ("one", "two")}

    async def story() -> list[Seen]:
        async with house.open():
            house.templates.keep([kind])
            for name, port in zip(secrets, free_ports(2), strict=True):
                more: dict[str, Any] = {"listen": ("127.0.0.1", port)}
                spec = house.spec(name, template=kind, secret_input=secrets[name], **more)
                await house.warm(spec)
            return [await house.seen(name) for name in secrets]

    one, two = warm.run(story)
    assert [one["stdin"], two["stdin"]] == [text.decode() for text in secrets.values()]
    for seen in (one, two):
        number = bytes.fromhex(seen["environment"]["LLM_SUPERVISOR_LISTEN_FD"]).decode()
        assert seen["descriptors"].keys() == {"0", "1", "2", number}
        assert seen["descriptors"][number][1], "it is inherited, as by one that is started"
    assert one["descriptors"] != two["descriptors"]


def test_proc_shows_it_as_it_is_to_the_very_end(tmp_path: Path) -> None:
    """Also when Python is gone from it, and a library in C keeps it from ending."""
    house, kind = House(tmp_path), template()
    script = tmp_path / "lingers.py"
    script.write_text(
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(libc.pause, None, None)\n"
        "libc.__cxa_atexit(libc.fork, None, None)  # which tells that it has come to that\n"
    )

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spec = replace(house.spec("one", template=kind), argv=(sys.executable, str(script)))
            pid = await house.warm(spec)
            await warm.until(lambda: tree.children(pid))
            (found,) = (one for one in leftovers.find(warm.MARK) if one.pid == pid)
            assert (found.instance, found.is_leader, found.command) == ("one", True, spec.argv)

    warm.run(story)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import sys; sys.exit(7)", (7, None)),
        ("", (0, None)),
        ("raise ValueError", (1, None)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", (None, "SIGTERM")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", (None, "SIGINT")),
    ],
)
def test_how_it_ends_is_told_as_it_was(
    tmp_path: Path, code: str, end: tuple[int | None, str | None]
) -> None:
    house, kind = House(tmp_path), template()
    script = tmp_path / "ends.py"
    script.write_text(code)

    async def story() -> list[Exited]:
        async with house.open():
            house.templates.keep([kind])
            spec = replace(house.spec("one", template=kind), argv=(sys.executable, str(script)))
            await house.warm(spec)
            ends = [await house.exited("one")]
            await house.spawn(replace(spec, template=None), 2)
            return [*ends, await house.exited("one", 2)]

    assert [(one.code, one.signal) for one in warm.run(story)] == [end, end]


def test_a_leader_is_found_again_and_what_it_forks_is_not_taken_for_one(tmp_path: Path) -> None:
    house, kind = House(tmp_path), template()
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, signal\n"
        "child = os.fork()\n"
        "if not child: os.setsid(); print('there', flush=True)\n"
        "signal.pause()\n"
    )

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spec = replace(house.spec("one", template=kind), argv=(sys.executable, str(script)))
            pid = await house.warm(replace(spec, launch="digest", port=4711))
            await warm.until(lambda: "there" in house.log("one"))
            found = {one.pid: one for one in leftovers.find(warm.MARK) if one.instance == "one"}
            assert len(found) == 2
            assert [one for one in found if found[one].is_leader] == [pid]
            leader = found[pid]
            assert (leader.run, leader.port, leader.launch) == (1, 4711, "digest")
            assert leader.command == spec.argv

    warm.run(story)
