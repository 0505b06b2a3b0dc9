"""Carries decisions out: joins processes, logs, probes and rotation, which do not know each other.

What talks HTTP is imported when it is first needed, which is after the first process has been
started: the import takes longer than that start.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from supervisor.core.diagnosis import CauseClass, Diagnosis, diagnose
from supervisor.core.instance import InstanceSpec, Template
from supervisor.core.lifecycle import (
    BlockersFound,
    Check,
    Diagnosed,
    Drained,
    EnteredRotation,
    Event,
    Exited,
    Stage,
    Status,
)
from supervisor.runtime import leftovers
from supervisor.runtime.blockers import blockers
from supervisor.runtime.logs import InstanceLogs, last_words
from supervisor.runtime.oom import OomKills
from supervisor.runtime.ports import who_holds
from supervisor.runtime.processes import Processes
from supervisor.runtime.progress import VARIABLE, ProgressRecords
from supervisor.runtime.templates import Templates
from supervisor.spec.model import Logs

if TYPE_CHECKING:
    from supervisor.fastchat.client import Client
    from supervisor.fastchat.rotation import Rotation
    from supervisor.runtime.probing import Prober

log = logging.getLogger(__name__)

_DIAGNOSED_LINES = 60
_PORT = re.compile(r"\('[^']*', (\d+)\)")
"""As asyncio, and so uvicorn, names an address that it cannot listen on."""
_LOG_PATIENCE = 2.0
"""Seconds to wait for the last words of a process to reach its log."""


@dataclass(frozen=True)
class _Http:
    client: Client
    rotation: Rotation
    prober: Prober


class LocalEffects:
    def __init__(
        self,
        processes: Processes,
        logs: InstanceLogs,
        log_settings: Logs,
        external_controller: str | None,
        progress: ProgressRecords,
        *,
        deliver: Callable[[str, Event], None],
    ) -> None:
        self._processes = processes
        self._logs = logs
        self._log_settings = log_settings
        self._external_controller = external_controller
        self._progress = progress
        self._deliver = deliver
        self.templates = Templates(self._start_template)
        """What instances are forked from."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills = OomKills()
        self._ended: dict[str, int | None] = {}
        """The pid of each instance's process that ended last."""
        self._closers: list[Callable[[], Awaitable[None]]] = []

    def spawn(self, spec: InstanceSpec, run: int) -> None:
        self._oom_kills.watch()
        if spec.progress is not None:
            record = (VARIABLE, str(self._progress.begin(spec.name)))
            spec = replace(spec, env=(*spec.env, record))
        open_log = functools.partial(self._open_log, spec.name, spec.argv)
        self._processes.spawn(spec, run, open_log, self.templates)

    def _start_template(
        self,
        name: str,
        template: Template,
        descriptor: int,
        exited: Callable[[int], None],
    ) -> int:
        open_log = functools.partial(self._open_log, name, template.argv)
        return self._processes.start_template(name, template, open_log, descriptor, exited)

    def adopt(self, spec: InstanceSpec, status: Status) -> None:
        assert status.pid is not None
        try:
            settings = self._log_settings
            self._logs.define(spec.name, max_bytes=settings.max_size, keep=settings.keep)
            self._logs.mark(spec.name, f"pid {status.pid} goes on, supervised by pid {os.getpid()}")
            if spec.listen is not None:
                self._take_socket(spec, spec.listen, status.pid)
        finally:  # a process that nobody watches could not even be stopped
            told = status.stage not in (None, Stage.DRAIN)
            self._processes.adopt(spec.name, status.run, status.pid, status.born, told=told)

    def clear(self, name: str) -> None:
        self._processes.clear(name)

    def _take_socket(self, spec: InstanceSpec, address: tuple[str, int], pid: int) -> None:
        """A successor is to get the same socket."""
        listeners = self._processes.listeners
        if address in listeners.descriptors:
            return
        try:
            listener = leftovers.listening_socket(pid)
        except OSError as error:
            log.warning(
                "cannot take over the socket of %s: %s; until it has been stopped and started, "
                "a change of it fails",
                spec.name,
                error.strerror,
            )
            return
        if listener is not None:
            listeners.adopt(address, listener)

    def signal(self, spec: InstanceSpec, stage: Stage) -> None:
        self._processes.signal(spec.name, stage)

    def start_probes(self, spec: InstanceSpec, run: int, checks: tuple[Check, ...]) -> None:
        self._http.prober.start(spec, run, checks)

    def stop_probes(self, spec: InstanceSpec) -> None:
        self._http.prober.stop(spec.name)

    def enter_rotation(self, spec: InstanceSpec, run: int) -> None:
        entered = functools.partial(self._deliver, spec.name, EnteredRotation(run))
        self._http.rotation.enter(spec, entered)

    def leave_rotation(self, spec: InstanceSpec) -> None:
        self._http.rotation.leave(spec)

    def drain(self, spec: InstanceSpec, run: int) -> None:
        self._in_background(self._drain(spec, run))

    def controller_is_new(self, spec: InstanceSpec) -> None:
        if spec.address is not None and self._external_controller is None:
            self._http.rotation.controller_is_at(spec.address, expires=False)

    def controller_goes_on(self, spec: InstanceSpec) -> None:
        self.controller_is_new(spec)
        self._in_background(self._http.rotation.forget_strangers())

    def forget(self, spec: InstanceSpec) -> None:
        self._ended.pop(spec.name, None)
        self._progress.forget(spec.name)
        self._logs.forget(spec.name)

    def keep_listening(self, addresses: Collection[tuple[str, int]]) -> None:
        self._processes.keep_listening(addresses)

    def keep_templates(self, templates: Collection[Template]) -> None:
        self.templates.keep(templates)

    def configure(
        self, logs: Logs, external_controller: str | None, instances: Collection[str]
    ) -> None:
        """Take over what the file says of the cluster as a whole."""
        if logs != self._log_settings:
            self._log_settings = logs
            for name in self._logs.names & set(instances):
                self._logs.define(name, max_bytes=logs.max_size, keep=logs.keep)
        if external_controller and external_controller != self._external_controller:
            self._http.rotation.controller_is_at(external_controller, expires=True)
        self._external_controller = external_controller

    def exited(self, spec: InstanceSpec, pid: int | None, event: Exited) -> None:
        self._ended[spec.name] = pid
        self._logs.mark(spec.name, f"pid {pid} {event}")

    def diagnose(self, spec: InstanceSpec, run: int, ended: str) -> None:
        self._in_background(self._diagnose(spec, run, self._ended[spec.name], ended))

    def find_blockers(self, spec: InstanceSpec, run: int) -> None:
        left = blockers(self._processes.tree_of(spec.name))
        if left:
            self._deliver(spec.name, BlockersFound(run, "; ".join(map(str, left))))

    async def close(self) -> None:
        """End all that runs in the background."""
        self._oom_kills.close()
        await self.templates.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self._closers:
            await close()

    def _open_log(self, name: str, argv: Sequence[str]) -> int:
        settings = self._log_settings
        output = self._logs.open(name, max_bytes=settings.max_size, keep=settings.keep)
        self._logs.mark(name, f"starting {shlex.join(argv)}")
        return output

    async def _drain(self, spec: InstanceSpec, run: int) -> None:
        from supervisor.fastchat.draining import drained

        await drained(self._http.client, self._http.rotation, spec)
        self._deliver(spec.name, Drained(run))

    async def _diagnose(self, spec: InstanceSpec, run: int, pid: int | None, ended: str) -> None:
        """Say why a run ended, as soon as its log holds all that it said."""
        lines: list[str] = []
        oom_kill = self._oom_kills.recent()  # now: what comes later is another's
        try:
            async with asyncio.timeout(_LOG_PATIENCE):
                while not (lines := self._words_of(spec, pid)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            lines = self._last_words(spec)
        found = diagnose(ended, lines, oom_kill=oom_kill)
        cause = await _with_holder(found, spec)
        self._deliver(spec.name, Diagnosed(run, cause, found.kind))

    def _last_words(self, spec: InstanceSpec) -> list[str]:
        try:
            return last_words(self._logs.path(spec.name), _DIAGNOSED_LINES)
        except OSError:  # no descriptor is free, the disk is broken: no reason to keep silent
            return []

    def _words_of(self, spec: InstanceSpec, pid: int | None) -> list[str]:
        """The last lines of a process that has ended; none while its end is not in the log yet."""
        lines = self._last_words(spec)
        marks = [i for i, line in enumerate(lines) if line.startswith("=== ")]
        ends = [i for i in marks if f" llm-supervisor: pid {pid} " in lines[i]]
        if not ends:
            return []
        start = max((i for i in marks if i < ends[-1]), default=-1)
        return lines[start + 1 : ends[-1] + 1]

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @functools.cached_property
    def _http(self) -> _Http:
        import aiohttp

        from supervisor.fastchat.asking import askers as fastchat_askers
        from supervisor.fastchat.client import Client
        from supervisor.fastchat.rotation import Rotation
        from supervisor.runtime.asking import askers as common_askers
        from supervisor.runtime.probing import Prober

        # Loopback needs no proxy, and an instance that is gone must not keep a place in a pool.
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0), trust_env=False
        )
        client = Client(session)
        elsewhere = self._external_controller
        rotation = Rotation(client, elsewhere or "", expires=elsewhere is not None)
        askers = {
            **common_askers(session, self._processes),
            **fastchat_askers(client, rotation, self._progress.look),
        }
        prober = Prober(askers, self._deliver)
        self._closers = [prober.close, rotation.close, session.close]
        return _Http(client, rotation, prober)


async def _with_holder(found: Diagnosis, spec: InstanceSpec) -> str:
    """The cause, and where a port is taken by whom, if that can be found out."""
    named = _PORT.search(found.cause)
    port = int(named[1]) if named else spec.port
    if found.kind is not CauseClass.PORT_BUSY or port is None:
        return found.cause
    # All sockets of the machine are looked through.
    holder = await asyncio.to_thread(who_holds, port, unless=spec.name)
    return f"{found.cause}; {holder}" if holder else found.cause
