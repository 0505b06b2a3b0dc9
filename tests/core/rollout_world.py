"""A simulated supervisor and a simulated machine: what a rollout does, watched at every step.

``World`` carries ``next_steps`` out as the reconciler does, with the real ``lifecycle.step`` and
the real ``order``; below it are processes that work, fail or crash, in an order that the test
decides. It holds what a rollout promises against every single batch of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.lifecycle import (
    RUNNING,
    Adjusted,
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnose,
    Diagnosed,
    Drain,
    Drained,
    Effect,
    EnteredRotation,
    EnterRotation,
    Event,
    Exited,
    LeaveRotation,
    Outcome,
    Probed,
    RestartRequested,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    StartProbes,
    StartRequested,
    State,
    Status,
    StopProbes,
    StopRequested,
    TimerFired,
    step,
)
from supervisor.core.order import StartLimit, startable, stoppable, takes_a_place
from supervisor.core.plan import candidates, form_of
from supervisor.core.rollout import (
    Abandon,
    Adjust,
    Forget,
    History,
    Launch,
    Member,
    Progress,
    Retire,
    Step,
    Swap,
    next_steps,
    progress,
)

SERVING = (State.READY, State.UNREADY)


class Luck(StrEnum):
    """What becomes of a process that is launched."""

    WORKS = "works"
    FAILS = "fails"
    """It exits, and the next one may do better for all that anybody knows."""
    HOPELESS = "hopeless"
    MISSING = "its program is missing"
    FINISHES = "exits with 0"


@dataclass(eq=False)
class Instance:
    spec: InstanceSpec
    status: Status = field(default_factory=Status)
    leaving: bool = False
    outdated: bool = False
    launched: str | None = None
    """What its process was launched with; None: there is none, not even one about to be."""
    spawning: bool = False
    probes: set[Check] = field(default_factory=set)
    probed_run: int = 0
    entering: int | None = None
    draining: int | None = None
    signalled: bool = False
    diagnoses: list[int] = field(default_factory=list)
    hopeless_runs: set[int] = field(default_factory=set)
    """Those whose log says that no restart can help."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> State:
        return self.status.state

    @property
    def member(self) -> Member:
        return Member(self.spec, self.status, self.leaving, self.outdated)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.wanted: dict[str, InstanceSpec] = {}
        self.limit: StartLimit | None = None
        self.instances: dict[str, Instance] = {}
        self.histories: dict[str, History] = {}
        self.luck: dict[str, Luck] = {}
        """By launch; what is not in it works."""
        self.log: list[Step] = []
        self.stopped_slots: set[str] = set()
        """A person has stopped what runs there, and nobody has started it since."""
        self.counts: dict[str, tuple[int, int]] = {}
        """Run and epoch of what was forgotten."""
        self._pids = itertools.count(100)

    # ------------------------------------------------------------ what people do

    def edit(self, *targets: InstanceSpec) -> None:
        self.wanted = {one.slot: one for one in targets}
        self.stopped_slots &= set(self.wanted)

    def live(self, slot: str) -> list[Instance]:
        return [one for one in self.members_of(slot) if not one.leaving]

    def members_of(self, slot: str) -> list[Instance]:
        return [one for one in self.instances.values() if one.spec.slot == slot]

    def stop(self, slot: str) -> None:
        for one in self.live(slot):
            self.stopped_slots.add(slot)
            self.tell(one, StopRequested("asked to stop"))

    def start(self, slot: str) -> None:
        self.stopped_slots.discard(slot)
        for one in self.live(slot):
            if not self._place_is_held(one):
                self.tell(one, StartRequested("asked to start"))

    def restart(self, slot: str) -> None:
        for one in self.live(slot):
            rolls = one.spec.role is Role.WORKER or one.spec.surge
            if one.state in RUNNING and one.status.wanted and rolls:
                one.outdated = True
            elif not self._place_is_held(one):
                self.stopped_slots.discard(slot)
                self.tell(one, RestartRequested("asked to restart"))

    def _place_is_held(self, one: Instance) -> bool:
        return any(
            (other.spec.port == one.spec.port and other.state is not State.STOPPED)
            or self._gives_up(other, one.spec.gpus)
            for other in self.instances.values()
            if other is not one
        )

    def _gives_up(self, one: Instance, gpus: Iterable[str]) -> set[str]:
        """Those of ``gpus`` that it has, if only until it has gone."""
        if one.state is State.STOPPED and not one.status.wanted:
            return set()
        target = self.wanted.get(one.spec.slot)
        stays_on = target.gpus if target else ()
        return set(one.spec.gpus).difference(stays_on).intersection(gpus)

    def _has_to_wait(self, target: InstanceSpec) -> bool:
        """What it needs is still another's."""
        others = [one for one in self.instances.values() if one.spec.slot != target.slot]
        ports = {form.port for form in candidates(target)} - {None}
        return any(self._gives_up(one, target.gpus) or one.spec.port in ports for one in others)

    def _luck_of(self, launch: str | None) -> Luck:
        """Which GPUs it is on has nothing to do with it."""
        return self.luck.get((launch or "").partition(" on ")[0], Luck.WORKS)

    # ------------------------------------------------------------ the reconciler

    def tell(self, one: Instance, event: Event) -> None:
        before = one.status
        one.status, effects = step(before, event, one.spec, now=self.now)
        self._do(one, effects)
        if isinstance(event, Exited) and not one.spec.is_launchable:
            self.histories.pop(one.spec.slot, None)
        if one.state is State.READY and before.state is not State.READY:
            self._is_ready(one)
        self.check_always()

    def _do(self, one: Instance, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Spawn(_):
                    assert one.launched is None, "two processes of one instance"
                    one.launched, one.spawning, one.signalled = one.spec.launch, True, False
                case Signal(_):
                    one.signalled = True
                case StartProbes(run, checks):
                    one.probed_run = run
                    one.probes |= set(checks)
                case StopProbes():
                    one.probes.clear()
                case EnterRotation(run):
                    one.entering = run
                case LeaveRotation():
                    one.entering = None
                case Drain(run):
                    one.draining = run
                case Diagnose(run):
                    one.diagnoses.append(run)

    def _is_ready(self, one: Instance) -> None:
        known = self.histories.get(one.spec.slot, History())
        mended = known.failure is not None and known.failure.launch == one.spec.launch
        self.histories[one.spec.slot] = History(one.spec, None if mended else known.failure)

    def entry(self, name: str) -> tuple[InstanceSpec, Status]:
        return self.instances[name].spec, self.instances[name].status

    def starting(self) -> list[Instance]:
        """Those with a place among the workers that are starting."""
        return [one for one in self.instances.values() if takes_a_place(one.spec, one.status)]

    def members(self) -> list[Member]:
        return [one.member for one in self.instances.values()]

    def next_steps(self) -> list[Step]:
        return next_steps(self.wanted, self.members(), self.histories, self.limit)

    def progress(self) -> Progress:
        return progress(self.wanted, self.members(), self.histories)

    def settle(self) -> list[Step]:
        """What the reconciler does when its inbox is empty. Returns the rollout's steps."""
        done: list[Step] = []
        for _ in range(30):
            steps = self.next_steps()
            self._check_batch(steps)
            for one in steps:
                self._carry_out(one)
            done += steps
            entries = [(one.spec, one.status) for one in self.instances.values()]
            stops = list(stoppable(entries))
            starts = list(startable(entries, self.services(), self.limit))
            for name in stops:
                self.tell(self.instances[name], DependentsStopped())
            for name in starts:
                self.tell(self.instances[name], DependenciesReady())
                if self.limit is not None and takes_a_place(*self.entry(name)):
                    assert len(self.starting()) <= self.limit.workers, "too many start at once"
            if not steps and not stops and not starts:
                self._check_settled()
                return done
        raise AssertionError(f"a livelock: {done[-6:]}")

    def _carry_out(self, todo: Step) -> None:
        self.log.append(todo)
        match todo:
            case Launch(spec, reason):
                assert spec.name not in self.instances, f"{spec.name} is there already"
                run, epoch = self.counts.pop(spec.name, (0, 0))
                one = Instance(spec, Status(run=run, epoch=epoch))
                self.instances[spec.name] = one
                self.tell(one, StartRequested(reason))
            case Adjust(spec):
                one = self.instances[spec.name]
                before, one.spec = one.spec, spec
                self.tell(one, Adjusted(before))
                if one.state is State.FAILED and not before.is_launchable:
                    self.tell(one, StartRequested("it is known again how to start it"))
                known = self.histories.get(spec.slot)
                if one.state is State.READY and known is not None:
                    self.histories[spec.slot] = replace(known, good=spec)
            case Swap(spec, reason, start):
                one = self.instances[spec.name]
                one.spec = spec
                if start:
                    self.tell(one, StartRequested(reason))
            case Retire(name, reason):
                one = self.instances[name]
                one.leaving = True
                self.tell(one, StopRequested(reason))
            case Forget(name):
                assert self.instances[name].launched is None, "a process is forgotten"
                gone = self.instances.pop(name).status
                self.counts[name] = (gone.run, gone.epoch)
            case Abandon(slot, failure):
                self.histories[slot] = replace(self.histories[slot], failure=failure)
                for one in self.members_of(slot):
                    one.outdated = False

    # ------------------------------------------------------------ what must hold

    def services(self) -> dict[str, list[InstanceSpec]]:
        found: dict[str, list[InstanceSpec]] = {}
        for target in self.wanted.values():
            found.setdefault(target.service, []).append(target)
        return found

    def has_failed(self, service: str) -> bool:
        """The rollout of what the file says has been given up in one of its slots."""
        for target in self.services().get(service, []):
            known = self.histories.get(target.slot, History())
            if known.failure is not None and known.failure.launch == target.launch:
                assert known.good is not None
                if self._can_go_back(target, known.good):
                    return True
        return False

    def _can_go_back(self, target: InstanceSpec, good: InstanceSpec) -> bool:
        """Nobody else is to have what it needs for that, or has been ready there yet."""
        gpus = set(good.gpus).difference(target.gpus)
        for other in self.wanted.values():
            if other.slot != target.slot:
                untried = self.histories.get(other.slot, History()).good is None
                if good.port is not None and good.port in [f.port for f in candidates(other)]:
                    return False
                if gpus & set(other.gpus) and not (other.service == target.service and untried):
                    return False
        return True

    def is_ready(self, slot: str) -> bool:
        return any(one.state is State.READY for one in self.live(slot))

    def _missing(self, targets: list[InstanceSpec], without: set[str]) -> int:
        """Slots in which nothing is ready that should be."""
        missing = 0
        for target in targets:
            here = self.live(target.slot)
            willed = here and not any(one.status.wanted for one in here)
            if not here and self._has_to_wait(target):
                continue
            ready = any(one.state is State.READY and one.name not in without for one in here)
            missing += not ready and not willed
        return missing

    def _crowd(self, targets: list[InstanceSpec]) -> int:
        return sum(max(0, len(self.members_of(one.slot)) - 1) for one in targets)

    def _check_batch(self, steps: list[Step]) -> None:
        retired = {one.instance for one in steps if isinstance(one, Retire)}
        for todo in steps:
            match todo:
                case Retire(name):
                    self._check_retire(self.instances[name], retired)
                case Swap(spec):
                    one = self.instances[spec.name]
                    assert one.launched is None, "the spec of a process was swapped"
                    assert not (todo.start and one.spec.slot in self.stopped_slots)
                    if todo.start or one.status.wanted:
                        self._check_gpus(spec)
                case Adjust(spec):
                    is_now = self.instances[spec.name].spec
                    assert (is_now.launch, is_now.port) == (spec.launch, spec.port)
                case Launch(spec):
                    self._check_gpus(spec)
                    assert spec.slot not in self.stopped_slots, "a person has stopped that"
                    assert len(self.members_of(spec.slot)) < 2
                    assert spec.surge or not self.members_of(spec.slot), "its old one is there"
                    for other in self.instances.values():
                        same = other.spec.port == spec.port and other.spec.slot != spec.slot
                        assert not same or other.launched is None, "its port is in use"
                case Abandon(slot):
                    assert self.histories[slot].good is not None
        for targets in self.services().values():
            before = self._missing(targets, set())
            after = self._missing(targets, retired)
            assert after <= max(before, targets[0].max_unavailable), "too many at a time"
            launched = [
                one.spec.slot
                for one in steps
                if isinstance(one, Launch) and one.spec.service == targets[0].service
            ]
            more = sum(1 for slot in launched if self.members_of(slot))
            assert not more or self._crowd(targets) + more <= 1, "more than one extra instance"

    def _check_retire(self, one: Instance, retired: set[str]) -> None:
        target = self.wanted.get(one.spec.slot)
        if one.spec.role is Role.CONTROLLER and one.status.wanted and not one.leaving:
            others = [o for o in self.live(one.spec.slot) if o is not one]
            fits = target is None or any(
                form_of(other.spec, target) and not other.outdated for other in others
            )
            if fits and any(o.state is State.READY and o.status.wanted for o in others):
                assert not self._asks_the_old_one(one.spec), "somebody still asks it"
        if target is None or one.leaving:
            return
        staying = [
            other
            for other in self.live(target.slot)
            if other is not one and other.name not in retired
        ]
        is_it = any(
            (form.name, form.launch, form.port) == (one.name, one.spec.launch, one.spec.port)
            for form in candidates(target)
        )
        if is_it and not one.outdated and not self.has_failed(target.service):
            fits = {form.launch for form in candidates(target)}
            assert any(other.spec.launch in fits for other in staying), "its launch did not change"
        if one.state is State.READY and one.status.wanted:
            self._check_place(one, staying)
            replaced = any(other.state is State.READY for other in staying)
            may_stay = self._can_go_back(target, one.spec)
            if self.has_failed(target.service) and may_stay and not one.outdated:
                assert replaced, "a failed rollout touches what serves"
            assert replaced or not self._waits_alone(target), "it goes for one that cannot start"
            beside = target.surge and target.beside is not None and not self._has_to_wait(target)
            if beside and not self.has_failed(target.service) and _can_be_beside(target, one.spec):
                assert replaced, "a surge left a gap"

    def _check_place(self, one: Instance, staying: list[Instance]) -> None:
        """Nothing serves in its place, and what is to would have to wait until others have started.
        Those that were to start as well, in the same batch or before, would do so first."""
        taken_over = any(other.state is State.READY or not other.status.wanted for other in staying)
        if self.limit is not None and one.spec.role is Role.WORKER and not taken_over:
            assert len(self.starting()) < self.limit.workers, "its successor would have to wait"

    def _asks_the_old_one(self, controller: InstanceSpec) -> bool:
        for one in self.instances.values():
            target = self.wanted.get(one.spec.slot)
            asks_it = one.spec.argv == ("ask", str(controller.port)) and not one.leaving
            if asks_it and target is not None and one.state in SERVING and one.status.wanted:
                if self.has_failed(one.spec.service) or self.has_failed(controller.service):
                    continue
                if one.outdated or one.spec.launch != target.launch:
                    return True
        return False

    def _waits_alone(self, target: InstanceSpec) -> bool:
        """For what another is giving up already: it will be had in a while."""
        if self.has_failed(target.service):
            return False
        going = [one for one in self.instances.values() if one.spec.slot not in self.wanted]
        return any(self._gives_up(one, target.gpus) for one in going)

    def _check_gpus(self, spec: InstanceSpec) -> None:
        """What is to start shares a GPU with another replica only where the file says so."""
        for other in self.instances.values():
            shared = set(spec.gpus).intersection(other.spec.gpus)
            if not shared or other.launched is None or other.spec.slot == spec.slot:
                continue
            for each in (spec, other.spec):
                target = self.wanted.get(each.slot)
                if target is None or not self.has_failed(target.service):
                    assert target is not None, "its GPU is another's, which leaves"
                    assert shared <= set(target.gpus), "its GPU is still another's"

    def check_always(self) -> None:
        ports: dict[int, str] = {}
        for one in self.instances.values():
            if one.launched is not None and one.spec.port is not None:
                assert ports.setdefault(one.spec.port, one.spec.slot) == one.spec.slot
                assert one.launched == one.spec.launch, "a process passes for another"

    def _check_settled(self) -> None:
        for slot in self.wanted:
            here = self.members_of(slot)
            assert len(here) <= 2
            ready = [one for one in here if one.state is State.READY and not one.leaving]
            is_asked = self.wanted[slot].role is Role.CONTROLLER  # by those still to be replaced
            assert len(ready) < 2 or is_asked, "two of one replica"
        for slot in self.stopped_slots:
            assert self.live(slot)
            assert not any(one.status.wanted for one in self.live(slot))

    # ------------------------------------------------------------ the machine

    def possible(self) -> Iterator[Callable[[], None]]:
        """What can happen next, if nothing goes wrong but what its luck says."""
        for one in self.instances.values():
            yield from self._possible_of(one)

    def _possible_of(self, one: Instance) -> Iterator[Callable[[], None]]:
        luck = self._luck_of(one.launched)
        if one.spawning:
            yield lambda: self._spawns(one, luck)
        elif one.launched is not None:
            if one.signalled:
                yield lambda: self.exits(one, -15)
            elif one.state is State.STARTING and luck is Luck.FINISHES:
                yield lambda: self.exits(one, 0)
            elif one.state is State.STARTING and luck is not Luck.WORKS:
                yield lambda: self.exits(one, 1)
            elif Check.STARTUP in one.probes:
                yield lambda: self._answers(one, Check.STARTUP)
        if one.entering is not None:
            yield lambda: self._enters(one)
        if one.draining is not None:
            yield lambda: self._drained(one)
        if one.diagnoses:
            yield lambda: self._diagnosed(one)
        if one.state is State.UNREADY and Check.READINESS in one.probes:
            yield lambda: self._answers(one, Check.READINESS)

    def _spawns(self, one: Instance, luck: Luck) -> None:
        one.spawning = False
        if luck is Luck.MISSING:
            one.launched = None
            self.tell(one, SpawnFailed(one.status.run, "no such program", CauseClass.WRONG_CONFIG))
        else:
            pid = next(self._pids)
            self.tell(one, Spawned(one.status.run, pid, born=pid))

    def exits(self, one: Instance, code: int) -> None:
        if one.launched is not None and not one.spawning:
            if code > 0 and self._luck_of(one.launched) is Luck.HOPELESS:
                one.hopeless_runs.add(one.status.run)
            one.launched, one.signalled, one.entering, one.draining = None, False, None, None
            self.tell(one, Exited(one.status.run, code, None))

    def _answers(self, one: Instance, check: Check) -> None:
        if check is Check.STARTUP:
            one.probes.discard(check)
        self.tell(one, Probed(one.probed_run, check, Outcome.PASSED, "fine"))

    def _enters(self, one: Instance) -> None:
        run, one.entering = one.entering, None
        assert run is not None
        self.tell(one, EnteredRotation(run))

    def _drained(self, one: Instance) -> None:
        run, one.draining = one.draining, None
        assert run is not None
        self.tell(one, Drained(run))

    def _diagnosed(self, one: Instance) -> None:
        run = one.diagnoses.pop(0)
        hopeless = run in one.hopeless_runs
        kind = CauseClass.WRONG_CONFIG if hopeless else CauseClass.UNKNOWN
        self.tell(one, Diagnosed(run, "boom", kind))

    def turns_silent(self, one: Instance) -> None:
        if Check.READINESS in one.probes and one.spec.readiness is not None:
            for _ in range(one.spec.readiness.failures):
                self.tell(one, Probed(one.probed_run, Check.READINESS, Outcome.FAILED, "silent"))

    def hangs(self, one: Instance) -> None:
        if Check.LIVENESS in one.probes and one.spec.liveness is not None:
            for _ in range(one.spec.liveness.failures):
                self.tell(one, Probed(one.probed_run, Check.LIVENESS, Outcome.FAILED, "silent"))

    def timer_fires(self) -> bool:
        """The next one; nothing happens before it."""
        due = [
            (one.status.timer.at, one.status.timer.epoch, one.name)
            for one in self.instances.values()
            if one.status.timer is not None
        ]
        if not due:
            return False
        at, epoch, name = min(due)
        self.now = max(self.now, at)
        self.tell(self.instances[name], TimerFired(epoch))
        return True

    # ------------------------------------------------------------ until nothing happens any more

    def run(self, actions: int = 600) -> None:
        """All goes its way until it is at rest."""
        for _ in range(actions):
            if not self.one_thing():
                assert self.next_steps() == []
                return
        raise AssertionError(f"it does not come to rest: {self.table()}, {self.log[-8:]}")

    def run_for(self, actions: int) -> None:
        """The same, where something goes on failing for ever."""
        for _ in range(actions):
            self.one_thing()
        self.settle()

    def one_thing(self) -> bool:
        happened = bool(self.settle())
        action = next(self.possible(), None)
        if action is not None:
            action()
            return True
        return self.timer_fires() or happened

    def table(self) -> dict[str, str]:
        """What there is: ``state launch`` by name."""
        return {
            one.name: f"{one.state} {one.spec.launch}{' leaving' if one.leaving else ''}"
            for one in self.instances.values()
        }

    def runs(self) -> Mapping[str, int]:
        """Which process each instance has, by name."""
        pids = ((one.name, one.status.pid) for one in self.instances.values())
        return {name: pid for name, pid in pids if pid is not None}


def _can_be_beside(target: InstanceSpec, old: InstanceSpec) -> bool:
    """It has a port of its own, or the same socket."""
    return target.port is None or old.port != target.port or old.listen == target.listen is not None
