"""Random clusters, edited at random in the middle of whatever happens to them.

``World`` watches every batch of steps; here is what must hold in the end. A life is a string of
bytes, each a choice: hypothesis shrinks it when it finds a bad one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import instance, worker
from rollout_world import Luck, World

from supervisor.core.instance import InstanceSpec, RestartPolicy, Role
from supervisor.core.lifecycle import State
from supervisor.core.order import StartLimit
from supervisor.core.plan import Action, form_of, plan
from supervisor.core.rollout import History

# ---------------------------------------------------------------- clusters


@dataclass(frozen=True)
class Service:
    """What a file says of a service, as far as a rollout cares."""

    replicas: int = 2
    version: int = 0
    """Goes into the launch; each has its own luck."""
    surge: bool = True
    port: int | None = None
    """As in the file: the first replica's, and no surge then."""
    max_unavailable: int = 1
    model: str = "m"
    drain: float = 0.0
    policy: str = "always"
    limit: int | None = None
    own_launches: bool = False
    """Each replica is launched in a way of its own."""
    gpus: str = ""
    """One letter each, dealt out to the replicas; what is not enough for all is shared."""


Cluster = dict[str, Service]
NAMES = ("a", "b")
GPUS = ("", "0", "01", "10", "0123", "3021", "23", "1")
AUTO = {name: 1000 + 100 * n for n, name in enumerate(NAMES)}


def expand(cluster: Cluster, controller: int) -> list[InstanceSpec]:
    """As ``fastchat.roles`` does it."""
    at, version = divmod(controller, 3)
    asks: dict[str, Any] = {
        "role": Role.API_SERVER,
        "depends_on": ("controller",),
        "listen": ("localhost", 5),
    }
    asks["argv"] = ("ask", str(1 + at))
    found = [
        _with_second(instance("controller", launch=f"controller {version}", port=1 + at)),
        _with_second(instance("api", launch=f"asks {at}", port=5, **asks)),
    ]
    for name, service in cluster.items():
        found += [_replica(name, service, i) for i in range(service.replicas)]
    return found


def _with_second(one: InstanceSpec) -> InstanceSpec:
    """Its successor may start beside it, on another port or on the same socket."""
    one = replace(one, surge=True)
    return replace(one, beside=replace(one, name=f"{one.name}.b"))


def _replica(name: str, service: Service, i: int) -> InstanceSpec:
    slot = f"{name}-{i}"
    surges = service.surge and service.port is None
    port = AUTO[name] + i if service.port is None else service.port + i
    share = max(1, len(service.gpus) // service.replicas)
    gpus = [service.gpus[(i * share + n) % len(service.gpus)] for n in range(share) if service.gpus]
    launch = f"{slot if service.own_launches else name} {service.version}"
    one = worker(
        slot,
        port=port,
        launch=f"{launch} on {','.join(gpus)}" if gpus else launch,
        gpus=tuple(gpus),
        surge=surges,
        max_unavailable=service.max_unavailable,
        models=(service.model,),
        drain_timeout=service.drain,
        restart=RestartPolicy(policy=service.policy, limit=service.limit),
        weights=service.version % 4,
    )
    if not surges:
        return one
    return replace(one, beside=replace(one, name=f"{slot}.b", port=AUTO[name] + 50 + i))


class Play:
    """A world, what its file says, and what may happen to it: each takes a number, how."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.cluster: Cluster = {"a": Service(), "b": Service(1, surge=False)}
        self.controller = 0
        self.files: list[tuple[Cluster, int]] = []
        self.versions = 0
        self.save()

    def save(self) -> None:
        self.files.append((self.cluster, self.controller))
        self.world.edit(*expand(self.cluster, self.controller))

    # -- edits

    def edit(self, n: int) -> None:
        name = NAMES[n % 2]
        n //= 2
        service = self.cluster.get(name)
        edits: list[Callable[[int], object]] = [
            self._reverts,
            self._swaps_ports,
            self._swaps_gpus,
            self._controller,
        ]
        if service is None:
            self.cluster = {**self.cluster, name: Service(1 + n % 3)}
        elif n % 18 < 6:
            self._becomes(name, self._new_version(service, n // 18))
        elif n % 18 < 14:
            self._becomes(name, self._changed(name, service, n % 18, n // 18))
        else:
            edits[n % 18 - 14](n // 18)
        self.save()

    def _becomes(self, name: str, service: Service | None) -> None:
        others = {key: value for key, value in self.cluster.items() if key != name}
        self.cluster = others if service is None else {**others, name: service}

    def _new_version(self, service: Service, luck: int) -> Service:
        self.versions += 1
        lucks = (Luck.WORKS, Luck.WORKS, Luck.FAILS, Luck.HOPELESS, Luck.MISSING, Luck.FINISHES)
        for name in NAMES:
            for launch in (name, *(f"{name}-{i}" for i in range(5))):
                self.world.luck[f"{launch} {self.versions}"] = lucks[luck % len(lucks)]
        return replace(service, version=self.versions)

    def _changed(self, name: str, service: Service, what: int, n: int) -> Service | None:
        changes: list[Service | None] = [
            replace(service, replicas=n % 5),
            replace(service, model=f"m{n}", drain=float(n % 2 * 60)),
            replace(service, surge=not service.surge),
            replace(service, max_unavailable=1 + n % 3),
            replace(service, port=None if service.port else self._free_port(name)),
            replace(
                service, policy=("always", "on_failure", "never")[n % 3], limit=(None, 1)[n % 2]
            ),
            replace(service, gpus=GPUS[n % len(GPUS)]),
            None,
        ]
        return changes[what - 6]

    def _reverts(self, n: int) -> None:
        self.cluster, self.controller = self.files[-1 - n % len(self.files)]

    def _free_port(self, name: str) -> int:
        taken = {one.port for key, one in self.cluster.items() if key != name}
        return 2000 if 2000 not in taken else 2100

    def _swaps_ports(self, _: int) -> None:
        ports = {name: one.port for name, one in self.cluster.items()}
        if len(ports) == 2:
            a, b = (self.cluster[name] for name in NAMES)
            one, other = (2000, 2100) if None in ports.values() else (b.port, a.port)
            self.cluster = {"a": replace(a, port=one), "b": replace(b, port=other)}

    def _swaps_gpus(self, _: int) -> None:
        if len(self.cluster) == 2:
            a, b = (self.cluster[name] for name in NAMES)
            self.cluster = {"a": replace(a, gpus=b.gpus), "b": replace(b, gpus=a.gpus)}

    def _controller(self, n: int) -> None:
        self.controller = n % 6

    def limits(self, n: int) -> None:
        """How many may be starting at once, also while some wait."""
        memory = None if n // 4 % 2 else 4
        self.world.limit = StartLimit(n % 4, memory) if n % 4 else None

    # -- whatever else happens

    def possible(self) -> Iterator[Callable[[int], object]]:
        world = self.world
        slots = sorted(world.wanted)
        if world.instances:
            names = sorted(world.instances)
            yield lambda n: world.exits(world.instances[names[n % len(names)]], 1)
            yield lambda n: world.turns_silent(world.instances[names[n % len(names)]])
            yield lambda n: world.hangs(world.instances[names[n % len(names)]])
        yield lambda n: world.stop(slots[n % len(slots)])
        yield lambda n: world.start(slots[n % len(slots)])
        yield lambda n: world.restart(slots[n % len(slots)])
        yield lambda _: [world.restart(slot) for slot in slots]
        yield from [self.edit] * 3
        yield self.limits
        yield from [lambda n: world.timer_fires()] * 4
        yield from [lambda _: world.settle()] * 8
        going = list(world.possible())
        if going:
            yield from [lambda n: going[n % len(going)]()] * 24


def play(choices: bytes, life: Play | None = None) -> Play:
    life = life or Play()
    for which, how in zip(choices[::2], choices[1::2], strict=False):
        actions = list(life.possible())
        actions[which % len(actions)](how)
    return life


# ---------------------------------------------------------------- what must hold in the end


def comes_to_rest(life: Play) -> None:
    """Everything works from now on, and a person starts what has been given up for good."""
    world = life.world
    world.luck.clear()
    world.run()
    world.start("controller")
    world.run()
    for one in list(world.instances.values()):
        if one.state is State.FAILED:
            world.start(one.spec.slot)
    world.run()
    for service in world.services():
        if not world.has_failed(service):
            _is_as_wanted(world, service)
    # What was given up is tried again, and works.
    world.histories = {slot: History(known.good) for slot, known in world.histories.items()}
    before = world.runs()
    kept = {
        one.name: before[one.name]
        for one in world.instances.values()
        if one.name in before
        and one.spec.slot in world.wanted
        and not one.outdated
        and form_of(one.spec, world.wanted[one.spec.slot])
    }
    world.run()
    for service in world.services():
        _is_as_wanted(world, service)
    assert {one.spec.slot for one in world.instances.values()} == set(world.wanted)
    assert kept.items() <= world.runs().items(), "a process that was wanted as it was"
    told = world.progress()
    assert (told.under_way, [line for line in told.failed if "limit" not in line]) == ([], [])
    running = {one.spec.slot: one.spec for one in world.instances.values()}
    stopped = {one.spec.slot for one in world.instances.values() if not one.status.wanted}
    for change in plan(running, world.wanted):
        assert change.action is Action.KEEP or change.slot in stopped, change


def _is_as_wanted(world: World, service: str) -> None:
    for target in world.services()[service]:
        (one,) = world.members_of(target.slot)
        if one.status.wanted:
            assert one.state is State.READY
            assert one.spec == form_of(one.spec, target)
            assert not one.outdated
        else:
            assert one.state is State.STOPPED


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=20, max_size=300))
def test_whatever_is_edited_meanwhile_it_comes_to_what_is_wanted(choices: bytes) -> None:
    comes_to_rest(play(choices))


def test_thousands_of_longer_stories() -> None:
    chance = random.Random(7)
    for _ in range(250):
        comes_to_rest(play(chance.randbytes(2 * chance.randrange(20, 300))))


def test_a_broken_edit_leaves_everything_as_it_was_or_brings_it_back() -> None:
    """After whatever has happened, the last edit cannot be started, and nobody does anything."""
    chance = random.Random(2718)
    failed = 0
    for _ in range(80):
        life = play(chance.randbytes(2 * chance.randrange(20, 200)))
        comes_to_rest(life)
        world = life.world
        for slot in list(world.wanted):
            world.start(slot)
        world.run()
        before = world.runs()
        good = {one.spec.slot: one.spec.launch for one in world.instances.values()}
        for name, service in life.cluster.items():
            life.cluster = {**life.cluster, name: replace(service, version=999)}
            for launch in (name, *(f"{name}-{i}" for i in range(5))):
                world.luck[f"{launch} 999"] = chance.choice([Luck.FAILS, Luck.HOPELESS])
        life.save()
        world.run()
        after = {one.spec.slot: one.spec.launch for one in world.instances.values()}
        assert after == good
        assert all(one.state is State.READY for one in world.instances.values())
        for targets in world.services().values():
            if targets[0].surge:
                kept = [before.get(one.name) for one in world.members_of(targets[0].slot)]
                assert kept == [one.status.pid for one in world.members_of(targets[0].slot)]
            failed += world.has_failed(targets[0].service)
        assert world.progress().under_way == []
    assert failed > 25
