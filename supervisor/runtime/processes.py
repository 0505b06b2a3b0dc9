"""Local processes: the engine that runs instances. Linux.

An instance is its whole tree (``tree.py``). A crash is reported the moment the leader is gone, what
is left of its tree is killed, and a successor starts only after the last of it has been reaped. An
instance that was told to stop is reported as exited when its whole tree is gone.

Everything that exits is reaped in one place, on SIGCHLD: leaders, strays that became our children,
commands of probes, the log writer. Nothing polls.

What an earlier supervisor has started is no child of ours (unless we have become another program
by exec): its leaders are watched through pidfds, and its strays, which went to init, are found
among all processes of the machine. Where control groups are delegated to us (``cgroups.py``), a
stray is also found if it has shed all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGCHLD, SIGCONT, SIGINT, SIGKILL, SIGTERM, Signals

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Template
from supervisor.core.lifecycle import Event, Exited, Spawned, SpawnFailed, Stage
from supervisor.runtime import pidfd, tree
from supervisor.runtime.cgroups import Cgroups
from supervisor.runtime.descriptors import hold_reserve, with_reserve
from supervisor.runtime.launching import Launcher, Needs, class_of, popen, why_not_started
from supervisor.runtime.leftovers import Leftover
from supervisor.runtime.listeners import Listeners
from supervisor.runtime.signals import on_signal
from supervisor.runtime.templates import Forked, NoTemplate, Templates

log = logging.getLogger(__name__)

Deliver = Callable[[str, Event], None]

_CLOSE_ROUNDS = 500
"""Times to look for what is left, ten milliseconds apart."""
_END_ROUNDS, _END_PAUSE = 200, 0.05
"""Ten seconds for what nobody knows to end, and as many for the kernel to kill it."""
_ORPHANS_PAUSES = 0.02, 0.5
"""Seconds between two looks at strays that are no children of ours, at first and at last: nobody
tells of their end, and all processes of the machine are looked through."""

_SIGNALS = {Stage.TERM: SIGTERM, Stage.INT: SIGINT, Stage.KILL: SIGKILL}


@dataclass
class _Process:
    """A leader and, after its death, what it left behind."""

    name: str
    run: int
    pid: int
    born: int
    """Its start time, see ``tree.Stat``."""
    told: bool = False
    """It was asked to stop: what it leaves behind gets the same time that it had itself."""
    exited: Exited | None = None
    cleared: asyncio.Event = field(default_factory=asyncio.Event)
    look: asyncio.TimerHandle | None = None
    """When it is looked again for what it left behind."""
    pause: float = _ORPHANS_PAUSES[0]


@dataclass
class _Seen:
    """Processes that may be strays: our children, or all of the machine, but for leaders."""

    pids: list[int]
    _marks: dict[int, str | None] = field(default_factory=dict)
    _sessions: dict[int, int | None] = field(default_factory=dict)

    def mark_of(self, pid: int) -> str | None:
        if pid not in self._marks:
            self._marks[pid] = tree.mark_of(pid)
        return self._marks[pid]

    def session_of(self, pid: int) -> int | None:
        if pid not in self._sessions:
            self._sessions[pid] = _session(pid)
        return self._sessions[pid]


class Processes:
    """``mark`` distinguishes this cluster's processes from those of any other supervisor."""

    def __init__(self, mark: str, environ: Mapping[str, str], deliver: Deliver) -> None:
        self._mark = mark
        self._deliver = deliver
        self._leaders: dict[int, _Process] = {}
        self._current: dict[str, _Process] = {}
        self._clearing: dict[str, _Process] = {}
        self._helpers: dict[int, Callable[[int], None]] = {}
        self._orphans: dict[int, _Process] = {}
        """Leaders that are no children of ours, by their pidfds."""
        self._has_orphans = False
        """There is, or was, one: strays may be anywhere."""
        self._seen: _Seen | None = None
        """What there is besides leaders, while this turn of the loop lasts."""
        self._launcher = Launcher(mark, environ)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, asyncio.Future[Forked]] = {}
        """Instances that are to be forked from a template."""

    @property
    def listeners(self) -> Listeners:
        """The listening sockets that instances are given."""
        return self._launcher.listeners

    @property
    def _cgroups(self) -> Cgroups | None:
        return self._launcher.cgroups

    def prepare(self) -> None:
        """To be called before anything is spawned."""
        tree.become_subreaper()
        hold_reserve()
        self._launcher.settle()

    def start(self) -> None:
        """Watch for exits. Must run in the main thread."""
        on_signal(SIGCHLD, self._reap)
        # What has ended while we became another program.
        asyncio.get_running_loop().call_soon(self._reap)

    # ------------------------------------------------------------ instances

    def spawn(
        self,
        spec: InstanceSpec,
        run: int,
        output: Callable[[], int],
        templates: Templates,
    ) -> None:
        """Start ``spec``; ``output`` opens the descriptor for its stdout and stderr; what has a
        template is forked from that of ``templates``, if it can be.

        Does not block. Reports ``Spawned`` or ``SpawnFailed``, and later ``Exited``.
        """
        before = self._clearing.get(spec.name)
        template = spec.template
        if template is not None and not os.path.isdir(spec.cwd):
            template = None  # what is wrong is told by a cold start
        if before is None and template is None:
            self._spawn(spec, run, output)
            return

        async def later() -> None:
            try:
                if before is not None:
                    await before.cleared.wait()
                if template is None:
                    self._spawn(spec, run, output)
                else:
                    await self._fork(spec, run, output, template, templates)
            except Exception as error:  # a defect; nobody else would ever hear of it
                log.exception("cannot start %s; please report this", spec.name)
                self._deliver(spec.name, SpawnFailed(run, repr(error), CauseClass.UNKNOWN))

        task = asyncio.create_task(later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def adopt(self, name: str, run: int, pid: int, born: int, *, told: bool) -> None:
        """Watch over the leader of an instance that runs already; ``told``: to stop.

        Reports ``Exited`` when it ends, also if it has ended before.
        """
        process = self._current[name] = _Process(name, run, pid, born, told=told)
        stat = tree.stat_of(pid)
        if stat is not None and stat.born == born:
            if stat.parent == os.getpid():
                self._leaders[pid] = process
                return
            if self._watch_orphan(process):
                return
        self._has_orphans = True  # what it left behind may be anywhere
        self._ended(process, Exited(run, None, None))

    def clear(self, name: str) -> None:
        """Kill what is left of an instance that has no leader. A ``spawn`` waits for it."""
        self._has_orphans = True
        process = _Process(name, run=0, pid=-1, born=0, exited=Exited(0, None, None))
        self._clearing[name] = process
        self._signal_all(process, SIGKILL)
        self._check_cleared(process)

    async def end(self, left: Collection[Leftover]) -> None:
        """Ask processes that are nobody's to end, and kill them if they do not.

        What they start meanwhile is found again with the instance of that name, or at the end.
        """
        self._has_orphans = self._has_orphans or bool(left)
        for number in (SIGTERM, SIGKILL):
            left = [one for one in left if tree.born(one.pid) == one.born]
            for one in left:
                _kill(one.pid, number)
            for _ in range(_END_ROUNDS):
                left = [one for one in left if tree.born(one.pid) == one.born]
                if not left:
                    return
                await asyncio.sleep(_END_PAUSE)

    def _watch_orphan(self, process: _Process) -> bool:
        """False if it is gone."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        if tree.born(process.pid) != process.born:  # gone between the look and the opening
            os.close(descriptor)
            return False
        self._has_orphans = True
        self._orphans[descriptor] = process
        asyncio.get_running_loop().add_reader(descriptor, self._orphan_ended, descriptor)
        return True

    def signal(self, name: str, stage: Stage) -> None:
        """Signal the whole tree of an instance. Does nothing if it is gone; what still waits for
        its template is not started any more."""
        if (waiting := self._waiting.get(name)) is not None:
            waiting.cancel()
        process = self._current.get(name)
        if process is None:
            return
        process.told = True
        # A stopped process heeds no other signal but SIGKILL.
        self._signal_all(process, _SIGNALS[stage], SIGCONT)

    def tree_of(self, name: str) -> list[int]:
        """All processes of an instance that are still there, the leader first."""
        process = self._current.get(name)
        if process is None:
            return []
        return [*([process.pid] if process.exited is None else []), *self._members(process)]

    def keep_listening(self, addresses: Collection[tuple[str, int]]) -> None:
        """Close the listening sockets of instances for all other addresses."""
        self.listeners.keep(addresses)

    def _spawn(self, spec: InstanceSpec, run: int, output: Callable[[], int]) -> None:
        """As a program of its own."""
        needs = self._provide(spec, run, output)
        if needs is not None:
            with contextlib.closing(needs):
                self._execute(spec, run, needs)

    async def _fork(
        self,
        spec: InstanceSpec,
        run: int,
        output: Callable[[], int],
        template: Template,
        templates: Templates,
    ) -> None:
        """As a copy of a process that has imported what it needs; as a program if there is none."""
        needs = self._provide(spec, run, output)
        if needs is None:
            return
        with contextlib.closing(needs):
            try:
                forked = await self._forked(spec, needs, template, templates)
            except asyncio.CancelledError:
                why = "it was told to stop before it began"
                self._deliver(spec.name, SpawnFailed(run, why, CauseClass.UNKNOWN))
                return
            if forked is None or not self._is_waiting(forked):
                self._execute(spec, run, needs)
                return
        self._began(spec, run, forked.pid, "forked from a warm template")
        forked.begin()

    async def _forked(
        self, spec: InstanceSpec, needs: Needs, template: Template, templates: Templates
    ) -> Forked | None:
        """None: it has to be started cold."""
        waiting = asyncio.ensure_future(templates.fork(template, needs.as_job(spec)))
        self._waiting[spec.name] = waiting
        try:
            return await waiting
        except NoTemplate as reason:
            level = logging.WARNING if spec.warmth == "warm" else logging.INFO
            log.log(level, "%s is started cold: %s", spec.name, reason)
            return None
        finally:
            del self._waiting[spec.name]

    def _is_waiting(self, forked: Forked) -> bool:
        """Not if somebody has killed it meanwhile: it may have been reaped as nobody's."""
        stat = tree.stat_of(forked.pid)
        if stat is not None and stat.parent == os.getpid() and stat.state not in "ZX":
            return True
        forked.drop()
        return False

    def _began(self, spec: InstanceSpec, run: int, pid: int, how: str) -> None:
        self._launcher.place(spec.name, pid)
        stat = tree.stat_of(pid)  # there is one: it is our child, and only we reap it
        process = _Process(spec.name, run, pid, stat.born if stat else 0)
        self._leaders[pid] = self._current[spec.name] = process
        self._deliver(spec.name, Spawned(run, pid, process.born, how))

    def _provide(self, spec: InstanceSpec, run: int, output: Callable[[], int]) -> Needs | None:
        """None, and it is told, if it cannot be had."""
        try:
            return with_reserve(lambda: self._launcher.provide(spec, run, output))
        except OSError as error:
            self._could_not(spec, run, error)
            return None

    def _execute(self, spec: InstanceSpec, run: int, needs: Needs) -> None:
        try:
            pid = with_reserve(lambda: self._launcher.execute(spec, needs))
        except OSError as error:
            self._could_not(spec, run, error)
        else:
            self._began(spec, run, pid, "started")

    def _could_not(self, spec: InstanceSpec, run: int, error: OSError) -> None:
        cause = why_not_started(spec, error)
        self._deliver(spec.name, SpawnFailed(run, cause, class_of(error)))

    def start_template(
        self,
        name: str,
        template: Template,
        output: Callable[[], int],
        descriptor: int,
        exited: Callable[[int], None],
    ) -> int:
        """Start a process that inherits ``descriptor``, and call ``exited`` with its status; its
        pid. Raises OSError."""
        pid = self._launcher.start_template(name, template, output, descriptor)
        self._launcher.place(name, pid)

        def gone(status: int) -> None:
            if self._cgroups is not None:
                self._cgroups.remove(name)
            exited(status)

        self.adopt_helper(pid, gone)
        return pid

    # ------------------------------------------------------------ other children

    def adopt_helper(self, pid: int, exited: Callable[[int], None]) -> None:
        """Have ``exited(status)`` called when a child that is no instance has been reaped."""
        self._helpers[pid] = exited

    async def run(self, argv: Sequence[str], spec: InstanceSpec, timeout: float) -> int:
        """Run a command in an instance's environment; its exit status.

        Raises OSError if it cannot be run, TimeoutError (and kills it) if it takes too long.
        """
        return await self.call(argv, spec.cwd, self._launcher.env_of(spec), timeout)

    async def call(
        self,
        argv: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        timeout: float,
        *,
        stdin: int = subprocess.DEVNULL,
        output: int | None = None,
    ) -> int:
        """The same for any command."""
        pid = popen(argv, cwd=cwd, env=env, stdin=stdin, output=output)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def exited(status: int) -> None:
            _kill_group(pid, SIGKILL)  # whatever it has left in the background
            if not done.done():
                done.set_result(status)

        self.adopt_helper(pid, exited)
        try:
            async with asyncio.timeout(timeout):
                return await done
        finally:
            if pid in self._helpers:
                _kill_group(pid, SIGKILL)

    async def close(self, *, spare: int | None) -> None:
        """Kill all that is left below us but ``spare``, whatever it has done to hide.

        We are the subreaper, so there is nothing that did not come from an instance. What an
        earlier supervisor has left elsewhere bears our mark.
        """
        for _ in range(_CLOSE_ROUNDS):
            below = tree.children(os.getpid())
            elsewhere = tree.marked(f"{self._mark}/") if self._has_orphans else ()
            grouped = self._cgroups.instances() if self._cgroups is not None else ()
            left = [pid for pid in dict.fromkeys((*below, *elsewhere, *grouped)) if pid != spare]
            if not left:
                return
            for pid in left:
                log.info("killing what is left: pid %d, %s", pid, tree.name_of(pid))
                for one in (pid, *tree.descendants(pid)):
                    _kill(one, SIGKILL)
            await asyncio.sleep(0.01)  # they are reaped meanwhile, and their children become ours
        log.warning("cannot kill %s; see what holds it", ", ".join(map(str, left)))

    # ------------------------------------------------------------ exits

    def _reap(self) -> None:
        ended = []
        with contextlib.suppress(ChildProcessError):
            while result := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                ended.append(result)
        if not ended:
            return  # a signal came for each of them, and they were all found at the first
        self._seen = None  # what they left is ours by now
        for result in ended:
            self._reaped(result.si_pid, result.si_code, result.si_status)
        self._check_all_cleared()

    def _check_all_cleared(self) -> None:
        for process in list(self._clearing.values()):
            self._check_cleared(process)

    def _orphan_ended(self, descriptor: int) -> None:
        process = self._orphans.pop(descriptor)
        asyncio.get_running_loop().remove_reader(descriptor)
        status = pidfd.exit_status(descriptor, process.pid)
        os.close(descriptor)
        if status is None:
            exited = Exited(process.run, None, None)
        elif os.WIFSIGNALED(status):
            exited = Exited(process.run, None, _signal_name(os.WTERMSIG(status)))
        else:
            exited = Exited(process.run, os.WEXITSTATUS(status), None)
        self._ended(process, exited)
        self._check_cleared(process)

    def _reaped(self, pid: int, code: int, status: int) -> None:
        process = self._leaders.pop(pid, None)
        if process is None:
            helper = self._helpers.pop(pid, None)
            if helper is not None:
                helper(status)
            return
        if code == os.CLD_EXITED:
            self._ended(process, Exited(process.run, status, None))
        else:
            self._ended(process, Exited(process.run, None, _signal_name(status)))

    def _ended(self, process: _Process, exited: Exited) -> None:
        """A leader is gone; what it left behind is to follow."""
        process.exited = exited
        self._clearing[process.name] = process
        if self._has_orphans:
            asyncio.get_running_loop().call_soon(self._check_all_cleared)
        strays = self._strays(process)
        if strays:
            # A graceful stop has been announced to the whole tree; a crash has not.
            how = SIGTERM if process.told else SIGKILL
            log.info("%s left %d processes behind; sending %s", process.name, len(strays), how.name)
            self._signal_all(process, how)
        if not process.told:
            self._deliver(process.name, exited)

    def _check_cleared(self, process: _Process) -> None:
        """Report a stop, and let a successor start, once nothing of the tree is left."""
        if self._clearing.get(process.name) is not process:
            return
        strays = self._strays(process)
        if strays is None or strays:
            if strays and not process.told:
                self._signal_all(process, SIGKILL)
            if (self._has_orphans or strays is None) and process.look is None:
                loop = asyncio.get_running_loop()
                process.look = loop.call_later(process.pause, self._look_again, process)
            return
        if self._cgroups is not None:
            self._cgroups.remove(process.name)
        del self._clearing[process.name]
        if self._current.get(process.name) is process:
            del self._current[process.name]
        process.cleared.set()
        if process.told and process.exited is not None:
            self._deliver(process.name, process.exited)

    def _strays(self, process: _Process) -> list[int] | None:
        """What is left of its tree; None if we cannot look now: no exit may be lost for that."""
        try:
            return self._members(process)
        except OSError as error:
            log.warning("cannot see what %s left: %s; looking again", process.name, error.strerror)
            return None

    def _look_again(self, process: _Process) -> None:
        process.look = None
        process.pause = min(2 * process.pause, _ORPHANS_PAUSES[1])
        self._check_cleared(process)

    # ------------------------------------------------------------ trees

    def _members(self, process: _Process) -> list[int]:
        """Processes of the tree, without the leader."""
        below = tree.descendants(process.pid) if process.exited is None else []
        mark = f"{self._mark}/{process.name}"
        # A number is not given out again while it is still a session's.
        holder = tree.stat_of(process.pid)
        is_its_own = holder is None or holder.born == process.born
        session = process.pid if is_its_own and process.pid > 1 else None
        seen = self._look_around()
        apart = set(below)
        for pid in seen.pids:
            if pid in apart or pid in self._leaders:  # it may be one by now
                continue
            is_its = seen.mark_of(pid) == mark or (
                session is not None and seen.session_of(pid) == session
            )
            if is_its and tree.born(pid) is not None:
                below += [pid, *tree.descendants(pid)]
        if self._cgroups is not None:
            apart = {os.getpid(), *self._leading(), *self._helpers}
            below += [pid for pid in self._cgroups.members(process.name) if pid not in apart]
        return list(dict.fromkeys(below))

    def _look_around(self) -> _Seen:
        """Once for all that is asked in one turn of the loop: a thousand that stop at once must not
        look through a thousand each. Nothing that is our child is reaped meanwhile."""
        if self._seen is None:
            known = {os.getpid(), *self._leading(), *self._helpers}
            found = tree.pids() if self._has_orphans else tree.children(os.getpid())
            self._seen = _Seen([pid for pid in found if pid not in known])
            asyncio.get_running_loop().call_soon(self._look_away, self._seen)
        return self._seen

    def _look_away(self, seen: _Seen) -> None:
        if self._seen is seen:
            self._seen = None

    def _leading(self) -> Iterator[int]:
        return (one.pid for one in self._current.values() if one.exited is None)

    def _signal_all(self, process: _Process, *numbers: Signals) -> None:
        leads = process.exited is None
        if SIGKILL in numbers and self._cgroups is not None:
            self._cgroups.kill(process.name)  # also what is being forked right now
        if leads:
            for number in numbers:
                _kill_group(process.pid, number)
        for pid in self._strays(process) or ():
            # Once the leader has been reaped, its number may be another group's.
            if not leads or _group(pid) != process.pid:
                for number in numbers:
                    _kill(pid, number)


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill(pid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _kill_group(pid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
