"""Ends what a killed test run has left: `python guard.py TOKEN`, with its stdin from the run.

A supervisor that was killed on purpose leaves its instances running, and if its test is killed as
well, nobody is there to end them. This waits for the end of its standard input, which comes when
its owner dies, however that happens; then it kills every process with TOKEN in its environment.
"""

import contextlib
import os
import signal
import sys
import time


def main() -> None:
    os.setsid()  # Ctrl-C is for the others
    token = sys.argv[1].encode()
    sys.stdin.buffer.read()
    for _ in range(200):  # as long as any is left: they may be forking
        left = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if has(pid, token)
        ]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def has(pid: int, token: bytes) -> bool:
    if pid == os.getpid():
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return token in stream.read().split(b"\0")
    except OSError:
        return False


if __name__ == "__main__":
    main()
