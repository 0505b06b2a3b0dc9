"""What a process that was forked from a template sees of itself, against one that was started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import warm
from warm import House, template

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
    forked, started = workers.forked, workers.started
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
