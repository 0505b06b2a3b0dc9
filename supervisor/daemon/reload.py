"""The cluster file while it runs: read again, planned, applied; a bad one changes nothing.

Planning is imported when it is first needed: a first start has nothing to plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.core.cluster import ClusterState
from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State
from supervisor.core.order import StartLimit
from supervisor.daemon.effects import LocalEffects
from supervisor.daemon.journal import Journal
from supervisor.daemon.prepare import ports_of, prepare, start_limit
from supervisor.daemon.reconciler import Reconciler, Want
from supervisor.runtime.rundir import RunDir, RunDirError
from supervisor.spec.load import ClusterFile, load, load_text
from supervisor.spec.problems import Problem, SpecError

if TYPE_CHECKING:
    from supervisor.daemon.views import PlanView

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reload:
    """What a reload has set going; ``number`` is the last event before it."""

    changed: bool
    number: int
    plan: PlanView


Prepared = tuple[ClusterFile, dict[str, InstanceSpec], StartLimit]


@dataclass
class Reloader:
    """Holds the file that is in force, and what it wants. ``read`` is told, after each look at the
    file, of all files that make it up."""

    file: ClusterFile
    wanted: dict[str, InstanceSpec]
    reconciler: Reconciler
    effects: LocalEffects
    journal: Journal
    run_dir: RunDir
    environ: Mapping[str, str]
    read: Callable[[ClusterFile, Collection[Path]], None] = lambda *_: None
    around: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext
    """Entered for as long as the file is read and planned."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the file as it is now."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def reload(self, *, retry: bool = False) -> Reload:
        """Read the file and apply what has changed. Raises SpecError, and has told it.

        ``retry``: try again what could not be started, though nothing has changed.
        """
        async with self._lock, self.around():
            number = self.journal.number
            try:
                file, wanted, limit = await self._prepare(None)
            except SpecError as error:
                self.tell_problems(error.problems)
                self.read(self.file, error.named)
                raise
            from supervisor.daemon.planning import changes_of

            self._tell_mended()
            plan = self._planned(file, wanted)
            changed = bool(changes_of(plan))
            self._apply(file, wanted, limit, plan, retry=retry)
            return Reload(changed, number, plan)

    async def reload_quietly(self) -> None:
        """The same for a file that was saved, or a signal: nobody waits for the answer."""
        if self.reconciler.state is ClusterState.STOPPING:
            return
        try:
            await self.reload()
        except SpecError:
            pass  # told already
        except Exception:
            log.exception("cannot reload %s; please report this", self.file.path)

    async def plan(self, text: str | None = None) -> PlanView:
        """What the file as it is now (or ``text`` in its place) would change. Raises SpecError."""
        file, wanted, _ = await self._prepare(text)
        return self._planned(file, wanted)

    # ------------------------------------------------------------ steps

    async def _prepare(self, text: str | None) -> Prepared:
        while True:
            running = self._ports_in_use()
            try:
                return await asyncio.to_thread(self._prepared, text, running)
            except SpecError:
                if running == self._ports_in_use():
                    raise
                # An instance has just opened its port, and was taken for a stranger.
            except OSError as error:
                what = f"cannot be applied now: {error.strerror or error}"
                where = error.filename or self.file.path
                raise SpecError([Problem(str(where), 0, 0, "", what)]) from error

    def _ports_in_use(self) -> dict[str, int]:
        return {
            one.name: one.spec.port
            for one in self.reconciler.members
            if one.spec.port is not None and one.state is not State.STOPPED
        }

    def _prepared(self, text: str | None, running: Mapping[str, int]) -> Prepared:
        """Runs in a thread of its own: it touches nothing that the reconciler has."""
        path = self.file.path
        file = load(path, self.environ) if text is None else load_text(text, path, self.environ)
        remembered = self.run_dir.remembered_ports()
        wanted = prepare(file, remembered, self.environ, running=running)
        return file, wanted, start_limit(file.cluster)

    def _planned(self, file: ClusterFile, wanted: Mapping[str, InstanceSpec]) -> PlanView:
        """Against what is wanted until now, and not what is there: a change that is under way, or
        was given up, is none."""
        from supervisor.daemon.planning import planned

        return planned(self.wanted, wanted, self.file, file)

    def _apply(
        self,
        file: ClusterFile,
        wanted: dict[str, InstanceSpec],
        limit: StartLimit,
        plan: PlanView,
        *,
        retry: bool,
    ) -> None:
        from supervisor.daemon.planning import at_next_up, changes_of

        old, self.file, self.wanted = self.file, file, wanted
        self.read(file, file.named)
        changes = changes_of(plan)
        if changes:
            what = ", ".join(f"{change.action} {change.instance}" for change in changes)
            self.journal.write("", "file", f"{file.path.name} is applied: {what}")
        elif old.text != file.text or old.cluster != file.cluster:
            self.journal.write("", "file", f"{file.path.name} is applied: nothing to do")
        elif not retry:
            return
        for one in at_next_up(old, file):
            text = f"{one}: it counts when the supervisor starts the next time"
            self.journal.write("", "file", text)
        known = {(one.path, one.message) for one in old.warnings}
        for warning in file.warnings:
            if (warning.path, warning.message) not in known:
                self.journal.write("", "file", f"warning: {warning}")
        controller = file.cluster.controller
        external = controller.external if controller else None
        self.effects.configure(file.cluster.logs, external, self.reconciler.specs)
        try:
            self.run_dir.remember_ports(ports_of(wanted.values()))
        except RunDirError as error:
            log.warning("%s", error)  # the next start may give out other ports, no more
        reasons = {change.instance: change.reason for change in changes}
        self.reconciler.post(Want(wanted, reasons, retry, limit))

    def tell_problems(self, problems: tuple[Problem, ...]) -> None:
        """The file cannot be applied; told once."""
        if problems == self.problems:
            return
        self.problems = problems
        for problem in problems:
            self.journal.write("", "file", str(problem))
        text = "the file is not applied; the cluster goes on with the last good one"
        self.journal.write("", "file", text)

    def _tell_mended(self) -> None:
        if self.problems:
            self.problems = ()
            self.journal.write("", "file", "the file is valid again")
