"""The way of output: real processes and pipes, and a log writer that is stopped and killed."""

import asyncio
import contextlib
import fcntl
import os
import re
import resource
import select
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from supervisor.runtime import logwriter
from supervisor.runtime.logs import InstanceLogs, follow, last_words, recent

DEADLINE = 60  # seconds; a test that waits longer than that for anything has failed
MIB = 1024 * 1024
MARK = re.compile(rb"\n=== \S+ llm-supervisor: ([^\n]*) ===\n")

# Instances.
COUNT = """
import os, sys
name, lines, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
text = b"".join(b"%s %d %s\\n" % (name.encode(), n, b"." * (n % 50)) for n in range(lines))
for start in range(0, len(text), at_once):
    rest = text[start:start + at_once]
    while rest:
        rest = rest[os.write(1, rest):]
"""
ECHO = """
import os, sys
while line := sys.stdin.readline():
    os.write(1, line.encode())
"""

SUPERVISOR = """
import asyncio, os, subprocess, sys
from pathlib import Path
from supervisor.runtime.logs import InstanceLogs

async def main(root, *argv):
    logs = InstanceLogs(Path(root, "run"), Path(root, "logs"))
    await logs.start()
    out = logs.open("tiny-owl-0", max_bytes=1_000_000, keep=1000)
    child = subprocess.Popen(argv, stdout=out, stderr=out)
    os.close(out)
    print(logs.writer_pid, child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""

GUARD = """
import os, signal, sys
guarded = []
while pid := sys.stdin.readline():
    try:
        guarded.append(os.pidfd_open(int(pid)))
    except ProcessLookupError:
        pass
for process in guarded:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
guard_stdin: IO[bytes]


@pytest.fixture(scope="module", autouse=True)
def _guard() -> Iterator[None]:
    """Ends what is left of the tests, even if these are killed while a process is stopped."""
    global guard_stdin
    with subprocess.Popen(python(GUARD), stdin=subprocess.PIPE, start_new_session=True) as guard:
        assert guard.stdin
        guard_stdin = guard.stdin
        yield


def guarded(pid: int | None) -> None:
    guard_stdin.write(b"%d\n" % pid if pid else b"")
    guard_stdin.flush()


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script, *map(str, arguments)]


def counted(name: str, lines: int) -> bytes:
    """What COUNT writes."""
    return b"".join(b"%s %d %s\n" % (name.encode(), n, b"." * (n % 50)) for n in range(lines))


@contextlib.asynccontextmanager
async def instance_logs(root: Path, **options: object) -> AsyncIterator[InstanceLogs]:
    """Logs below `root`, with a reaper as the supervisor has one; all is drained at the end."""
    logs = InstanceLogs(root / "run", root / "logs", **options)  # type: ignore[arg-type]

    def reap() -> None:
        pid = logs.writer_pid
        if pid and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG):
            logs.writer_exited()

    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)
    await logs.start()
    guarded(logs.writer_pid)
    try:
        yield logs
        assert await logs.close(DEADLINE)
    finally:
        if pid := logs.writer_pid:
            kill(pid)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED)


def start(
    logs: InstanceLogs,
    name: str,
    argv: list[str],
    *,
    max_bytes: int = MIB,
    keep: int = 1000,
    stdin: int | None = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    out = logs.open(name, max_bytes=max_bytes, keep=keep)
    try:
        child = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=out)
    finally:
        os.close(out)
    guarded(child.pid)
    return child


def say(logs: InstanceLogs, name: str, data: bytes, *, max_bytes: int = MIB, keep: int = 9) -> None:
    """Write as an instance would; not more than the pipe has room for."""
    out = logs.open(name, max_bytes=max_bytes, keep=keep)
    os.write(out, data)
    os.close(out)


async def ended(child: subprocess.Popen[bytes]) -> None:
    await asyncio.to_thread(child.wait, DEADLINE)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def files(log: Path) -> list[Path]:
    """The files of a log, oldest first."""
    older = sorted(log.parent.glob(f"{log.name}.*"), key=lambda file: -int(file.suffix[1:]))
    return [*older, log] if log.exists() else older


def content(log: Path) -> bytes:
    return b"".join(file.read_bytes() for file in files(log))


async def ends_with(log: Path, line: bytes) -> None:
    """Wait for that last line; the log may be rotated meanwhile."""
    await until(lambda: content(log).splitlines()[-1:] == [line])


def tail(log: Path, lines: int) -> list[str]:
    async def story() -> list[str]:
        return [line async for line in recent(log, lines)]

    return asyncio.run(story())


def unread(fifo: Path) -> int:
    """How many bytes nobody has taken out of the pipe yet."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(fd)


async def written(root: Path, name: str) -> None:
    """Wait until all output so far has got out of the pipe."""
    await until(lambda: not unread(root / "run" / "out" / name))


# ------------------------------------------------------------------ what is written arrives


def test_lines_of_several_children_arrive_complete_and_in_order(tmp_path: Path) -> None:
    names = ["controller", "tiny-owl-0", "tiny-owl-1"]

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            children = [
                start(logs, name, python(COUNT, name, 20_000, size), max_bytes=50_000)
                for name, size in zip(names, (137, 4096, 100_000), strict=True)
            ]
            for child in children:
                await ended(child)

    asyncio.run(story())
    for name in names:
        log = tmp_path / "logs" / f"{name}.log"
        assert content(log) == counted(name, 20_000)
        assert len(files(log)) > 10
        for file in files(log):
            assert file.read_bytes().endswith(b"\n"), "a line was split"
            assert file.stat().st_size <= 50_000 + 100, "one line more than allowed, at most"
    assert not list((tmp_path / "run" / "out").iterdir())


def test_bytes_arrive_untouched(tmp_path: Path) -> None:
    odd = bytes(range(256)) + b"\r50%\r100%\r\n\xff\xfe\0 no line break at the end"

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "odd", odd)

    asyncio.run(story())
    assert (tmp_path / "logs" / "odd.log").read_bytes() == odd


def test_a_new_run_continues_the_file(tmp_path: Path) -> None:
    async def story(word: bytes) -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "x", word)

    asyncio.run(story(b"one\n"))
    asyncio.run(story(b"two\n"))
    assert (tmp_path / "logs" / "x.log").read_bytes() == b"one\ntwo\n"


def test_a_log_writer_that_cannot_keep_up_with_commands_does_not_block(tmp_path: Path) -> None:
    names = [f"instance-{n}" for n in range(300)]

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            assert logs.writer_pid
            os.kill(logs.writer_pid, signal.SIGSTOP)
            for name in names:
                say(logs, name, name.encode())
            os.kill(logs.writer_pid, signal.SIGCONT)

    asyncio.run(story())
    for name in names:
        assert (tmp_path / "logs" / f"{name}.log").read_text() == name


# ------------------------------------------------------------------ rotation


def test_a_line_that_comes_in_pieces_stays_in_one_file(tmp_path: Path) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            for piece in (b"first\n", b"sec", b"ond, which is too lo", b"ng\nthird\n"):
                say(logs, "x", piece, max_bytes=12)
                await written(tmp_path, "x")

    asyncio.run(story())
    log = tmp_path / "logs" / "x.log"
    assert [file.read_bytes() for file in files(log)] == [
        b"first\nsecond, which is too long\n",
        b"third\n",
    ]


def test_a_line_longer_than_any_file_is_kept_whole(tmp_path: Path) -> None:
    script = f"import sys; sys.stdout.write('a\\n' + 'b' * {5 * MIB} + '\\nc\\n')"

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            await ended(start(logs, "x", python(script), max_bytes=1000))

    asyncio.run(story())
    log = tmp_path / "logs" / "x.log"
    assert [file.read_bytes() for file in files(log)] == [b"a\n", b"b" * 5 * MIB + b"\n", b"c\n"]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_as_many_old_files_are_kept_as_asked_for(tmp_path: Path, keep: int) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "x", b"1\n2\n3\n4\n5\n6\n", max_bytes=2, keep=keep)

    asyncio.run(story())
    log = tmp_path / "logs" / "x.log"
    assert content(log) == b"1\n2\n3\n4\n5\n6\n"[-2 * (keep + 1) :]
    assert len(files(log)) == keep + 1


def test_limits_can_change_while_an_instance_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            child = start(logs, "x", python(ECHO), max_bytes=2, stdin=subprocess.PIPE)
            assert child.stdin
            with child.stdin as instance:
                instance.write(b"1\n2\n3\n4\n")
                instance.flush()
                log = logs.path("x")
                await ends_with(log, b"4")
                assert len(files(log)) == 4
                logs.define("x", max_bytes=4, keep=1)
                # The log writer hears of it in its own time, so a second pipe tells when it has.
                say(logs, "y", b"now\n")
                await until(lambda: logs.path("y").exists())
                instance.write(b"5\n6\n7\n")
            await ended(child)

    asyncio.run(story())
    log = tmp_path / "logs" / "x.log"
    assert [file.read_bytes() for file in files(log)] == [b"4\n5\n", b"6\n7\n"]


def test_a_rotation_that_a_kill_has_interrupted_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.write_text("2\n")
    log.with_name("x.log.2").write_text("1\n")  # was x.log.1; x.log was to follow

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            assert [line async for line in recent(log, 9)] == ["1", "2"]
            say(logs, "x", b"3\n4\n", max_bytes=2)

    asyncio.run(story())
    assert [file.read_text() for file in files(log)] == ["1\n", "2\n", "3\n", "4\n"]


def test_where_rotation_is_impossible_the_log_grows(tmp_path: Path) -> None:
    name = "x" * 251  # the longest that leaves room for ".log", but none for ".log.1"

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, name, b"1\n2\n3\n", max_bytes=2)

    asyncio.run(story())
    assert content(tmp_path / "logs" / f"{name}.log") == b"1\n2\n3\n"


# ------------------------------------------------------------------ marks


def test_marks_stand_before_and_after_the_output_they_speak_of(tmp_path: Path) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            for run in range(5):
                logs.define("x", max_bytes=MIB, keep=1)
                logs.mark("x", f"start {run}")
                await ended(start(logs, "x", python(COUNT, run, 1000, 5000)))
                logs.mark("x", f"exit {run}")

    asyncio.run(story())
    expected = b"".join(
        b"<start %d>" % run + counted(str(run), 1000) + b"<exit %d>" % run for run in range(5)
    )
    assert MARK.sub(rb"<\1>", content(tmp_path / "logs" / "x.log")) == expected


def test_a_mark_is_not_glued_to_the_unfinished_line_of_a_crashed_process(tmp_path: Path) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "x", b"Segmentation fau")
            logs.mark("x", "exited by signal 11\nand more")

    asyncio.run(story())
    first, second = last_words(tmp_path / "logs" / "x.log", 9)
    assert first == "Segmentation fau"
    assert re.fullmatch(
        r"=== \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d "
        r"llm-supervisor: exited by signal 11 and more ===",
        second,
    )


def test_a_mark_waits_without_blocking_while_the_pipe_is_full(tmp_path: Path) -> None:
    size = 3 * MIB
    script = f"import os; rest = b'x' * {size}\nwhile rest: rest = rest[os.write(1, rest):]"

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            assert logs.writer_pid
            os.kill(logs.writer_pid, signal.SIGSTOP)
            child = start(logs, "x", python(script))
            fifo = tmp_path / "run" / "out" / "x"
            fd = os.open(fifo, os.O_RDWR)
            await until(lambda: not select.select([], [fd], [], 0)[1])
            os.close(fd)
            logs.mark("x", "first")
            logs.mark("x", "second " + "long " * 2000)
            os.kill(logs.writer_pid, signal.SIGCONT)
            await ended(child)

    asyncio.run(story())
    log = tmp_path / "logs" / "x.log"
    raw = content(log)
    # The long one was cut to what a pipe takes in one piece, and so has lost its ending.
    raw, cut = re.subn(rb"\n=== \S+ llm-supervisor: second [long ]{3900,}\n", b"", raw)
    raw, whole = MARK.subn(b"", raw)
    assert (whole, cut) == (1, 1)
    assert raw == b"x" * size


# ------------------------------------------------------------------ the log writer dies


def test_killing_the_log_writer_amid_a_flood_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[int] = []
    monkeypatch.setattr("supervisor.runtime.logs._RESTART_PAUSE", 0)  # the more deaths the better

    async def story() -> None:
        async with instance_logs(tmp_path, on_writer_exit=deaths.append) as logs:
            children = [
                start(logs, name, python(COUNT, name, 100_000, 60), max_bytes=50_000)
                for name in ("a", "b")
            ]
            while running(children):
                await a_log_has_grown(logs, children)
                if logs.writer_pid:
                    os.kill(logs.writer_pid, signal.SIGKILL)

    asyncio.run(story())
    for name in ("a", "b"):
        assert content(tmp_path / "logs" / f"{name}.log") == counted(name, 100_000)
    assert len(deaths) > 1


def running(children: list[subprocess.Popen[bytes]]) -> bool:
    return any([child.poll() is None for child in children])  # noqa: C419 - reap them all


async def a_log_has_grown(logs: InstanceLogs, children: list[subprocess.Popen[bytes]]) -> None:
    def ends() -> list[list[str]]:
        return [last_words(logs.path(name), 1) for name in ("a", "b")]

    before = ends()
    await until(lambda: ends() != before or not running(children))


def test_output_of_an_instance_that_ended_while_there_was_no_log_writer(tmp_path: Path) -> None:
    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            assert logs.writer_pid
            os.kill(logs.writer_pid, signal.SIGSTOP)
            await ended(start(logs, "x", python("print('last words')")))
            os.kill(logs.writer_pid, signal.SIGKILL)
            logs.forget("x")

    asyncio.run(story())
    assert content(tmp_path / "logs" / "x.log") == b"last words\n"


def test_signals_from_a_terminal_or_service_manager_do_not_end_the_log_writer(
    tmp_path: Path,
) -> None:
    deaths: list[int] = []

    async def story() -> None:
        async with instance_logs(tmp_path, on_writer_exit=deaths.append) as logs:
            assert logs.writer_pid
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(logs.writer_pid, number)
            say(logs, "x", b"still here\n")
            await written(tmp_path, "x")

    asyncio.run(story())
    assert not deaths


def test_a_log_writer_that_cannot_run_is_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[int] = []

    async def story() -> None:
        with monkeypatch.context() as broken:
            broken.setattr("supervisor.runtime.logs._LOG_WRITER", tmp_path / "missing.py")
            logs = instance_logs(tmp_path, on_writer_exit=deaths.append)
            async with logs as it:
                say(it, "x", b"waited\n")
                await until(lambda: len(deaths) >= 2)
                broken.undo()

    asyncio.run(story())
    assert content(tmp_path / "logs" / "x.log") == b"waited\n"
    assert "missing.py" in (tmp_path / "run" / "log-writer.err").read_text()


# ------------------------------------------------------------------ the supervisor stops or dies


class Helper:
    """A supervisor as a process of its own, and the instance that it has started."""

    def __init__(self, root: Path, argv: list[str]) -> None:
        self.log = root / "logs" / "tiny-owl-0.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(root), *argv],
            stdin=subprocess.PIPE,  # goes on to the instance
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert self.process.stdin
        assert self.process.stdout
        self.instance: IO[bytes] = self.process.stdin
        writer, child = map(int, self.process.stdout.readline().split())
        for pid in (self.process.pid, writer, child):
            guarded(pid)
        self.writer, self.child = os.pidfd_open(writer), os.pidfd_open(child)

    def tell(self, line: bytes) -> None:
        self.instance.write(line)
        self.instance.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.instance.close()
        self.kill()
        assert self.process.stdout
        self.process.stdout.close()
        os.close(self.writer)
        os.close(self.child)


@pytest.fixture
def echoing(tmp_path: Path) -> Iterator[Helper]:
    with contextlib.closing(Helper(tmp_path, python(ECHO))) as helper:
        yield helper


def gone(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], DEADLINE)[0])


def test_output_flows_on_while_the_supervisor_is_stopped(echoing: Helper) -> None:
    echoing.tell(b"one\n")
    asyncio.run(ends_with(echoing.log, b"one"))
    echoing.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, echoing.process.pid, os.WSTOPPED)
    more = counted("more", 100_000)  # several times what the pipe holds
    echoing.tell(more)
    asyncio.run(ends_with(echoing.log, more.splitlines()[-1]))
    assert content(echoing.log) == b"one\n" + more
    echoing.process.send_signal(signal.SIGCONT)


def test_output_flows_on_after_the_supervisor_was_killed(echoing: Helper) -> None:
    echoing.tell(b"one\n")
    asyncio.run(ends_with(echoing.log, b"one"))
    echoing.kill()
    more = counted("more", 100_000)
    echoing.tell(more)
    echoing.instance.close()
    assert gone(echoing.child)
    assert gone(echoing.writer), "the log writer outlives the last instance"
    assert content(echoing.log) == b"one\n" + more


def test_the_next_supervisor_takes_over_amid_the_flood(tmp_path: Path) -> None:
    argv = python(COUNT, "n", 200_000, 60)

    async def story(helper: Helper) -> None:
        await until(lambda: content(helper.log))
        helper.kill()
        async with instance_logs(tmp_path) as logs:
            assert logs.names == {"tiny-owl-0"}
            logs.define("tiny-owl-0", max_bytes=200_000, keep=1000)
            assert await asyncio.to_thread(gone, helper.writer)
            assert await asyncio.to_thread(gone, helper.child)

    with contextlib.closing(Helper(tmp_path, argv)) as helper:
        asyncio.run(story(helper))
        assert content(helper.log) == counted("n", 200_000)


def test_closing_does_not_wait_forever_for_a_stray_and_keeps_its_log(echoing: Helper) -> None:
    async def story(root: Path) -> None:
        echoing.tell(b"before\n")
        await ends_with(echoing.log, b"before")
        echoing.kill()
        logs = InstanceLogs(root / "run", root / "logs")
        await logs.start()
        guarded(logs.writer_pid)
        assert logs.writer_pid
        writer = os.pidfd_open(logs.writer_pid)
        assert await asyncio.to_thread(gone, echoing.writer)
        assert not await logs.close(patience=0.01)
        echoing.tell(b"after closing\n")
        await ends_with(echoing.log, b"after closing")
        echoing.instance.close()
        assert await asyncio.to_thread(gone, writer)
        kill(logs.writer_pid)
        os.close(writer)

    asyncio.run(story(echoing.log.parents[1]))


# ------------------------------------------------------------------ trouble with files


def test_on_a_full_disk_children_go_on_and_the_log_says_how_much_it_lost(tmp_path: Path) -> None:
    """A limit on the size of the log writer's files is a disk that is full and empty at will."""

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            assert logs.writer_pid
            no_limit = resource.prlimit(logs.writer_pid, resource.RLIMIT_FSIZE)
            resource.prlimit(logs.writer_pid, resource.RLIMIT_FSIZE, (50_000, no_limit[1]))
            await ended(start(logs, "x", python(COUNT, "x", 100_000, 1000)))
            await written(tmp_path, "x")
            resource.prlimit(logs.writer_pid, resource.RLIMIT_FSIZE, no_limit)
            say(logs, "x", b"enough room\n")

    asyncio.run(story())
    sent = counted("x", 100_000)
    log = content(tmp_path / "logs" / "x.log")
    kept, lost, after = re.split(rb"\nllm-supervisor: (\d+) bytes of output lost: .*\n", log)
    assert sent.startswith(kept)
    assert len(kept) + int(lost) == len(sent)
    assert after == b"enough room\n"


def test_the_cause_of_a_loss_is_named(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.symlink_to("/dev/full")

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "x", b"12345\n")
            await written(tmp_path, "x")
            log.unlink()

    asyncio.run(story())
    assert log.read_text() == "llm-supervisor: 6 bytes of output lost: No space left on device\n"


@pytest.mark.parametrize("how", ["deleted", "renamed", "directory deleted"])
def test_a_log_that_somebody_takes_away_is_begun_anew(tmp_path: Path, how: str) -> None:
    log = tmp_path / "logs" / "x.log"

    async def story() -> None:
        async with instance_logs(tmp_path) as logs:
            say(logs, "x", b"before\n")
            await written(tmp_path, "x")
            if how == "renamed":
                log.rename(tmp_path / "elsewhere")
            else:
                log.unlink()
            if how == "directory deleted":
                log.parent.rmdir()
            say(logs, "x", b"after\n")

    asyncio.run(story())
    assert log.read_bytes() == b"after\n"


def test_a_file_system_that_cannot_splice_gets_the_bytes_all_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    out = os.open(tmp_path / "fifo", os.O_RDWR)
    scratch = os.pipe()
    pipe = logwriter.Pipe(str(tmp_path / "fifo"), scratch)
    os.write(out, b"one\ntwo\n")
    # Like such a file system, the kernel refuses to splice to a file that is open for appending.
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pipe.move(b"one\n", file, 0)
    assert (tmp_path / "file").read_bytes() == b"one\n"
    assert pipe.look() == b"two\n"
    for fd in (out, pipe.fd, file, *scratch):
        os.close(fd)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"])
def test_a_name_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    async def story() -> None:
        logs = InstanceLogs(tmp_path / "run", tmp_path / "logs")
        with pytest.raises(ValueError, match="cannot keep a log"):
            logs.open(name, max_bytes=1, keep=1)

    asyncio.run(story())


# ------------------------------------------------------------------ reading


def write_files(log: Path, *contents: str) -> None:
    """The files of a log, oldest first."""
    for number, text in enumerate(reversed(contents)):
        file = log.with_name(f"{log.name}.{number}") if number else log
        file.write_text(text)
        os.utime(file, (1e9 - number, 1e9 - number))


@pytest.mark.parametrize("last", ["", "4\n", "4\nunfinished"])
@pytest.mark.parametrize("lines", range(9))
def test_tail_reaches_back_over_rotated_files(tmp_path: Path, lines: int, last: str) -> None:
    write_files(tmp_path / "x.log", "1\n2\n", "3\n", last)
    everything = ["1", "2", "3", *last.split()]
    assert tail(tmp_path / "x.log", lines) == (everything[-lines:] if lines else [])


def test_tail_of_no_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "x.log", 5) == []


def test_tail_reads_long_lines_and_what_is_not_text(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    long = "ä" * 100_000
    log.write_bytes(f"first\n{long}\n\n".encode() + b"\xff\r\n")
    assert tail(log, 3) == [long, "", "\N{REPLACEMENT CHARACTER}\r"]
    assert tail(log, 4)[0] == "first"


def test_follow_neither_misses_nor_repeats_a_line_across_rotations(tmp_path: Path) -> None:
    lines = counted("n", 100_000).decode().splitlines()

    async def story() -> list[str]:
        async with instance_logs(tmp_path) as logs:
            following = asyncio.create_task(first_lines(logs.path("n"), 0, len(lines)))
            child = start(logs, "n", python(COUNT, "n", len(lines), 60), max_bytes=20_000)
            await ended(child)
            return await following

    assert asyncio.run(story()) == lines


async def first_lines(log: Path, tailed: int, count: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(DEADLINE):
        async with contextlib.aclosing(follow(log, tailed)) as lines:
            async for line in lines:
                found.append(line)
                if len(found) == count:
                    break
    return found


def test_follow_begins_with_the_tail_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    write_files(log, "1\n2\n", "3\nun")

    async def story() -> list[str]:
        async with asyncio.timeout(DEADLINE), contextlib.aclosing(follow(log, 2)) as lines:
            first = await anext(lines)
            with log.open("a") as file:
                file.write("finished\n4\n")
            return [first, await anext(lines), await anext(lines)]

    # "un" counts as the last line when the two are chosen.
    assert asyncio.run(story()) == ["3", "unfinished", "4"]


def test_follow_finds_its_way_when_files_are_deleted_or_emptied(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    write_files(log, "old\n", "1\n")

    async def story() -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(DEADLINE):
            async with contextlib.aclosing(follow(log, 1)) as lines:
                async for line in lines:
                    found.append(line)
                    if line == "1":
                        log.unlink()
                        log.write_text("2, anew\n")
                    elif line == "2, anew":
                        log.write_text("3\n")
                    elif line == "3":
                        return found
        raise AssertionError

    assert asyncio.run(story()) == ["1", "2, anew", "3"]


def test_last_words_cost_little_whatever_is_in_the_log(tmp_path):
    log = tmp_path / "x.log"
    log.write_bytes(b"first\n" + b"\r#" * 10_000_000 + b"\nlast\n")
    *cut, last = last_words(log, 5)
    assert last == "last"
    assert sum(map(len, cut)) <= 64 * 1024


def test_last_words_go_on_in_the_file_before(tmp_path):
    (tmp_path / "x.log.1").write_text("one\ntwo\n")
    (tmp_path / "x.log").write_text("three\n")
    assert last_words(tmp_path / "x.log", 2) == ["two", "three"]
    assert last_words(tmp_path / "none.log", 2) == []
