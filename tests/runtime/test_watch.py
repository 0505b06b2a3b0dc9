"""Whether a changed file is noticed: real files, real inotify, no glance without an event."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE
from watchfiles import _rust_notify

from supervisor.runtime import watch
from supervisor.runtime.watch import FileWatch

Change = Callable[[Path], None]


class Waits:
    """Around the real one (which cannot be derived from): tells when it waits for events."""

    real = _rust_notify.RustNotify
    made = 0
    now = threading.Event()

    def __init__(self, *args: Any) -> None:
        Waits.made += 1
        self._events = Waits.real(*args)

    def __enter__(self) -> Waits:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def watch(self, *args: Any) -> Any:
        Waits.now.set()
        try:
            return self._events.watch(*args)
        finally:
            Waits.now.clear()


@pytest.fixture(autouse=True)
def _only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that comes by itself would hide an event that is missed."""
    monkeypatch.setattr(watch, "_LOOK_S", 3600.0)
    monkeypatch.setattr(_rust_notify, "RustNotify", Waits)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Waits until the files have been looked at so many times more."""
    look, count = watch._signatures, 0

    def counted(paths: Iterable[Path]) -> watch.Signatures:
        nonlocal count
        count += 1
        return look(paths)

    async def more(wanted: int) -> None:
        end = count + wanted
        await eventually(lambda: count >= end)

    monkeypatch.setattr(watch, "_signatures", counted)
    return more


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.002)


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


class Seen:
    """What the first of the files contained at each call."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.contents: list[str | None] = []
        self.watch = FileWatch(lambda: self.contents.append(read(files[0])))

    @property
    def calls(self) -> int:
        return len(self.contents)

    async def content(self, expected: str | None) -> None:
        """Wait until the last call has seen this, and it takes an event to see more."""
        await eventually(lambda: self.contents[-1:] == [expected])
        await eventually(Waits.now.is_set)

    async def call(self, number: int) -> None:
        await eventually(lambda: self.calls >= number)
        await eventually(Waits.now.is_set)
        assert self.calls == number


@asynccontextmanager
async def watching(*files: Path) -> AsyncIterator[Seen]:
    seen = Seen(*files)
    seen.watch.watch(files)
    try:
        await eventually(Waits.now.is_set)
        yield seen
    finally:
        await seen.watch.close()


def save(path: Path, text: str) -> None:
    """As editors do it: another file, then its name."""
    beside = path.with_name(f".{path.name}.swp")
    beside.write_text(text)
    os.rename(beside, path)


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def anew(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)


SAVES = [save, in_place, anew]


# ------------------------------------------------------------ ways to change a file


@pytest.mark.parametrize("way", SAVES)
def test_every_save_is_seen(tmp_path: Path, way: Callable[[Path, str], None]):
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            for i in range(1, 21):
                way(file, f"{i:02}")  # The same size all the time, and at times the same inode.
                await seen.content(f"{i:02}")
            if way is not anew:  # There the file is missing for a moment, which may be told.
                assert seen.contents == [f"{i:02}" for i in range(1, 21)]

    asyncio.run(main())


@pytest.mark.parametrize("pause", [0, 0.01])
def test_after_many_saves_the_last_is_seen(tmp_path: Path, pause: float):
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            for i in range(20):
                SAVES[i % 3](file, f"{i:02}a")
                await asyncio.sleep(pause)
                SAVES[i % 2](file, f"{i:02}b")
                await seen.content(f"{i:02}b")

    asyncio.run(main())


def test_permissions(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            file.chmod(0)
            await seen.call(1)
            file.chmod(0o600)
            await seen.call(2)

    asyncio.run(main())


def test_a_file_that_comes_and_goes(tmp_path: Path):
    file = tmp_path / "c.yaml"

    async def main() -> None:
        async with watching(file) as seen:
            save(file, "1")
            await seen.call(1)
            file.unlink()
            await seen.call(2)
            save(file, "2")
            await seen.call(3)
        assert seen.contents == ["1", None, "2"]

    asyncio.run(main())


def test_a_write_through_another_name(tmp_path: Path):
    """As through a file that is mounted into a container: our folder hears nothing of it."""
    (tmp_path / "elsewhere").mkdir()
    file, other = tmp_path / "c.yaml", tmp_path / "elsewhere" / "other.yaml"
    file.write_text("0")
    os.link(file, other)

    async def main() -> None:
        async with watching(file) as seen:
            for text in ("first", "again"):
                in_place(other, text)
                await seen.content(text)
            assert seen.calls == 2

    asyncio.run(main())


# ------------------------------------------------------------ folders and links


def folder_made_anew(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    file.write_text("new")


def folder_replaced(file: Path) -> None:
    beside = file.parent.with_name("beside")
    beside.mkdir()
    (beside / file.name).write_text("new")
    os.rename(file.parent, file.parent.with_name("old"))
    os.rename(beside, file.parent)


def folders_made_anew(file: Path) -> None:
    shutil.rmtree(file.parent.parent)
    file.parent.mkdir(parents=True)
    file.write_text("new")


@pytest.mark.parametrize("change", [folder_made_anew, folder_replaced, folders_made_anew])
def test_a_folder(tmp_path: Path, change: Change):
    file = tmp_path / "a" / "b" / "c.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("old")

    async def main() -> None:
        async with watching(file) as seen:
            change(file)
            await seen.content("new")
            save(file, "newer")  # What is there now is watched as well.
            await seen.content("newer")

    asyncio.run(main())


def test_a_folder_that_is_not_there_yet(tmp_path: Path):
    file = tmp_path / "a" / "b" / "c.yaml"

    async def main() -> None:
        async with watching(file) as seen:
            file.parent.mkdir(parents=True)
            file.write_text("1")
            await seen.content("1")
            shutil.rmtree(tmp_path / "a")
            await seen.content(None)
            (tmp_path / "a").write_text("no folder")
            (tmp_path / "a").unlink()
            file.parent.mkdir(parents=True)
            file.write_text("2")
            await seen.content("2")

    asyncio.run(main())


def link_to(link: Path, target: str) -> None:
    """Point a link elsewhere at once."""
    beside = link.with_name("..tmp")
    beside.symlink_to(target)
    os.rename(beside, link)


def test_a_config_map(tmp_path: Path):
    """Kubernetes: c.yaml -> ..data/c.yaml, ..data -> ..1, and the second link is swapped."""
    file = tmp_path / "c.yaml"
    for version in ("1", "2", "3"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "c.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("..1")
    file.symlink_to("..data/c.yaml")

    async def main() -> None:
        async with watching(file) as seen:
            for version in ("2", "3"):
                link_to(tmp_path / "..data", f"..{version}")
                await seen.content(version)
            shutil.rmtree(tmp_path / "..1")
            in_place(file, "written through both links")
            await seen.content("written through both links")
            assert seen.calls == 3

    asyncio.run(main())


def test_links_on_the_way(tmp_path: Path):
    """way/in/c.yaml: `way` is a link from elsewhere, `c.yaml` is one to elsewhere with a `..`."""
    for name in ("1", "2", "real"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "file").write_text(name)
    for name in ("1", "2"):
        (tmp_path / name / "in" / "c.yaml").symlink_to("../../real/in/file")
    way = tmp_path / "way"
    way.symlink_to(tmp_path / "1")

    async def main() -> None:
        async with watching(way / "in" / "c.yaml") as seen:
            save(tmp_path / "real" / "in" / "file", "saved where it really is")
            await seen.content("saved where it really is")
            link_to(tmp_path / "1" / "in" / "c.yaml", "file")
            await seen.content("1")
            link_to(way, str(tmp_path / "2"))
            await seen.content("saved where it really is")
            in_place(tmp_path / "real" / "in" / "file", "again")
            await seen.content("again")
            link_to(tmp_path / "2" / "in" / "c.yaml", "c.yaml")  # A loop.
            await seen.content(None)
            link_to(tmp_path / "2" / "in" / "c.yaml", "not there yet")
            save(tmp_path / "2" / "in" / "not there yet", "there")
            await seen.content("there")

    asyncio.run(main())


def test_without_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nobody tells us that a folder above the file's own was renamed; so it is on NFS."""
    monkeypatch.setattr(watch, "_LOOK_S", 0.1)
    for name in ("a", "z"):
        (tmp_path / name / "b").mkdir(parents=True)
        (tmp_path / name / "b" / "c.yaml").write_text(name)

    async def main() -> None:
        async with watching(tmp_path / "a" / "b" / "c.yaml") as seen:
            os.rename(tmp_path / "a", tmp_path / "old")
            os.rename(tmp_path / "z", tmp_path / "a")
            await seen.content("z")

    asyncio.run(main())


# ------------------------------------------------------------ what is no change


def test_other_files_are_no_change(tmp_path: Path, looks: Any):
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            save(file, "1")
            await seen.call(1)
            with (tmp_path / "x.log").open("w") as other:
                for _ in range(5):
                    other.write("line\n")
                    other.flush()
                    (tmp_path / ".c.yaml.swp").write_text("swap")
                    (tmp_path / ".c.yaml.swp").unlink()
                    await looks(1)
            read(file)
            save(file, "2")
            await seen.call(2)

    asyncio.run(main())


def test_a_name_that_is_no_text(tmp_path: Path, looks: Any, caplog: pytest.LogCaptureFixture):
    """watchfiles raises an error for each of its events."""
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            save(file, "1")
            await seen.call(1)
            other = os.fsencode(tmp_path) + b"/\xff.log"
            with open(other, "w"):  # noqa: ASYNC230
                await looks(1)
            save(file, "2")
            await seen.call(2)

    asyncio.run(main())
    assert not caplog.records


def test_a_pipe_in_the_place_of_the_file_is_not_opened(tmp_path: Path):
    file = tmp_path / "c.yaml"

    async def main() -> None:
        calls = 0

        def changed() -> None:
            nonlocal calls
            calls += 1

        one = FileWatch(changed)
        one.watch([file])
        os.mkfifo(file)
        await eventually(lambda: calls == 1)
        with pytest.raises(OSError, match="No such device"):  # Nobody reads it.
            os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        await one.close()

    asyncio.run(main())


# ------------------------------------------------------------ settled


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """The answers to whether somebody has a changed file open for writing."""
    ask, answers = watch._is_written, []

    def asked(path: Path) -> bool | None:
        answers.append(ask(path))
        return answers[-1]

    monkeypatch.setattr(watch, "_is_written", asked)
    return answers


def test_a_slow_writer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[bool | None]
):
    monkeypatch.setattr(watch, "_WRITER_S", 3600.0)
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            with file.open("w") as writer:
                for i in range(5):
                    writer.write(f"line {i}\n")
                    writer.flush()
                    answers = len(written) + 3
                    await eventually(lambda: len(written) >= answers)  # noqa: B023
                    assert all(written)
            await seen.call(1)
            save(file, "later")
            await seen.call(2)
        assert seen.contents == ["".join(f"line {i}\n" for i in range(5)), "later"]

    asyncio.run(main())


def test_half_a_file_is_waited_for_and_its_writer_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, looks: Any
):
    """However long it stays as it is, and also when that no longer counts as coming to rest."""
    monkeypatch.setattr(watch, "_BUSY_S", 0.0)
    monkeypatch.setattr(watch, "_WRITER_WARNING_S", 0.1)
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            with file.open("w") as writer:
                writer.write("one half,")
                writer.flush()
                await eventually(lambda: caplog.records)
                await looks(5)
                assert not seen.calls
                writer.write(" the other")
            await seen.call(1)
            assert seen.contents == ["one half, the other"]

    asyncio.run(main())
    (warning,) = caplog.records
    assert warning.getMessage() == (
        f"{file} is open for writing by another process; it is read when that closes it, "
        "after 60 s at the latest"
    )


@pytest.mark.parametrize("error", [errno.EACCES, errno.EINVAL])
def test_where_no_lease_is_to_be_had_a_file_has_to_be_quiet_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: Any, error: int
):
    """It belongs to another user, or its file system knows no leases."""

    def refused(file: int, command: int, argument: int) -> None:
        if command == fcntl.F_SETLEASE:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(watch.fcntl, "fcntl", refused)
    monkeypatch.setattr(watch, "_UNSURE_QUIET_S", 3600.0)
    monkeypatch.setattr(watch, "_BUSY_S", 3600.0)
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            save(file, "1")
            await looks(5)
            assert not seen.calls
            monkeypatch.setattr(watch, "_UNSURE_QUIET_S", 0.1)
            await seen.content("1")

    asyncio.run(main())


def test_a_writer_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[bool | None]
):
    monkeypatch.setattr(watch, "_WRITER_S", 0.2)
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            with file.open("a") as writer:
                writer.write("1")
                writer.flush()
                await seen.content("01")
                assert all(written)

    asyncio.run(main())


def test_a_file_that_never_rests_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "_QUIET_S", 0.1)  # Longer than between two saves, even under load.
    monkeypatch.setattr(watch, "_BUSY_S", 0.3)
    monkeypatch.setattr(watch, "_WRITER_S", 3600.0)
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            async with asyncio.timeout(DEADLINE):
                saves = 0
                while seen.calls < 2:
                    saves += 1
                    save(file, str(saves))
                    await asyncio.sleep(0.001)
            await seen.content(str(saves))

    asyncio.run(main())


def test_the_question_who_writes_harms_nobody(tmp_path: Path):
    """Who opens the file while we hold the lease makes the kernel send a signal, which would be
    SIGIO and end the process."""
    file = tmp_path / "c.yaml"
    file.write_text("0")
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys\nwhile True: open(sys.argv[1], 'a').close()", file]
    )
    try:
        ask = (
            "import sys\nfrom pathlib import Path\n"
            "from supervisor.runtime.watch import _is_written\n"
            "answers = [_is_written(Path(sys.argv[1])) for _ in range(20000)]\n"
            "print(True in answers, False in answers)"
        )
        asker = subprocess.run(
            [sys.executable, "-c", ask, file], capture_output=True, text=True, timeout=DEADLINE
        )
    finally:
        writer.kill()
        writer.wait()
    assert (asker.returncode, asker.stdout, asker.stderr) == (0, "True True\n", "")


# ------------------------------------------------------------ what is watched, and its end


def test_other_files_to_watch(tmp_path: Path, looks: Any):
    one, two = tmp_path / "1" / "c.yaml", tmp_path / "2" / "c.yaml"
    for file in (one, two):
        file.parent.mkdir()
        file.write_text("0")

    async def main() -> None:
        async with watching(one) as seen:
            save(one, "1")
            await seen.call(1)
            seen.watch.watch([one, two])
            save(two, "1")
            await seen.call(2)
            seen.watch.watch({two, one})
            save(one, "2")
            await seen.call(3)
            seen.watch.watch([two])
            save(one, "3")
            save(two, "2")
            await seen.call(4)
            seen.watch.watch([])
            save(two, "3")
            seen.watch.watch([one])
            save(one, "4")
            await seen.call(5)

    asyncio.run(main())


def test_nothing_is_called_after_the_end(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text("0")

    async def main() -> None:
        async with watching(file) as seen:
            save(file, "1")
            await seen.call(1)
            save(file, "2")
        calls = seen.calls
        assert not [t for t in threading.enumerate() if t.name == "file watch"]
        seen.watch.watch([file, tmp_path])
        save(file, "3")
        async with watching(file) as other:
            save(file, "4")
            await other.call(1)
        await seen.watch.close()
        assert seen.calls == calls

    asyncio.run(main())


def test_the_thread_does_not_keep_the_process(tmp_path: Path):
    """Without close(), and it is not shot down inside of watchfiles either."""
    program = """if True:
        import asyncio, sys, time
        from pathlib import Path
        from supervisor.runtime.watch import FileWatch

        class LongFarewell:
            def __del__(self, sleep=time.sleep):
                sleep(0.2)

        at_the_end = LongFarewell()

        async def main():
            changed = asyncio.Event()
            watch = FileWatch(changed.set)
            assert "watchfiles" not in sys.modules
            file = Path(sys.argv[1])
            watch.watch([file])
            file.write_text("1")
            await changed.wait()

        asyncio.run(main())
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "c.yaml"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_without_inotify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(watch, "_BLIND_LOOK_S", 0.02)
    monkeypatch.setattr(watch, "_RETRY_S", 0.1)
    caplog.set_level(logging.INFO, "supervisor")
    file = tmp_path / "c.yaml"
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)

    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        calls = 0

        def changed() -> None:
            nonlocal calls
            calls += 1

        one = FileWatch(changed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            one.watch([file])
            attempts = Waits.made + 3
            await eventually(lambda: Waits.made >= attempts)
            os.rename(tmp_path / "1", file)
            await eventually(lambda: calls == 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await eventually(lambda: "at once again" in caplog.text)
        os.rename(tmp_path / "2", file)
        await eventually(lambda: calls == 2)
        await one.close()

    asyncio.run(main())
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "fs.inotify.max_user_watches" in warning.getMessage()
    assert "llm-supervisor reload" in warning.getMessage()
    assert "Too many open files" in warning.getMessage()
