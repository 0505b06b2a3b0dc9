"""Processes that others are forked from, instead of being started: the warm launcher.

What a template says and is asked is told in ``fastchat/entry/template.py``. What is forked from one
becomes our child, since we are the nearest subreaper; it waits until we know it, and ends if we die
before that. A template needs nothing of us but its socket, and ends when that is closed.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL
from typing import Literal

from supervisor.core.instance import Template
from supervisor.runtime.descriptors import with_reserve

log = logging.getLogger(__name__)

SOCKET = "LLM_SUPERVISOR_TEMPLATE"
"""Number under which a template has inherited its end of the socket."""

_NAMED = "~template"
_IMPORT_PATIENCE = 300.0
"""Seconds until it must have imported everything: a slow disk on a busy machine."""
_FORK_PATIENCE = 30.0
"""Seconds until an idle template must have forked; that takes hundredths."""
_MESSAGE = 1 << 16
_PAUSES = 1.0, 3600.0
"""Seconds until one that has failed is tried again: at first, and at most."""


class NoTemplate(Exception):
    """A process cannot be forked; why, in words."""


class _Stale(NoTemplate):
    """What it has imported has changed; another one will do."""


def is_template(name: str) -> bool:
    """Whether a process or log of this name is a template's; no instance has such a name."""
    return _NAMED in name


@dataclass(frozen=True, slots=True)
class Job:
    """What a forked process is to be. Descriptors stay the caller's."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    stdin: int
    output: int
    numbered: Mapping[str, int]
    """Variables that are to tell the number of an inherited descriptor."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that waits for ``begin``, or ends if it is dropped instead."""

    pid: int
    _pipe: int

    def begin(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has been killed meanwhile
            os.write(self._pipe, b"1")
        self.drop()

    def drop(self) -> None:
        os.close(self._pipe)


Start = Callable[[str, Template, int, Callable[[int], None]], int]
"""Starts a template's process: under which name, with which inherited descriptor (its
number is in SOCKET), and what to call with its exit status. Its pid. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A template as it is now."""

    name: str
    kind: str
    python: str
    pid: int | None
    state: Literal["importing", "ready", "failed"]
    reason: str
    """Why it has failed."""
    forks: int
    """Processes that this very one has been copied to."""


class Templates:
    """All templates of a cluster. ``start`` starts their processes."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._running: dict[Template, _Running] = {}
        self._alive: set[_Running] = set()
        """These, and those that have been killed and not been reaped yet."""
        self._names: dict[Template, str] = {}
        self._failures: dict[Template, _Failures] = {}
        self._wanted: Collection[Template] = ()

    def keep(self, wanted: Collection[Template]) -> None:
        """From now on these are needed: start what is missing, end what is none of them."""
        self._wanted = list(dict.fromkeys(wanted))
        for template in self._running.keys() - set(self._wanted):
            self._running.pop(template).stop(NoTemplate("it is not needed any more"))
        for known in (self._failures, self._names):
            for template in known.keys() - set(self._wanted):
                del known[template]
        for template in wanted:
            with contextlib.suppress(NoTemplate):
                self._get(template)

    async def fork(self, template: Template, job: Job) -> Forked:
        """A new process with ``template``'s imports. Raises NoTemplate, whose reason is for people.

        Waits while the template imports: what is started instead would do just that.
        """
        if template not in self._wanted:
            raise NoTemplate("what it could be forked from is not wanted any more")
        for _ in range(2):
            with contextlib.suppress(_Stale):
                return await self._get(template).fork(job)
        raise NoTemplate(f"the packages for {template.kind} processes keep changing")

    def look(self) -> list[Sight]:
        """At all that are wanted."""
        return [self._look(template) for template in self._wanted]

    def _look(self, template: Template) -> Sight:
        name, python = self._name(template), template.argv[0]
        running, failures = self._running.get(template), self._failures.get(template)
        if running is None:
            reason = failures.reason if failures else ""
            return Sight(name, template.kind, python, None, "failed", reason, 0)
        state: Literal["importing", "ready"] = "ready" if running.is_ready else "importing"
        return Sight(name, template.kind, python, running.pid, state, "", running.forks)

    async def close(self) -> None:
        """End all, and wait until they have."""
        self.keep(())
        await asyncio.gather(*(one.gone.wait() for one in self._alive))

    def _get(self, template: Template) -> _Running:
        running = self._running.get(template)
        if running is not None:
            return running
        failures = self._failures.setdefault(template, _Failures())
        failures.check()
        name = self._name(template)
        start = functools.partial(self._start, name, template)
        try:
            running = _Running(name, start, lambda one: self._over(template, one))
        except OSError as error:
            raise failures.one_more(f"cannot start it: {error}") from None
        self._running[template] = running
        self._alive = {running, *(one for one in self._alive if not one.gone.is_set())}
        return running

    def _name(self, template: Template) -> str:
        """For its log and its mark; the next one takes it over."""
        if template not in self._names:
            taken = set(self._names.values())
            numbers = ("", *(f"-{i}" for i in range(2, len(taken) + 2)))
            names = (f"{template.kind}{_NAMED}{number}" for number in numbers)
            self._names[template] = next(name for name in names if name not in taken)
        return self._names[template]

    def _over(self, template: Template, one: _Running) -> None:
        """It has ended, or is about to."""
        if self._running.get(template) is not one:
            return
        del self._running[template]
        if isinstance(one.end, _Stale):
            log.info("the %s: %s; starting another", template, one.end)
        else:
            failures = self._failures.setdefault(template, _Failures())
            failures.one_more(str(one.end))
            if one.forks:
                failures.forgive()
            log.warning("the %s: %s", template, one.end)
            asyncio.get_running_loop().call_later(failures.pause, self._start_if_wanted, template)
            return
        self._start_if_wanted(template)

    def _start_if_wanted(self, template: Template) -> None:
        if template in self._wanted:
            with contextlib.suppress(NoTemplate):
                self._get(template)


class _Failures:
    """Of one template, in a row."""

    def __init__(self) -> None:
        self.pause = 0.0
        """Seconds from the last one to the next try."""
        self._until = 0.0
        self.reason = ""

    def check(self) -> None:
        """Raises NoTemplate if it is too early to try again."""
        if asyncio.get_running_loop().time() < self._until:
            raise NoTemplate(self.reason)

    def one_more(self, reason: str) -> NoTemplate:
        first, most = _PAUSES
        self.pause = min(most, max(first, 2 * self.pause))
        self._until = asyncio.get_running_loop().time() + self.pause
        self.reason = reason
        return NoTemplate(reason)

    def forgive(self) -> None:
        """It was good for something: the next one is tried at once."""
        self.pause = self._until = 0.0


class _Running:
    """One template's process."""

    def __init__(
        self,
        name: str,
        start: Callable[[int, Callable[[int], None]], int],
        over: Callable[[_Running], None],
    ) -> None:
        self._name = name
        self._over = over
        self.end: NoTemplate | None = None
        """Why it is over."""
        self.forks = 0
        self.gone = asyncio.Event()
        """It has been reaped."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[int] | None = None
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with its:
            try:
                self.pid = start(its.fileno(), self._ended)
            except BaseException:
                self._socket.close()
                raise
        self._loop.add_reader(self._socket.fileno(), self._heard)
        self._patience = self._loop.call_later(
            _IMPORT_PATIENCE, self._lose, f"it has not imported all within {_IMPORT_PATIENCE:g} s"
        )

    @property
    def is_ready(self) -> bool:
        return self._ready.done() and self._ready.exception() is None

    async def fork(self, job: Job) -> Forked:
        self._go_on()
        await asyncio.shield(self._ready)
        async with self._turn:
            if self.end is not None:
                raise self.end
            self._go_on()
            reader, writer = with_reserve(lambda: os.pipe2(os.O_CLOEXEC))
            try:
                pid = await self._ask(job, reader)
            except BaseException:
                os.close(writer)
                raise
            finally:
                os.close(reader)
            self.forks += 1
            return Forked(pid, writer)

    def _go_on(self) -> None:
        """Should somebody have stopped it."""
        if self.end is None:
            os.kill(self.pid, SIGCONT)

    async def _ask(self, job: Job, pipe: int) -> int:
        self._answer = self._loop.create_future()
        try:
            self._send(job, pipe)
            async with asyncio.timeout(_FORK_PATIENCE):
                return await self._answer
        except TimeoutError:
            raise self._lose(f"it has not answered for {_FORK_PATIENCE:g} s") from None
        except OSError as error:
            raise self._lose(f"it cannot be asked: {error.strerror}") from None
        except asyncio.CancelledError:
            self._lose("its answer is not wanted any more")  # and would pass for the next one's
            raise
        finally:
            self._answer = None

    def _send(self, job: Job, pipe: int) -> None:
        content = {
            "argv": [_bytes(word) for word in job.argv],
            "env": {_bytes(name): _bytes(value) for name, value in job.env.items()},
            "cwd": _bytes(job.cwd),
            "numbered": list(job.numbered),
        }
        with _job_file(json.dumps(content).encode()) as file:
            sent = (file, pipe, job.stdin, job.output, *job.numbered.values())
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))
            self._socket.sendmsg([b"f"], [rights])

    def _heard(self) -> None:
        try:
            message = self._socket.recv(_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.stop(NoTemplate(f"it has ended; {self._name}.log says why"))
            return
        try:
            said = json.loads(message)
        except ValueError:
            said = None
        match said:
            case {"ready": True} if not self._ready.done():
                self._patience.cancel()
                self._ready.set_result(None)
            case {"stale": str(why)}:
                self.stop(_Stale(why))
            case {"unfit": str(why)}:
                self.stop(NoTemplate(why))
            case {"pid": int(pid)} if self._answer is not None and not self._answer.done():
                self._answer.set_result(pid)
            case _:
                self.stop(NoTemplate("it says what nobody understands"))

    def _ended(self, status: int) -> None:
        self.gone.set()
        self.stop(NoTemplate(f"it has ended (status {status}); {self._name}.log says why"))

    def _lose(self, why: str) -> NoTemplate:
        end = NoTemplate(why)
        self.stop(end)
        return end

    def stop(self, why: NoTemplate) -> None:
        """Nothing is lost with it. What it has just forked sees that its pipe is closed."""
        if self.end is not None:
            return
        self.end = why
        if not self.gone.is_set():
            os.kill(self.pid, SIGKILL)
        self._patience.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if not self._ready.done():
            self._ready.set_exception(why)
            self._ready.exception()  # nobody need have been waiting
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(why)
        self._over(self)


def _bytes(word: str) -> str:
    """As JSON can hold them: the other side may have another encoding than we."""
    return os.fsencode(word).decode("latin-1")


@contextlib.contextmanager
def _job_file(content: bytes) -> Iterator[int]:
    descriptor = with_reserve(lambda: memory_file("llm-supervisor-job", content))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def memory_file(name: str, content: bytes) -> int:
    """A descriptor to read ``content`` from; it never touches a disk."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
