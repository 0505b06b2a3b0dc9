"""The records of workers as the supervisor finds them, and what the kernel says of a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import die_with_parent, until

from supervisor.core.progress import Look
from supervisor.runtime.progress import ProgressRecords

IDLE = "import signal; signal.pause()"
BUSY = "while True: pass"


@pytest.fixture
def records(tmp_path: Path) -> ProgressRecords:
    return ProgressRecords(tmp_path / "progress")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for one in processes:
        one.kill()
        one.wait()


def run(started: list[subprocess.Popen[bytes]], code: str) -> int:
    command = [sys.executable, "-S", "-I", "-c", code]
    started.append(subprocess.Popen(command, preexec_fn=die_with_parent))
    return started[-1].pid


def fields(pid: int, **more: object) -> dict[str, object]:
    now = time.monotonic()
    return {
        "n": 3,
        "pid": pid,
        "began": now,
        "in_flight": 0,
        "embeddings": 0,
        "oldest": None,
        "progress": now,
        "success": None,
        "failures": 0,
        "error": "",
        "end": 3,
        **more,
    }


def noted(records: ProgressRecords, name: str, pid: int, **more: object) -> Path:
    path = records.begin(name)
    path.write_text(json.dumps(fields(pid, **more)).ljust(1023) + "\n")
    return path


def look(records: ProgressRecords, name: str = "owl-0") -> Look:
    found = records.look(name)
    assert found is not None
    return found


def test_a_record_is_read_as_it_was_noted(records: ProgressRecords) -> None:
    noted(records, "owl-0", os.getpid(), in_flight=2, oldest=1.5, failures=4, error="HTTP 500")
    found = look(records)
    assert (found.record.in_flight, found.record.oldest) == (2, 1.5)
    assert (found.record.failures, found.record.error) == (4, "HTTP 500")
    assert not found.stopped
    assert found.at >= found.record.began, "both clocks are one"


def test_what_an_earlier_process_noted_is_gone_when_another_starts(
    records: ProgressRecords,
) -> None:
    path = noted(records, "owl-0", os.getpid())
    assert records.begin("owl-0") == path
    assert records.look("owl-0") is None


def test_only_its_owner_may_look_into_the_folder(records: ProgressRecords) -> None:
    assert records.begin("owl-0").parent.stat().st_mode & 0o777 == 0o700


def test_a_record_of_a_process_that_is_gone_is_none(
    records: ProgressRecords, started: list[subprocess.Popen[bytes]]
) -> None:
    pid = run(started, IDLE)
    noted(records, "owl-0", pid)
    assert records.look("owl-0")
    started[0].kill()
    started[0].wait()
    assert records.look("owl-0") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"n": 1, "pid',
        json.dumps(fields(os.getpid(), end=4)),
        json.dumps(fields(os.getpid()) | {"pid": "1"}),
        json.dumps(fields(os.getpid(), progress=None)),
        json.dumps(fields(os.getpid(), in_flight="many")),
        json.dumps(fields(os.getpid(), success="yesterday")),
        json.dumps(fields(os.getpid(), error=None)),
        json.dumps(fields(os.getpid(), progress=float("nan"))),
        json.dumps(fields(os.getpid(), progress=10**400)),
        json.dumps(fields(os.getpid()) | {"oldest": [1]}),
        "\0" * 1024,
        "[" * 5000,
    ],
)
def test_nonsense_is_no_record(records: ProgressRecords, content: str) -> None:
    records.begin("owl-0").write_text(content)
    assert records.look("owl-0") is None


def test_what_was_put_in_its_place_is_not_waited_for(records: ProgressRecords) -> None:
    os.mkfifo(records.begin("owl-0"))
    assert records.look("owl-0") is None


def test_a_folder_that_cannot_be_made_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = ProgressRecords(tmp_path / "file" / "progress")
    records.begin("owl-0")
    assert records.look("owl-0") is None
    records.forget("owl-0")


def test_a_stopped_process_is_seen_to_be_stopped(
    records: ProgressRecords, started: list[subprocess.Popen[bytes]]
) -> None:
    noted(records, "owl-0", run(started, IDLE))
    started[0].send_signal(signal.SIGSTOP)
    until(lambda: look(records).stopped, "it is stopped")
    started[0].send_signal(signal.SIGCONT)
    until(lambda: not look(records).stopped, "it goes on")


def test_who_uses_the_processor_is_at_work_and_who_waits_is_not(
    records: ProgressRecords, started: list[subprocess.Popen[bytes]]
) -> None:
    noted(records, "busy-0", run(started, BUSY))
    noted(records, "idle-0", run(started, IDLE))
    first = look(records, "busy-0").worked_at
    until(lambda: look(records, "busy-0").worked_at > first, "it is seen at work")

    def rests() -> bool:
        found = look(records, "idle-0")
        return found.at - found.worked_at > 0.5

    until(rests, "it is seen to rest")


def test_at_the_first_look_at_a_process_it_has_done_nothing_wrong(
    records: ProgressRecords, started: list[subprocess.Popen[bytes]]
) -> None:
    """Whoever takes over from a supervisor that was killed must not hold the time before against
    anybody."""
    for _ in range(2):
        noted(records, "owl-0", run(started, IDLE))
        found = look(records)
        assert found.worked_at == found.at


def test_what_is_forgotten_leaves_nothing(records: ProgressRecords) -> None:
    path = noted(records, "owl-0", os.getpid())
    records.forget("owl-0")
    assert not path.exists()
