"""Becoming another program: a new version takes over while requests flow.

The process stays the same, and with it pid and children. What the new program must have goes over
as open descriptors: locks, sockets, and one anonymous memory file that says what they are. It also
holds the whole state, secrets included, which are nowhere else then.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from pydantic import TypeAdapter

from supervisor.daemon import state
from supervisor.runtime.processes import Processes

_VARIABLE = "LLM_SUPERVISOR_HANDOVER"
"""Number of the descriptor of the memory file."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""They would end a program that does not handle them yet, so they wait until the new one does."""
_TRIAL_SECONDS = 60.0
_FAILS = "the new program does not start"


class CannotUpgrade(Exception):
    """The program that runs goes on; the text says why."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the new program gets. Numbers are descriptors."""

    known: bytes
    """See ``state.write``."""
    started: float
    """When the supervisor was first started, in seconds since the epoch."""
    upgrades: int
    """How often it has become another program, this time included."""
    run_dir: str
    log_dir: str
    """They stay where they are, whatever the file says by now: what runs is bound to them."""
    run_dir_lock: int
    log_dir_lock: int
    control_socket: int
    listeners: tuple[tuple[str, int, int], ...]
    """Host, port and descriptor of the sockets that instances are given."""

    @property
    def descriptors(self) -> Iterable[int]:
        sockets = (descriptor for _, _, descriptor in self.listeners)
        return (self.run_dir_lock, self.log_dir_lock, self.control_socket, *sockets)


@functools.cache
def _form() -> TypeAdapter[Handover]:
    """Takes a while to make, and is needed by the new program only."""
    return TypeAdapter(Handover)


def is_under_way(environ: Mapping[str, str]) -> bool:
    """Whether another program has become this one, and nobody has received what it hands over."""
    return _VARIABLE in environ


def received(environ: MutableMapping[str, str]) -> Handover | None:
    """What the program that this process was before has handed over, if it was one."""
    given = environ.pop(_VARIABLE, None)
    if given is None:
        return None
    with open(int(given), "rb") as stream:
        return _form().validate_python(json.loads(stream.read()))


async def try_program(handover: Handover, processes: Processes, environ: Mapping[str, str]) -> None:
    """Whether the program that is installed now starts and understands us; else CannotUpgrade."""
    with contextlib.ExitStack() as stack:
        try:
            memory = stack.enter_context(_in_memory(handover))
            output = stack.enter_context(os.fdopen(os.memfd_create("trial"), "r+b"))
            code = await processes.call(
                [sys.executable, "-m", "supervisor.daemon.trial"],
                os.getcwd(),
                environ,
                _TRIAL_SECONDS,
                stdin=memory.fileno(),
                output=output.fileno(),
            )
        except TimeoutError:
            raise CannotUpgrade(f"{_FAILS}: no answer after {_TRIAL_SECONDS:g} s") from None
        except OSError as error:
            raise CannotUpgrade(f"{_FAILS}: {error.strerror}: {sys.executable}") from None
        output.seek(0)
        words = output.read().decode(errors="replace").strip().splitlines()
    if code != 0:
        raise CannotUpgrade(f"{_FAILS}: {words[-1] if words else 'it does not say why'}")


def become(handover: Handover, environ: Mapping[str, str]) -> NoReturn:
    """Be the program that is installed now, with signals held back (``hold_signals``).

    Raises CannotUpgrade if there is none.
    """
    try:
        with _in_memory(handover) as memory, _inherited((memory.fileno(), *handover.descriptors)):
            # The words after the interpreter as they were: its flags, module or script, verb.
            words = [sys.executable, *sys.orig_argv[1:]]
            os.execve(sys.executable, words, {**environ, _VARIABLE: str(memory.fileno())})
    except OSError as error:
        raise CannotUpgrade(f"cannot start {sys.executable}: {error.strerror}") from None


@contextlib.contextmanager
def _inherited(descriptors: Collection[int]) -> Iterator[None]:
    """The next program gets them; no other child, if there is none."""
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        yield
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, False)


def hold_signals() -> None:
    """Those that come from now on are the next program's to handle."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def accept_signals() -> None:
    """They are handled now, also those that came in between."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def can_go_on_from(content: bytes) -> bool:
    """Whether this program understands that handover."""
    try:
        state.read(_form().validate_python(json.loads(content)).known)
    except (ValueError, RecursionError, state.Unusable):
        return False
    return True


def _in_memory(handover: Handover) -> BinaryIO:
    memory = os.fdopen(os.memfd_create("llm-supervisor-handover"), "r+b")
    memory.write(state.to_json(handover))
    memory.seek(0)
    return memory
