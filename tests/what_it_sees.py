"""A program for tests of the warm launcher: writes down all that it can see of itself, and waits.

`what_it_sees.py FILE [MODULE ...] [-- WORD ...]`: FILE gets a JSON object once it is complete.
MODULEs are imported before, WORDs are only seen. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import locale
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

LIBC = ctypes.CDLL(None)


def main() -> None:
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    file = Path(sys.argv[1])
    for name in itertools.takewhile(lambda word: word != "--", sys.argv[2:]):
        importlib.import_module(name)
    seen = {**of_the_process(), **of_python(), "drawn": drawn(), "stdin": sys.stdin.read()}
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(seen))
    unfinished.rename(file)
    print("seen", flush=True)
    while True:
        time.sleep(60)


def of_the_process() -> dict[str, object]:
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    signals = {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd")}
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "comm": Path("/proc/self/comm").read_text(),
        "exe": os.readlink("/proc/self/exe"),
        "cmdline": words("/proc/self/cmdline"),
        "initial environment": words("/proc/self/environ"),
        "C environment": c_environment(),
        "cwd": os.getcwd(),
        "descriptors": descriptors(),
        "signals": signals,
        "umask": status["Umask"],
        "no new privileges": status["NoNewPrivs"],
        "threads": len(os.listdir("/proc/self/task")),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
        "nice": os.nice(0),
        "cores": sorted(os.sched_getaffinity(0)),
    }


def of_python() -> dict[str, object]:
    main_module = sys.modules["__main__"]
    return {
        "argv": sys.argv,
        "original argv": sys.orig_argv,
        "path": [one for one in sys.path if one != os.path.dirname(os.path.abspath(__file__))],
        "flags": repr(sys.flags),
        "executable": sys.executable,
        "main": [main_module.__name__, main_module.__file__, main_module.main is main],
        "environment": {name: os.fsencode(value).hex() for name, value in os.environ.items()},
        "handlers": {one.name: repr(signal.getsignal(one)) for one in handled()},
        "python threads": [one.name for one in threading.enumerate()],
        "is main thread": threading.current_thread() is threading.main_thread(),
        "collects": gc.isenabled(),
        "locale": locale.setlocale(locale.LC_ALL),
        "streams": [
            [one.encoding, one.errors, one.line_buffering, one.write_through, one.isatty()]
            for one in (sys.stdin, sys.stdout, sys.stderr)
        ],
    }


def handled() -> list[signal.Signals]:
    return [one for one in signal.valid_signals() if isinstance(one, signal.Signals)]


def drawn() -> dict[str, object]:
    """What another process must not draw as well."""
    found: dict[str, object] = {
        "random": random.getrandbits(64),
        "temporary name": next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
        "authkey": bytes(multiprocessing.current_process().authkey).hex(),
        "urandom": os.urandom(8).hex(),
    }
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        found["numpy"] = int(numpy.random.randint(1 << 62))
        found["numpy generator"] = int(numpy.random.default_rng().integers(1 << 62))
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = int(torch.randint(1 << 62, (1,)).item())
        found["torch seed"] = torch.initial_seed()
    return {**found, "hash": hash("a string")}


def words(path: str) -> list[str]:
    """Of a file of words that end with a zero byte, as hexadecimal numbers."""
    return [word.hex() for word in Path(path).read_bytes().split(b"\0")[:-1]]


def c_environment() -> list[str]:
    """As `getenv` of a library written in C sees it, CUDA's for example."""
    pointers = ctypes.POINTER(ctypes.c_char_p).in_dll(LIBC, "environ")
    found = []
    while (word := pointers[len(found)]) is not None:
        found.append(word.hex())
    return found


def descriptors() -> dict[str, object]:
    found: dict[str, object] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this very look
            found[name] = [os.readlink(f"/proc/self/fd/{name}"), os.get_inheritable(int(name))]
    return found


if __name__ == "__main__":
    main()
