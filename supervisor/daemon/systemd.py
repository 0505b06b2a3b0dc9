"""Tells the service manager how the cluster is, for as long as messages are really handled.

What is said goes the way of everything else first: a message through the reconciler's inbox and
back. If the loop stands still, or handles nothing any more, nothing is said, and systemd's watchdog
kills the supervisor; the instances run on, and the next one adopts them.

*Ready* is the cluster when nothing of it is on its way any more: all instances are ready, or cannot
come unless a person does something. One of ten models that is broken must not make systemd time
out and kill what supervises the other nine; and if all are broken, the supervisor is still who
notices the mended file. What is wrong is in the status text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from supervisor.core.cluster import ClusterState
from supervisor.core.instance import Role
from supervisor.core.lifecycle import State
from supervisor.core.rollout import Member
from supervisor.daemon.reconciler import Ping, Reconciler
from supervisor.daemon.reload import Reloader
from supervisor.runtime.notify import Notifier

log = logging.getLogger(__name__)

_PAUSE = 10.0
"""Seconds between two messages at most; a third of the watchdog's time if that is less."""
_PATIENCE = 60.0
"""Seconds that systemd is asked to wait from now on, while models load or the cluster stops."""
_NAMED = 3
"""Instances that the status text names."""


@contextlib.asynccontextmanager
async def notifying(
    environ: Mapping[str, str], reconciler: Reconciler, reloader: Reloader
) -> AsyncIterator[None]:
    """Does nothing where no service manager listens."""
    notifier = Notifier.from_environ(environ)
    if notifier is None:
        yield
        return
    one = _Telling(notifier, reconciler, reloader)
    reloader.around = one.reloading
    task = asyncio.create_task(one.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        notifier.close()


class _Telling:
    def __init__(self, notifier: Notifier, reconciler: Reconciler, reloader: Reloader) -> None:
        self._notifier = notifier
        self._reconciler = reconciler
        self._reloader = reloader
        self._ready = False
        self._reloading = False
        self._told: tuple[str, ...] = ()
        self._failing = False

    async def run(self) -> None:
        watchdog = self._notifier.watchdog
        pause = _PAUSE if watchdog is None else min(_PAUSE, watchdog / 3)
        while True:
            await self._through_the_inbox()
            self._told = self._news()
            # All of it each time, so that nothing is missed for good.
            self._send(*self._told, *(() if watchdog is None else ("WATCHDOG=1",)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._reconciler.until(lambda: self._news() != self._told)

    @contextlib.asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """While the file is read and planned, no longer: systemd keeps a second reload waiting, and
        an edit in the middle of a rollout is a good thing."""
        if not self._ready:  # what is not up yet cannot reload, for systemd
            yield
            return
        self._reloading = True
        # The clock of systemd's, so that it can tell an older message from a newer one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._reloading = False
            self._send("READY=1")

    async def _through_the_inbox(self) -> None:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reconciler.post(Ping(lambda: _answer(answered)))
        await answered

    def _news(self) -> tuple[str, ...]:
        reconciler = self._reconciler
        status = f"STATUS={_sentence(reconciler.members, reconciler.state)}"
        if self._reloader.problems:
            status += f"; {self._reloader.file.path.name} is not valid, and not applied"
        if reconciler.state is ClusterState.STOPPING:
            return "STOPPING=1", _more_time(), status
        self._ready = self._ready or not reconciler.progress().under_way
        if not self._ready:
            return _more_time(), status
        return (status,) if self._reloading else ("READY=1", status)

    def _send(self, *lines: str) -> None:
        try:
            self._notifier.send(*lines)
        except OSError as error:
            if not self._failing:
                log.warning("cannot tell systemd how the cluster is: %s; trying on", error)
            self._failing = True
        else:
            self._failing = False


def _answer(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():  # nobody waits any more, at the end
        waiting.set_result(None)


def _more_time() -> str:
    return f"EXTEND_TIMEOUT_USEC={round(_PATIENCE * 1e6)}"


def _sentence(members: Sequence[Member], state: ClusterState) -> str:
    """As "3 of 5 instances ready; vicuna-0 is loading"."""
    if state is ClusterState.STOPPING:
        left = [one.name for one in members if one.state is not State.STOPPED]
        return f"stopping: {_listed(left)}" if left else "stopped"
    wanted = [one for one in members if one.status.wanted and not one.leaving]
    if not wanted:
        return "nothing is to run"
    missing = [one for one in wanted if one.state is not State.READY]
    text = f"{len(wanted) - len(missing)} of {len(wanted)} instances ready"
    return f"{text}; {_listed([_what_of(one) for one in missing])}" if missing else text


def _what_of(one: Member) -> str:
    match one.state:
        case State.FAILED:
            return f"{one.name} has failed"
        case State.BACKOFF:
            return f"{one.name} waits for its restart"
        case State.UNREADY:
            return f"{one.name} does not answer"
        case State.STOPPED:
            return f"{one.name} waits for its turn"
        case State.STARTING if one.spec.role is Role.WORKER:
            return f"{one.name} is loading"
        case _:
            return f"{one.name} is {one.state}"


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
