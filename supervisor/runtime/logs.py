"""The logs of instances: the supervisor's side of writing them, and how to read them.

Writing. Every instance writes to a named pipe of its own, `RUN_DIR/out/<instance>`, and one log
writer (`logwriter.py`, a process of its own) moves what comes out of the pipes to the log files.
Nothing flows through the supervisor, so output goes on while it is busy, stopped or gone. An
instance has its pipe open for reading too (`O_RDWR`), so it never gets a SIGPIPE: without a log
writer, output waits in the pipe. So has the supervisor, for the last words of an instance that has
ended to survive the death of the log writer as well; and through that end it writes its marks, in
their place amid the output.

A mark is an empty line and a line, `"\\n=== … ===\\n"`. The line break in front is always there:
only so is a mark never glued to the unfinished last line of a crashed process, and still exactly
separable from what the instance itself has written.

Reading. A log is the sequence of its files `x.log.2`, `x.log.1`, `x.log`, which `recent` and
`follow` read as one stream while the log writer goes on rotating them. Both look for the place that
many lines before the end, going backwards, and read forward from there.
"""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import signal
import sys
import termios
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path

_LOG_WRITER = Path(__file__).with_name("logwriter.py")
_PIPE_BYTES = 1024 * 1024  # the most that /proc/sys/fs/pipe-max-size allows everybody by default
_PIPE_BUF = 4096  # bytes that Linux puts into a pipe whole or not at all
_POLL = 0.02  # seconds, when letting go of a pipe, which tells nobody that it has become empty
_RESTART_PAUSE = 0.5  # seconds before a log writer that has not lasted longer than that is replaced
_FOLLOW_POLL = 0.2  # seconds
_BLOCK = 64 * 1024  # bytes read at once
_LONGEST = 256 * 1024  # bytes of a line that are kept until it ends; then they are passed on so far


class InstanceLogs:
    """Where the output of a cluster's instances goes. To be used from one running event loop.

    The log writer is a child of the supervisor, which reaps all its children in one place; whoever
    does that is told the pid of each in `on_writer_start`, and calls `writer_exited()` once it has
    reaped it. Unless we are closing, that starts a successor, at once or a moment later, and
    `on_writer_exit` is told the pid of the one that should not have ended. `on_loss` is told why
    output is being lost, as from a full disk, and None when it no longer is.
    """

    def __init__(
        self,
        run_dir: Path,
        log_dir: Path,
        *,
        on_writer_start: Callable[[int], None] | None = None,
        on_writer_exit: Callable[[int], None] | None = None,
        on_loss: Callable[[str | None], None] | None = None,
    ) -> None:
        self._out_dir = run_dir.absolute() / "out"
        self._log_dir = log_dir.absolute()
        self._on_writer_start = on_writer_start
        self._on_writer_exit = on_writer_exit
        self._on_loss = on_loss
        self._losing: set[str] = set()
        self._outputs: dict[str, _Output] = {}
        self._writer: _LogWriter | None = None
        self._closing = False

    @property
    def writer_pid(self) -> int | None:
        """The log writer's pid; None while there is none."""
        return self._writer.pid if self._writer else None

    @property
    def names(self) -> frozenset[str]:
        """The instances that have a pipe; after `start()`, those that an earlier supervisor left.

        `define` those that the cluster still has, and `forget` the others.
        """
        return frozenset(self._outputs)

    def path(self, name: str) -> Path:
        """The log file of `name`. Raises ValueError for a name that could lead elsewhere."""
        return self._log_dir / f"{_checked(name)}.log"

    async def start(self) -> None:
        """Start the log writer, and take over the pipes that an earlier supervisor has left.

        Its instances may still be running, or have left output behind that nobody has read. A log
        writer of its own makes way for ours. Raises OSError where the directories or the process
        cannot be created.
        """
        self._out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for fifo in self._fifos():
            self.define(fifo.name, max_bytes=sys.maxsize, keep=0)
        self._start_writer()

    def define(self, name: str, *, max_bytes: int, keep: int) -> None:
        """Have a log for `name`, or give the one there is new limits.

        The file is rotated before a line that would make it pass `max_bytes`; `keep` older ones
        remain. Raises OSError where the pipe cannot be created.
        """
        log, fifo = self.path(name), self._out_dir / name
        self._out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # a cleaner may have been here
        _make_fifo(fifo)
        command = {"fifo": str(fifo), "log": str(log), "max_bytes": max_bytes, "keep": keep}
        output = self._outputs.get(name)
        if output is not None and not output.is_at(fifo):
            output.inlet.close()
            output = None
        if output is None:
            output = self._outputs[name] = _Output(fifo)
        output.command = json.dumps(command).encode() + b"\n"
        output.leaving = False
        if self._writer:
            self._writer.commands.send(output.command)

    def open(self, name: str, *, max_bytes: int, keep: int) -> int:
        """`define`, and return a new file descriptor to be an instance's stdout and stderr.

        Writing to it blocks while the pipe is full. The caller closes it after the spawn.
        """
        self.define(name, max_bytes=max_bytes, keep=keep)
        return os.open(self._out_dir / name, os.O_RDWR)

    def mark(self, name: str, text: str) -> None:
        """Put a line of our own, with the time, into the output of a defined instance.

        It comes after all that the instance has written so far. Never blocks: a mark for which the
        pipe has no room waits until there is some. Raises KeyError for an unknown name.
        """
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = " ".join(f"=== {now} llm-supervisor: {text} ===".splitlines())
        whole = line.encode(errors="replace")[: _PIPE_BUF - 2]
        self._outputs[name].inlet.send(b"\n" + whole + b"\n")

    def restored(self, pids: Mapping[str, int]) -> None:
        """The run directory was removed and made anew. ``pids``: of the instances that run.

        Their pipes have no name any more, and nothing can give them one; but a process that has one
        open has a name for it. Without that the next log writer could not read it.
        """
        self._out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, pid in pids.items():
            with contextlib.suppress(FileExistsError):  # one that was started since has another
                (self._out_dir / name).symlink_to(f"/proc/{pid}/fd/1")
        if self._writer:
            lock = {"lock": str(_lock_of(self._out_dir.parent))}
            self._writer.commands.send(json.dumps(lock).encode() + b"\n")

    def forget(self, name: str) -> None:
        """The instance is no more: let go of its pipe once all is in the log, which stays.

        Does nothing for an unknown name. A later `define` takes it back. The pipe's name in the
        file system stays until `close()`: the log writer may have yet to open it.
        """
        if name in self._outputs:
            self._outputs[name].leaving = True
            self._release_when_drained(name)

    def writer_exited(self) -> None:
        """To be called when `writer_pid` has been reaped; starts a successor unless closing.

        It goes on exactly where the other has stopped, as nothing leaves a pipe except for a file.
        """
        if self._writer is None:
            return
        dead, self._writer = self._writer, None
        dead.close()
        if self._closing:
            return
        if self._on_writer_exit:
            self._on_writer_exit(dead.pid)
        if asyncio.get_running_loop().time() - dead.started > _RESTART_PAUSE:
            self._replace_writer()
        else:
            self._replace_writer_soon()

    async def close(self, patience: float = 10.0) -> bool:
        """Forget all instances, and end the log writer when all their output is in the logs.

        Returns False if that takes more than `patience` seconds, because the log writer is stuck or
        stray processes write on. It then stays for as long as they do.
        """
        for name in self.names:
            self.forget(name)
        try:
            async with asyncio.timeout(patience):
                while self._outputs:
                    await asyncio.sleep(_POLL)
                self._let_go()
                while self._writer:
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            self._let_go()
            return False
        for fifo in self._fifos():
            fifo.unlink()
        return True

    def _fifos(self) -> list[Path]:
        return [entry for entry in self._out_dir.iterdir() if entry.is_fifo()]

    def _release_when_drained(self, name: str) -> None:
        """Not earlier: should the log writer die, what it has left must be there for the next."""
        output = self._outputs.get(name)
        if output is None or not output.leaving:
            return
        if output.inlet.is_drained():
            del self._outputs[name]
            output.inlet.close()
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(_POLL, self._release_when_drained, name)

    def _start_writer(self) -> None:
        self._losing.clear()
        self._writer = _LogWriter(self._out_dir.parent, self._reported)
        if self._on_writer_start:
            self._on_writer_start(self._writer.pid)
        for output in self._outputs.values():
            self._writer.commands.send(output.command)

    def _replace_writer(self) -> None:
        if self._closing:
            return
        try:
            self._start_writer()
        except OSError:  # out of memory or processes; meanwhile output waits in the pipes
            self._replace_writer_soon()

    def _replace_writer_soon(self) -> None:
        asyncio.get_running_loop().call_later(_RESTART_PAUSE, self._replace_writer)

    def _let_go(self) -> None:
        """Close all that tells the log writer to stay on our behalf."""
        self._closing = True
        for output in self._outputs.values():
            output.inlet.close()
        self._outputs.clear()
        if self._writer:
            self._writer.commands.close()

    def _reported(self, log: str, cause: str | None) -> None:
        """The first log that loses output is told of, and the last one that no longer does."""
        losing = bool(self._losing)
        (self._losing.add if cause else self._losing.discard)(log)
        if self._on_loss and bool(self._losing) is not losing:
            self._on_loss(cause)


class _Inlet:
    """The writing end of a pipe. Never blocks: what the pipe has no room for waits here."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._waiting: deque[bytes] = deque()

    def send(self, message: bytes) -> None:
        """Messages of up to _PIPE_BUF bytes arrive in one piece, whoever else may be writing."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            self._flush()

    def is_drained(self) -> bool:
        """Whether all that anybody has written has also been read."""
        unread = fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4))
        return not self._waiting and not any(unread)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                written = os.write(self._fd, self._waiting[0])
                rest = self._waiting.popleft()[written:]
                if rest:
                    self._waiting.appendleft(rest)
        except BlockingIOError:
            loop.add_writer(self._fd, self._flush)
        except BrokenPipeError:  # the log writer is dead; we shall be closed when it is reaped
            loop.remove_writer(self._fd)
        else:
            loop.remove_writer(self._fd)


class _Output:
    """The pipe of one instance, as the supervisor has it."""

    def __init__(self, fifo: Path) -> None:
        fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # beyond the user's share; the usual 64 KiB do as well
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.inlet = _Inlet(fd)
        self._identity = os.fstat(fd)
        self.command = b""  # what the log writer is told about it
        self.leaving = False  # forgotten, but not yet empty

    def is_at(self, fifo: Path) -> bool:
        """False if that is another pipe now: somebody has removed it, and it was made anew."""
        return os.path.samestat(self._identity, os.stat(fifo))


class _LogWriter:
    """A running log writer. Raises OSError if it cannot be started."""

    def __init__(self, run_dir: Path, reported: Callable[[str, str | None], None]) -> None:
        self.started = asyncio.get_running_loop().time()
        self._reported = reported
        self._unread = b""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            stdin, commands = _pipe(theirs, ours)
            self._reports, stdout = _pipe(ours, theirs)
            self.pid = _spawn_log_writer(run_dir, stdin, stdout)
            ours.pop_all()
        self.commands = _Inlet(commands)
        os.set_blocking(self._reports, False)
        asyncio.get_running_loop().add_reader(self._reports, self._listen)

    def close(self) -> None:
        self.commands.close()
        self._stop_listening()

    def _listen(self) -> None:
        try:
            received = os.read(self._reports, 65536)
        except BlockingIOError:
            return
        if not received:
            self._stop_listening()
        *reports, self._unread = (self._unread + received).split(b"\n")
        for report in reports:
            told = json.loads(report)
            self._reported(told["log"], told["cause"])

    def _stop_listening(self) -> None:
        if self._reports >= 0:
            asyncio.get_running_loop().remove_reader(self._reports)
            os.close(self._reports)
            self._reports = -1


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed by these."""
    ends = os.pipe()
    for stack, end in zip((reader, writer), ends, strict=True):
        stack.callback(os.close, end)
    return ends


def _spawn_log_writer(run_dir: Path, stdin: int, stdout: int) -> int:
    # Not subprocess or asyncio, which would wait for the child themselves.
    # It has a session of its own, and these signals blocked from its first instruction on: neither
    # Ctrl-C nor a service manager that stops the whole unit may end it before the instances.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(_LOG_WRITER), str(_lock_of(run_dir))],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            # Its last words, should it crash. Not our stderr: whoever reads that would not see its
            # end while the log writer outlives us.
            (
                os.POSIX_SPAWN_OPEN,
                2,
                str(run_dir / "log-writer.err"),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                0o600,
            ),
        ],
        setsid=True,
        setsigmask=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    )


def _lock_of(run_dir: Path) -> Path:
    """Of the log writer that runs."""
    return run_dir / "log-writer.lock"


def _make_fifo(fifo: Path) -> None:
    if fifo.is_symlink() and not fifo.exists():
        fifo.unlink()  # see `restored`: the process that had it open is gone
    with contextlib.suppress(FileExistsError):
        os.mkfifo(fifo, 0o600)
    if not fifo.is_fifo():
        raise FileExistsError(f"cannot create the pipe {fifo}: something else has that name")


def _checked(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ValueError(f"cannot keep a log for {name!r}: not the name of an instance")
    return name


def last_words(path: Path, lines: int, most_bytes: int = 64 * 1024) -> list[str]:
    """The last `lines` lines of a log, as far as they lie in its last `most_bytes`.

    Cheap whatever is in the log: a progress bar can make a single line of a hundred megabytes.
    """
    text = b""
    for file in (path, path.with_name(f"{path.name}.1")):
        with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - (most_bytes - len(text))))
            text = stream.read(most_bytes - len(text)) + text
    return [_decode(line) for line in text.splitlines()[-lines:]] if lines else []


async def follow(path: Path, lines: int) -> AsyncGenerator[str, None]:
    """The last `lines` lines of the log at `path`, and from then on each line that is added.

    Waits for a log that does not exist yet. Yields a line when it is finished. Never repeats one,
    and misses none unless its file is deleted before we have come to it.
    """
    # Polls, because somebody watches only now and then, a fifth of a second is soon enough for a
    # reader, and inotify would need a thread or ctypes, and does not see all file systems.
    # To find the place takes a while in a large log: in a thread of its own.
    with contextlib.closing(await asyncio.to_thread(_Reader, path, lines)) as reader:
        while True:
            for line in reader.lines():
                yield line
            await asyncio.sleep(_FOLLOW_POLL)


async def recent(path: Path, lines: int) -> AsyncGenerator[str, None]:
    """The last `lines` lines of the log at `path`, fewer if there are no more; none for no log.

    An unfinished last line counts. Needs memory for one line at a time, however large the log is.
    """
    with contextlib.closing(await asyncio.to_thread(_Reader, path, lines)) as reader:
        for line in reader.lines() if lines > 0 else ():
            yield line
            if reader.finished == lines:  # what has been written meanwhile is not asked for
                return
        if reader.unfinished and lines > 0:
            yield reader.unfinished


class _Reader:
    """Reads the files of a log as one stream, from `lines` lines before its end."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path = path
        self._file = _rewind(path, max(lines, 0))
        self._next: FileIO | None = None
        self._unfinished = bytearray()
        self.finished = 0

    @property
    def unfinished(self) -> str:
        """The beginning of a line that has no end yet."""
        return _decode(self._unfinished)

    def lines(self) -> Iterator[str]:
        """The finished lines from here on, as far as they have been written.

        `finished` counts them. One that is longer than `_LONGEST` comes in pieces.
        """
        while block := self._read():
            first, *others = block.split(b"\n")
            self._unfinished += first
            for other in others:
                self.finished += 1
                yield _decode(self._unfinished)
                self._unfinished = bytearray(other)
            if len(self._unfinished) >= _LONGEST:
                yield _decode(self._unfinished)
                self._unfinished = bytearray()

    def close(self) -> None:
        for file in (self._file, self._next):
            if file:
                file.close()

    def _read(self) -> bytes:
        """Some bytes from here on; b"" if there are no more for now."""
        while True:
            if self._file and self._file.tell() > os.fstat(self._file.fileno()).st_size:
                self._file.seek(0)  # somebody has emptied it
            if self._file and (block := self._file.read(_BLOCK)):
                return block
            if self._next is None:
                # A file is complete as soon as there is a newer one, so then read on to its end.
                self._next = _newer(self._path, self._file)
                if self._next is None:
                    return b""
            else:
                if self._file:
                    self._file.close()
                self._file, self._next = self._next, None


def _rewind(path: Path, lines: int) -> FileIO | None:
    """Open the log `lines` lines before its end, or else at its beginning; None if it is empty."""
    file = _open_newest(path)
    ignored = 1  # the very last byte: a line break there does not begin another line
    while file:
        size = file.seek(0, os.SEEK_END)
        lines -= _back_over(file, lines, max(size - ignored, 0))
        if not lines:
            return file
        older = _older(path, file)
        if older is None:
            file.seek(0)
            return file
        file.close()
        file = older
        ignored = 0 if size else ignored
    return None


def _back_over(file: FileIO, breaks: int, end: int) -> int:
    """Go back from `end` to right behind the `breaks`th line break; returns how many there were."""
    missing = breaks
    while end and missing:
        start = max(end - _BLOCK, 0)
        block = os.pread(file.fileno(), end - start, start)
        found = block.count(b"\n")
        if found >= missing:
            for _ in range(missing):
                block = block[: block.rindex(b"\n")]
            file.seek(start + len(block) + 1)
            return breaks
        missing -= found
        end = start
    return breaks - missing


@dataclass(frozen=True)
class _Link:
    """One file in the chain of those that make up a log."""

    path: Path
    device: int
    inode: int
    modified: int = field(compare=False)


def _chain(path: Path) -> list[_Link]:
    """The files of a log at this moment, newest first.

    A rotation renames to higher numbers, and has at most one number free at a time; going the same
    way, this overlooks no file.
    """
    chain: list[_Link] = []
    missing = 0
    for number in itertools.count():
        numbered = path.with_name(f"{path.name}.{number}") if number else path
        try:
            found = numbered.stat()
        except FileNotFoundError:
            missing += 1
            if missing == 2:
                break
        else:
            missing = 0
            chain.append(_Link(numbered, found.st_dev, found.st_ino, found.st_mtime_ns))
    return chain


def _place(chain: list[_Link], file: FileIO) -> int:
    """Where in the chain `file` is; or would be if it had not been deleted, to judge by the times.

    (Inode numbers of older files would be no help, as a new file often gets that of a deleted one.)
    """
    this = os.fstat(file.fileno())
    for place, link in enumerate(chain):
        if (link.device, link.inode) == (this.st_dev, this.st_ino):
            return place
    return sum(link.modified >= this.st_mtime_ns for link in chain)


def _newer(path: Path, file: FileIO | None) -> FileIO | None:
    """Open the file after `file`, the oldest for None; None if there is none yet."""
    return _open_settled(path, lambda chain: (_place(chain, file) if file else len(chain)) - 1)


def _older(path: Path, file: FileIO) -> FileIO | None:
    """Open the file before `file`; None if that is the oldest."""
    return _open_settled(path, lambda chain: _place(chain, file) + 1)


def _open_newest(path: Path) -> FileIO | None:
    return _open_settled(path, lambda _: 0)


def _open_settled(path: Path, choose: Callable[[list[_Link]], int]) -> FileIO | None:
    """Open the file at the chosen place, with no rotation between looking and opening."""
    while True:
        chain = _chain(path)
        place = choose(chain)
        if not 0 <= place < len(chain):
            return None
        with contextlib.suppress(FileNotFoundError):
            file = FileIO(chain[place].path)
            if _chain(path) == chain:
                return file
            file.close()


def _decode(line: bytes | bytearray) -> str:
    return line.decode(errors="replace")
