"""The composition root: joins all parts of a running supervisor, and lets them go in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor import __version__
from supervisor.core.cluster import ClusterState
from supervisor.daemon import claims, state, upgrade
from supervisor.daemon.beginning import Beginning, begin
from supervisor.daemon.effects import LocalEffects
from supervisor.daemon.journal import Entry, Journal
from supervisor.daemon.keeper import Keeper
from supervisor.daemon.prepare import ports_of
from supervisor.daemon.reconciler import GoDown, HandOver, Reconciler
from supervisor.daemon.reload import Reloader
from supervisor.daemon.systemd import notifying
from supervisor.daemon.upgrade import CannotUpgrade, Handover
from supervisor.runtime import notify
from supervisor.runtime.descriptors import Complaint
from supervisor.runtime.logs import InstanceLogs
from supervisor.runtime.processes import Processes
from supervisor.runtime.progress import ProgressRecords
from supervisor.runtime.rundir import RunDir, RunDirError
from supervisor.runtime.signals import on_signal
from supervisor.runtime.templates import is_template
from supervisor.runtime.watch import FileWatch
from supervisor.spec.load import ClusterFile

if TYPE_CHECKING:
    from supervisor.daemon.api import Api

log = logging.getLogger(__name__)

_ANSWER_FIRST = 0.1
"""Seconds for the answer to whoever has asked for an upgrade, before there is nobody to send it."""


@dataclass(frozen=True)
class Options:
    """Where things are: decided by flag, environment and file (see ``cli/locations.py``)."""

    file: Path
    run_dir: Path
    log_dir: Path


def run(
    options: Options, environ: MutableMapping[str, str], listener: Callable[[Entry], None]
) -> None:
    """Run the cluster until it is told to stop. Blocks.

    Raises SpecError (the file, or a port, is no good; nothing was started) and RunDirError.
    """
    handover = upgrade.received(environ)
    if handover is not None:
        options = replace(options, run_dir=Path(handover.run_dir), log_dir=Path(handover.log_dir))
    run_dir = RunDir(options.run_dir)
    if handover is None:
        run_dir.claim()
    else:
        run_dir.inherit(handover.run_dir_lock)
    try:
        beginning = begin(options.file, run_dir, environ, handover.known if handover else None)
        log_lock = handover.log_dir_lock if handover else claims.claim_log_dir(options.log_dir)
        os.set_inheritable(log_lock, False)
        _remember_ports(run_dir, beginning)
        running = _Running(options, run_dir, log_lock, beginning, handover, environ, listener)
        asyncio.run(running.serve())
    finally:
        run_dir.release()


def _remember_ports(run_dir: RunDir, beginning: Beginning) -> None:
    """Raises RunDirError at a first start. Later a disk that is full by now must not keep what runs
    without a supervisor, and that has its ports all the same."""
    try:
        run_dir.remember_ports(ports_of(beginning.wanted.values()))
    except RunDirError as error:
        if beginning.adoption is None:
            raise
        log.warning("%s; going on with what runs", error)


class _Running:
    """All parts of a supervisor that runs."""

    def __init__(
        self,
        options: Options,
        run_dir: RunDir,
        log_lock: int,
        beginning: Beginning,
        handover: Handover | None,
        environ: MutableMapping[str, str],
        listener: Callable[[Entry], None],
    ) -> None:
        self._options = options
        self._run_dir = run_dir
        self._log_lock = log_lock
        self._beginning = beginning
        self._handover = handover
        self._environ = environ
        self._started = handover.started if handover else time.time()
        self._upgrades = handover.upgrades if handover else 0
        self._control: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unheard: set[int] = set()
        """Signals that have come, and are not yet a message."""
        self._watched: set[Path] = set()
        """The files that make the cluster file up."""
        file, wanted = beginning.file, beginning.wanted
        self._journal = Journal(time.time)
        self._journal.listen(listener)
        own = notify.for_instances(environ)
        self._processes = Processes(run_dir.mark, own, self._deliver)
        self._logs = InstanceLogs(
            run_dir.path,
            options.log_dir,
            on_writer_start=self._watch_log_writer,
            on_writer_exit=_warn_of_log_writer,
            on_loss=_warn_of_loss,
        )
        self._effects = LocalEffects(
            self._processes,
            self._logs,
            file.cluster.logs,
            file.cluster.controller.external if file.cluster.controller else None,
            ProgressRecords(run_dir.path / "progress"),
            deliver=self._deliver,
        )
        self._keeper = Keeper(run_dir, lambda: self._reconciler.known)
        self._reconciler = Reconciler(
            wanted, self._effects, self._journal, self._keeper.noted, self._beginning.limit
        )
        self._reloader = Reloader(
            file, wanted, self._reconciler, self._effects, self._journal, run_dir, environ
        )

    def _deliver(self, *event: Any) -> None:
        self._reconciler.deliver(*event)

    # ------------------------------------------------------------ life

    async def serve(self) -> None:
        """From the first process to the last."""
        asyncio.get_running_loop().set_exception_handler(Complaint())
        watch = FileWatch(lambda: self._in_background(self._reloader.reload_quietly()))
        down = False
        is_up = self._beginning.adoption is not None
        try:
            self._processes.prepare()
            await self._start_logs()
            self._listen_to_signals()
            await self._start_instances()
            self._processes.start()  # not before all is known that may have ended meanwhile
            supervising = asyncio.create_task(self._supervise())
            await asyncio.sleep(0)  # starts the first processes, before the API is imported
            told = notifying(self._environ, self._reconciler, self._reloader)
            async with told, self._serving_the_api() as api:
                self._keeper.restored = functools.partial(self._run_dir_restored, api)
                self._reloader.read = functools.partial(self._look_after, watch)
                self._look_after(watch, self._beginning.file, ())
                self._in_background(self._keeper.watch())
                is_up = True
                _collect_garbage_from_now_on()
                await supervising
            down = True
        finally:
            for task in self._tasks:
                task.cancel()
            await watch.close()
            await self._effects.close()
            # A first start that went wrong halfway leaves nothing running. Later, a defect of ours
            # is no reason to take a cluster down: the next supervisor goes on with it.
            if down or not is_up:
                await self._processes.close(spare=self._logs.writer_pid)
                await self._logs.close()
            self._keeper.close(forget=down)
            _ignore_signals()

    async def _supervise(self) -> None:
        while not await self._reconciler.run():
            await self._become_another()

    async def _start_logs(self) -> None:
        try:
            await self._logs.start()
        except OSError as error:
            raise RunDirError(f"cannot start the log writer: {error}") from None
        adoption = self._beginning.adoption
        there = {one.name for one in adoption.known.members} if adoption else set()
        templates = set(filter(is_template, self._logs.names))
        for name in self._logs.names - self._beginning.wanted.keys() - there - templates:
            self._logs.forget(name)

    def _watch_log_writer(self, pid: int) -> None:
        self._processes.adopt_helper(pid, lambda _: self._logs.writer_exited())

    def _listen_to_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            down = GoDown(f"received {number.name}")
            self._on_signal(number, functools.partial(self._reconciler.post, down))
        # A closed terminal sends it, too, and is no reason to stop serving.
        self._on_signal(signal.SIGHUP, self._reload)
        self._on_signal(signal.SIGUSR2, self._upgrade_quietly)
        upgrade.accept_signals()

    def _on_signal(self, number: signal.Signals, act: Callable[[], None]) -> None:
        """The loop hears of a signal a moment after it has come, which may be too late."""

        def heard() -> None:
            self._unheard.discard(number)
            act()

        on_signal(number, heard, lambda: self._unheard.add(number))

    async def _start_instances(self) -> None:
        for note in self._beginning.notes:
            log.warning("%s", note)
        adoption = self._beginning.adoption
        if adoption is None:
            self._reconciler.start_instances(self._beginning.wanted, "the cluster starts")
            return
        for host, port, descriptor in self._handover.listeners if self._handover else ():
            listener = socket.socket(fileno=descriptor)
            listener.set_inheritable(False)
            self._processes.listeners.adopt((host, port), listener)
        await self._processes.end(adoption.unknown)
        self._reconciler.adopt(adoption)
        if self._beginning.problems:
            self._reloader.tell_problems(self._beginning.problems)
        if self._handover:
            self._journal.write("", "upgraded", f"version {__version__} goes on, as the same pid")

    # ------------------------------------------------------------ the file

    def _reload(self) -> None:
        self._in_background(self._reloader.reload_quietly())

    def _look_after(self, watch: FileWatch, now: ClusterFile, named: Collection[Path]) -> None:
        """Watch the file and all it names; what is new among them may have changed since."""
        files = {now.path, *now.named, *named} if now.cluster.watch else set()
        news = files - self._watched
        self._watched = files
        watch.watch(files)
        if news:
            self._reload()

    # ------------------------------------------------------------ the API

    @contextlib.asynccontextmanager
    async def _serving_the_api(self) -> AsyncIterator[Api]:
        from supervisor.daemon.api import Api, Daemon

        api = Api(
            Daemon(
                reconciler=self._reconciler,
                journal=self._journal,
                file=self._options.file.absolute(),
                run_dir=self._run_dir.path,
                log_dir=self._options.log_dir.absolute(),
                started=self._started,
                log_path=self._logs.path,
                tree_of=self._processes.tree_of,
                templates=self._effects.templates.look,
                reloader=self._reloader,
                upgrades=self._upgrades,
                upgrade=self._upgrade,
                note=self._note,
            )
        )
        try:
            await self._open_socket(api, self._handover.control_socket if self._handover else None)
            yield api
        finally:
            await api.close()

    def _run_dir_restored(self, api: Api) -> None:
        running = self._reconciler.statuses.items()
        self._logs.restored({name: one.pid for name, one in running if one.pid is not None})
        self._in_background(self._open_socket(api))

    async def _open_socket(self, api: Api, inherited: int | None = None) -> None:
        if inherited is None:
            self._control = self._run_dir.open_socket()
        else:
            self._control = socket.socket(fileno=inherited)
            self._control.set_inheritable(False)
        await api.listen(self._control)

    async def _note(self) -> None:
        await self._reconciler.until(lambda: True)  # all that was asked until now is decided
        self._keeper.write_now()

    # ------------------------------------------------------------ upgrade

    async def _upgrade(self) -> None:
        """Set going what ``_become_another`` completes. Raises CannotUpgrade."""
        if self._reconciler.state is ClusterState.STOPPING:
            raise CannotUpgrade("the cluster is going down")
        await upgrade.try_program(self._to_hand_over(), self._processes, self._environ)
        loop = asyncio.get_running_loop()
        loop.call_later(_ANSWER_FIRST, self._reconciler.post, HandOver())

    def _upgrade_quietly(self) -> None:
        async def attempt() -> None:
            try:
                await self._upgrade()
            except CannotUpgrade as error:
                self._journal.write("", "upgrade", f"not upgraded: {error}")

        self._in_background(attempt())

    async def _become_another(self) -> None:
        """Does not come back, unless it cannot be done. No message may be waiting."""
        upgrade.hold_signals()  # and await nothing: a child that starts now would inherit that
        try:
            if self._unheard:
                self._reconciler.post(HandOver())  # once more, after what the signal asks for
            else:
                self._keeper.write_now()  # should the new program die before it can
                upgrade.become(self._to_hand_over(), self._environ)
        except CannotUpgrade as error:
            self._journal.write("", "upgrade", f"not upgraded: {error}")
        finally:
            upgrade.accept_signals()
        await asyncio.sleep(0)

    def _to_hand_over(self) -> Handover:
        """Raises CannotUpgrade."""
        if self._control is None:
            raise CannotUpgrade("it is just starting")
        listeners = self._processes.listeners.descriptors.items()
        return Handover(
            known=state.write(self._reconciler.known),
            started=self._started,
            upgrades=self._upgrades + 1,
            run_dir=str(self._run_dir.path),
            log_dir=str(self._options.log_dir.absolute()),
            run_dir_lock=self._run_dir.lock,
            log_dir_lock=self._log_lock,
            control_socket=self._control.fileno(),
            listeners=tuple((host, port, number) for (host, port), number in listeners),
        )

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _collect_garbage_from_now_on() -> None:
    """``up`` has put it off. What there is by now stays, and need not be looked at each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _warn_of_log_writer(pid: int) -> None:
    log.warning("the log writer (pid %d) ended; starting another, no output is lost", pid)


def _warn_of_loss(cause: str | None) -> None:
    if cause is None:
        log.warning("the logs can be written again; each says how much it has lost")
    else:
        log.warning("output of instances is being lost (%s); make room for the logs", cause)


def _ignore_signals() -> None:
    """All is stopped; one more Ctrl-C must not turn that into a failure."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
