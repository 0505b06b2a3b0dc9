"""The log writer: one process per cluster that moves what instances write from pipes to log files.

It is a process of its own so that output flows on while the supervisor is busy, stopped or gone.
`logs.py` starts it by path (`python -I -S logwriter.py LOCK`) and blocks the signals that would end
it; it imports little, for a small footprint. Each line on its standard input is a JSON object:

    {"fifo": "/run/…/out/vicuna-0", "log": "/…/vicuna-0.log", "max_bytes": 50000000, "keep": 5}

Each line on its standard output is one as well: the path of a log, and why it cannot be written any
more, or null when it can be again.

    {"log": "/…/vicuna-0.log", "cause": "No space left on device"}

A command names a pipe to read from now on, or gives new limits to one that is being read. There is
no command to close a pipe: one is done with when nobody can write to it any more, the supervisor
included. {"lock": "/run/…/log-writer.lock"} names a lock to take besides, as the file of the one
that it was started with has been removed. The end of the standard input means that the supervisor
is gone; the log writer then stays until the last pipe is done with.

`kill -9` of this process loses no byte and repeats none, because no byte is ever only in its
memory: tee(2) shows what waits in a pipe without taking it, which tells where a line ends, and
splice(2) moves it to the file, where the kernel takes from the one exactly what it has added to the
other.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import struct
import sys

STDIN, STDOUT = 0, 1
MOST_AT_ONCE = 256 * 1024  # bytes; keeps one flooding instance from holding up the others
SCRATCH_BYTES = 1024 * 1024  # as many pages as the largest pipe has, so that tee finds room

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


class Pipe:
    """The reading end of the pipe that an instance writes to."""

    def __init__(self, path: str, scratch: tuple[int, int]) -> None:
        # Without blocking, so that opening does not wait for someone to write, and read-only, so
        # that the kernel can tell when nobody is left who could.
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._copy_out, self._copy_in = scratch

    def look(self) -> bytes | None:
        """What waits, leaving it there: None for nothing yet, b"" for nothing ever again."""
        count = _libc.tee(self.fd, self._copy_in, MOST_AT_ONCE, os.SPLICE_F_NONBLOCK)
        if count > 0:
            return os.read(self._copy_out, count)
        if count == 0:
            return b""
        cause = ctypes.get_errno()
        if cause == errno.EAGAIN:
            return None
        raise OSError(cause, os.strerror(cause))

    def move(self, data: bytes, file: int, offset: int) -> None:
        """Move `data`, the beginning of what waits, or a part of it, to `offset` of `file`."""
        try:
            os.splice(self.fd, file, len(data), offset_dst=offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file system that cannot splice. Here a `kill -9` between the two repeats bytes.
            self.discard(os.pwrite(file, data, offset))

    def discard(self, count: int) -> None:
        os.read(self.fd, count)


class Log:
    """A log file and its older files: `x.log`, `x.log.1`, `x.log.2` and so on."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self.path, self.max_bytes, self.keep = path, max_bytes, keep
        self._file = -1
        self._lost = 0
        self._cause: str | None = None

    def take(self, pipe: Pipe) -> bool:
        """Move what waits in `pipe`, or a part of it; False when nothing will ever come again."""
        waiting = pipe.look()
        if waiting:
            try:
                self._append(pipe, waiting)
            except OSError as error:
                # An instance must not stall because a disk is full, so its output is thrown away,
                # and the log says how much of it as soon as it can say something again.
                pipe.discard(len(waiting))
                if not self._lost:
                    report(self.path, error.strerror)
                self._lost += len(waiting)
                self._cause = error.strerror
        return waiting != b""

    def close(self) -> None:
        if self._lost:
            with contextlib.suppress(OSError):  # there is still no room to say so
                self._admit_loss(self._open())
        if self._file >= 0:
            os.close(self._file)

    def _append(self, pipe: Pipe, waiting: bytes) -> None:
        size = self._open()
        if self._lost:
            size = self._admit_loss(size)
        count = self._fitting(waiting, size)
        if count == 0 and self._rotate():
            return  # the caller comes back at once, as there is still something to read
        # Where rotation is impossible, a log that grows is better than one that stops.
        pipe.move(waiting[: count or None], self._file, size)

    def _fitting(self, waiting: bytes, size: int) -> int:
        """How much of `waiting` belongs in a file of `size` bytes; 0 if all of it is for the next.

        No line is ever split: one that is under way goes on, however long it becomes.
        """
        room = self.max_bytes - size
        if len(waiting) <= room:
            return len(waiting)
        whole_lines = waiting.rfind(b"\n", 0, max(room, 0)) + 1
        if whole_lines or (size and self._at_line_start(size)):
            return whole_lines
        rest_of_line = waiting.find(b"\n") + 1
        return rest_of_line or len(waiting)

    def _open(self) -> int:
        """Open the file unless it is open; returns its size, which is where to append.

        Someone (logrotate, rm) may have moved or deleted the file, so this looks every time; that
        costs a microsecond, and spares a clock and the lines that would go astray in between.
        """
        if self._file >= 0 and not self._is_in_place():
            os.close(self._file)
            self._file = -1
        if self._file < 0:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            # Not O_APPEND, which splice refuses. Nobody else writes to the file.
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o640)
        return os.fstat(self._file).st_size

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _rotate(self) -> bool:
        """Rename `x.log` to `x.log.1`, and so on; False if `x.log` had to stay.

        Only up to the first free number, so that one that a `kill -9` in the middle of a rotation
        has left free is filled by the next.
        """
        free = 1
        while os.path.lexists(self._numbered(free)):
            free += 1
        try:
            for number in range(free, 1, -1):
                os.rename(self._numbered(number - 1), self._numbered(number))
            os.rename(self.path, self._numbered(1))
        except OSError:
            return False
        self._delete_surplus()
        return True

    def _delete_surplus(self) -> None:
        number = self.keep + 1
        with contextlib.suppress(OSError):
            while os.path.lexists(self._numbered(number)):
                os.unlink(self._numbered(number))
                number += 1

    def _numbered(self, number: int) -> str:
        return f"{self.path}.{number}"

    def _admit_loss(self, size: int) -> int:
        """Say in the log how much output was lost; returns the new size of the file."""
        start = "" if self._at_line_start(size) else "\n"
        line = f"{start}llm-supervisor: {self._lost} bytes of output lost: {self._cause}\n".encode()
        written = os.pwrite(self._file, line, size)
        if written < len(line):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lost = 0
        report(self.path, None)
        return size + written

    def _at_line_start(self, size: int) -> bool:
        return size == 0 or os.pread(self._file, 1, size - 1) == b"\n"


def report(log: str, cause: str | None) -> None:
    """Tell the supervisor, if there is one, and if it listens."""
    with contextlib.suppress(OSError):
        os.write(STDOUT, json.dumps({"log": log, "cause": cause}).encode() + b"\n")


class LogWriter:
    """The loop: reads commands and pipes until both have come to their end."""

    def __init__(self) -> None:
        self._scratch = os.pipe()
        with contextlib.suppress(OSError):  # a smaller one only means more rounds
            fcntl.fcntl(self._scratch[1], fcntl.F_SETPIPE_SZ, SCRATCH_BYTES)
        self._outputs: dict[int, tuple[Pipe, Log]] = {}
        self._poll = select.epoll()
        self._poll.register(STDIN, select.EPOLLIN)
        self._listening = True
        self._unread = b""

    def run(self) -> None:
        while self._listening or self._outputs:
            for fd, _ in self._poll.poll():
                if fd == STDIN:
                    self._listen()
                else:
                    self._take(fd)

    def _listen(self) -> None:
        received = os.read(STDIN, 65536)
        if not received:
            self._poll.unregister(STDIN)
            self._listening = False
        *commands, self._unread = (self._unread + received).split(b"\n")
        for command in commands:
            try:
                words = json.loads(command)
                if "lock" in words:
                    become_the_only_one(words["lock"])
                else:
                    self._obey(**words)
            except OSError as error:
                # For instance a pipe that has been removed again in the meantime.
                print(f"cannot follow {command!r}: {error}", file=sys.stderr, flush=True)

    def _obey(self, fifo: str, log: str, max_bytes: int, keep: int) -> None:
        pipe = Pipe(fifo, self._scratch)
        for known, its_log in self._outputs.values():
            if os.path.sameopenfile(known.fd, pipe.fd):
                os.close(pipe.fd)
                its_log.max_bytes, its_log.keep = max_bytes, keep
                return
        self._outputs[pipe.fd] = pipe, Log(log, max_bytes, keep)
        self._poll.register(pipe.fd, select.EPOLLIN)
        # The kernel tells of a hang-up only those who were there before it, so look once.
        self._take(pipe.fd)

    def _take(self, fd: int) -> None:
        pipe, log = self._outputs[fd]
        if not log.take(pipe):
            del self._outputs[fd]
            self._poll.unregister(fd)
            os.close(fd)
            log.close()


def become_the_only_one(lock: str) -> None:
    """Replace a log writer that an earlier supervisor of this cluster has left behind.

    The lock vanishes with its holder, and the kernel knows who that is: no stale pid to be misled
    by. As killing a log writer loses nothing, there is no need to ask it to leave.
    """
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    if holder := _lock_holder(file):
        with contextlib.suppress(OSError):  # it is gone, or out of reach: all we can do is wait
            process = os.pidfd_open(holder)
            if _lock_holder(file) == holder:  # so the pid has not passed to another process
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)
    fcntl.lockf(file, fcntl.LOCK_EX)


def _lock_holder(file: int) -> int | None:
    layout = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, pid
    question = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else pid


def main() -> None:
    # What a shell or a service manager left open in the supervisor must not stay open through us,
    # nor a directory that we do not use stay busy.
    os.closerange(3, 65536)
    os.chdir("/")
    os.set_blocking(STDOUT, False)  # a suspended supervisor must not hold us up
    become_the_only_one(sys.argv[1])
    LogWriter().run()


if __name__ == "__main__":
    main()
