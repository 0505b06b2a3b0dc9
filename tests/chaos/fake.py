"""A fake worker: a program of the standard library that starts in milliseconds and keeps a diary.

    python -I -S fake.py NAME PORT FOLDER

It answers HTTP on PORT, writes numbered lines, forks strays when asked to, and holds a lock that
all its strays hold, too: a second one of that name that starts while anything is left of the first
finds it taken, and tells.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time

TICK = 0.1
_PR_SET_NAME = 15
_SLICE = 64 * 1024


class Diary:
    """How many lines were written, where no `kill -9` can lose it."""

    def __init__(self, path: str) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(file, 8)
        self._memory = mmap.mmap(file, 8)
        os.close(file)
        self.count = 0

    def line_written(self) -> None:
        self.count += 1
        struct.pack_into("=Q", self._memory, 0, self.count)


class Fake:
    def __init__(self, name: str, port: int, folder: str) -> None:
        self.name, self.port, self.folder = name, port, folder
        # In this order, so that whoever finds the lock taken has a predecessor that still lives.
        self.lock = os.open(f"{folder}/locks/{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.lock, 100, 0).decode()
            with open(f"{folder}/duplicates/{name}.{os.getpid()}", "w") as told:
                told.write(f"pid {os.getpid()} started while {holder} or a stray of it still ran")
        self.born = f"{os.getpid()}.{time.monotonic_ns()}"
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, f"pid {os.getpid()}".encode(), 0)
        self.diary = Diary(f"{folder}/diary/{name}.{self.born}")

    def say(self, lines: int = 1) -> None:
        for _ in range(lines):
            os.write(1, f"{self.name} {self.born} #{self.diary.count + 1};\n".encode())
            self.diary.line_written()

    def serve(self) -> None:
        self.say()
        signal.signal(signal.SIGTERM, self._leave)
        with socket.create_server(("127.0.0.1", self.port), backlog=128) as listener:
            while True:
                if select.select([listener], [], [], TICK)[0]:
                    connection, _ = listener.accept()
                    with connection:
                        self._answer(connection)
                else:
                    self.say(3)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        try:
            target = connection.recv(_SLICE).decode().split(" ")[1]
            what, _, how = target.strip("/").partition("/")
            if what == "exit":
                self.say()
                os._exit(int(how))
            done = {"fork": self._fork, "say": lambda how: self.say(int(how))}.get(what)
            if done:
                done(how)
            body = f"{self.name} {os.getpid()}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
        except (OSError, IndexError, ValueError):
            pass  # whoever has asked is gone

    def _leave(self, *_: object) -> None:
        self.say()
        os._exit(0)

    def _fork(self, how: str) -> None:
        """A stray, in our group or not, that heeds signals or not. Returns when it runs."""
        ours, its = os.pipe()
        leader = os.getpid()
        if os.fork() == 0:
            for other in range(3, 200):
                if other not in (its, self.lock):
                    with contextlib.suppress(OSError):
                        os.close(other)
            if "session" in how or "daemon" in how:
                os.setsid()
            if "daemon" in how and os.fork():
                os._exit(0)
            self._stray(how, leader, its)
        os.close(its)
        os.read(ours, 1)
        os.close(ours)
        if "daemon" in how:
            os.wait()

    def _stray(self, how: str, leader: int, ready: int) -> None:
        heed = signal.SIG_IGN if "stubborn" in how else signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, heed)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"of-{leader}".encode())
        os.write(ready, b".")
        os.close(ready)
        while True:
            signal.pause()


if __name__ == "__main__":
    Fake(sys.argv[1], int(sys.argv[2]), sys.argv[3]).serve()
