"""The composition root: joins all parts of a running supervisor, and lets them go in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.core.instance import InstanceSpec
from supervisor.daemon import claims
from supervisor.daemon.effects import LocalEffects
from supervisor.daemon.journal import Entry, Journal
from supervisor.daemon.prepare import ports_of, prepare
from supervisor.daemon.reconciler import GoDown, Reconciler
from supervisor.daemon.reload import Reloader
from supervisor.runtime.logs import InstanceLogs
from supervisor.runtime.processes import Processes
from supervisor.runtime.rundir import RunDir, RunDirError
from supervisor.runtime.watch import FileWatch
from supervisor.spec.load import ClusterFile, load

if TYPE_CHECKING:
    from supervisor.daemon.api import Api

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Where things are: decided by flag, environment and file (see ``cli/locations.py``)."""

    file: Path
    run_dir: Path
    log_dir: Path


def run(options: Options, environ: Mapping[str, str], listener: Callable[[Entry], None]) -> None:
    """Run the cluster until it is told to stop. Blocks.

    Raises SpecError (the file, or a port, is no good; nothing was started) and RunDirError.
    """
    file = load(options.file, environ)
    run_dir = RunDir(options.run_dir)
    run_dir.claim()
    try:
        claims.refuse_leftovers(_mark(run_dir))
        specs = prepare(file, run_dir.remembered_ports(), environ)
        claims.claim_log_dir(options.log_dir)
        run_dir.remember_ports(ports_of(specs.values()))
        asyncio.run(_serve(file, specs, options, run_dir, environ, listener))
    finally:
        run_dir.release()


async def _serve(
    file: ClusterFile,
    specs: dict[str, InstanceSpec],
    options: Options,
    run_dir: RunDir,
    environ: Mapping[str, str],
    listener: Callable[[Entry], None],
) -> None:
    started = time.time()
    journal = Journal(time.time)
    journal.listen(listener)
    processes = Processes(_mark(run_dir), environ, lambda *event: reconciler.deliver(*event))
    processes.start()
    logs = InstanceLogs(run_dir.path, options.log_dir, on_writer_exit=_warn_of_log_writer)
    effects = LocalEffects(
        processes,
        logs,
        file.cluster.logs,
        file.cluster.controller.external if file.cluster.controller else None,
        deliver=lambda *event: reconciler.deliver(*event),
    )
    reconciler = Reconciler(specs, effects, journal)
    reloader = Reloader(file, specs, reconciler, effects, journal, run_dir, environ)
    watch = FileWatch(lambda: in_background(reloader.reload_quietly()))
    watched: set[Path] = set()

    def look_after(now: ClusterFile, named: Collection[Path]) -> None:
        """Watch the file and all it names; what is new among them may have changed since."""
        files = {now.path, *now.named, *named} if now.cluster.watch else set()
        news = files - watched
        watched.clear()
        watched.update(files)
        watch.watch(files)
        if news:
            in_background(reloader.reload_quietly())

    tasks: set[asyncio.Task[None]] = set()

    def in_background(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        await _start_logs(logs, processes, specs)
        _listen_to_signals(reconciler, lambda: in_background(reloader.reload_quietly()))
        supervising = asyncio.create_task(reconciler.run())
        reconciler.start_instances(specs, "the cluster starts")
        await asyncio.sleep(0)  # the first processes are started here, before the API is imported
        from supervisor.daemon.api import Api, Daemon

        daemon = Daemon(
            reconciler=reconciler,
            journal=journal,
            file=options.file.absolute(),
            run_dir=run_dir.path,
            log_dir=options.log_dir.absolute(),
            started=started,
            log_path=logs.path,
            reloader=reloader,
        )
        async with _listening(Api(daemon), run_dir):
            reloader.read = look_after
            look_after(file, ())
            await supervising
    finally:
        # Also when something went wrong halfway: nothing may run without a supervisor.
        await watch.close()
        await effects.close()
        await processes.close(spare=logs.writer_pid)
        await logs.close()
        _ignore_signals()


@contextlib.asynccontextmanager
async def _listening(api: Api, run_dir: RunDir) -> AsyncIterator[None]:
    try:
        await api.start(run_dir.socket)
    except OSError as error:
        raise RunDirError(f"cannot open the socket {run_dir.socket}: {error.strerror}") from None
    try:
        yield
    finally:
        await api.close()


async def _start_logs(
    logs: InstanceLogs, processes: Processes, specs: Mapping[str, InstanceSpec]
) -> None:
    try:
        await logs.start()
    except OSError as error:
        raise RunDirError(f"cannot start the log writer: {error}") from None
    for name in logs.names - specs.keys():
        logs.forget(name)

    def watch() -> None:
        if logs.writer_pid is not None:
            processes.adopt_helper(logs.writer_pid, lambda _: exited())

    def exited() -> None:
        logs.writer_exited()
        watch()

    watch()


def _warn_of_log_writer(pid: int) -> None:
    log.warning("the log writer (pid %d) ended; starting another, no output is lost", pid)


def _listen_to_signals(reconciler: Reconciler, reload: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, reconciler.post, GoDown(f"received {number.name}"))
    # A closed terminal sends it, too, and is no reason to stop serving.
    loop.add_signal_handler(signal.SIGHUP, reload)


def _ignore_signals() -> None:
    """All is stopped; one more Ctrl-C must not turn that into a failure."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _mark(run_dir: RunDir) -> str:
    """Distinguishes this cluster's processes from those of any other supervisor on the machine."""
    return hashlib.sha256(os.fsencode(run_dir.path)).hexdigest()[:16]
