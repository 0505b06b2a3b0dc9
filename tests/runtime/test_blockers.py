"""What a process is doing that does not end, with real processes in each of these states."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from harness import die_with_parent, until

from supervisor.runtime.blockers import blockers


@contextlib.contextmanager
def running(code: str) -> Iterator[int]:
    """A process (and what it forks) that has printed something; its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def doing(pid: int, what: str) -> str:
    """How it is described, when it does what is expected."""

    def described() -> str | None:
        (one,) = blockers([pid])
        return str(one) if what in one.doing else None

    found: str = until(described, f"it is {what}")
    return found


SLEEP = "import signal; print('here', flush=True); signal.pause()"


def test_a_sleeping_process_is_told_with_its_command() -> None:
    with running(SLEEP) as pid:
        assert doing(pid, "sleeping").startswith(f"pid {pid} ({sys.executable} -c import signal;")


def test_a_stopped_process() -> None:
    with running(SLEEP) as pid:
        os.kill(pid, signal.SIGSTOP)
        assert doing(pid, "stopped (SIGSTOP)")


def test_a_busy_process() -> None:
    with running("print('here', flush=True)\nwhile True: pass") as pid:
        assert doing(pid, "running")


def test_a_process_in_the_kernel_that_no_signal_reaches() -> None:
    """The parent of a vfork is in such a sleep until its child has become another program."""
    code = """
    import ctypes
    libc = ctypes.PyDLL(None)
    print('here', flush=True)
    if libc.vfork() == 0:
        libc.pause()
    """
    with running(code) as pid:
        assert "the kernel waits for a device or a disk" in doing(
            pid, "in an uninterruptible sleep"
        )


def test_a_zombie_has_its_name_left() -> None:
    with running("print('here')") as pid:
        assert doing(pid, "dead, and about to be reaped").startswith(f"pid {pid} (python")


def test_one_that_is_gone_is_left_out() -> None:
    with running(SLEEP) as pid:
        pass
    assert not Path(f"/proc/{pid}").exists()
    assert blockers([pid]) == []
