"""Who may start and who may stop now: dependencies as levels, not as a script. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.instance import InstanceSpec, Role
from supervisor.core.lifecycle import RUNNING, State, Status

Entry = tuple[InstanceSpec, Status]


@dataclass(frozen=True, slots=True)
class StartLimit:
    """How many workers may be starting at once, as ``max_parallel_starts`` of the file says."""

    workers: int
    memory: int | None = None
    """Bytes that the weights of all that are starting may take together; None: any."""

    def admits(self, starting: Sequence[int], weights: int) -> bool:
        """Whether one more may start beside those that are ``starting``, all by their weights. One
        may always, whatever its weights take."""
        fits = self.memory is None or sum(starting) + weights <= self.memory
        return not starting or (len(starting) < self.workers and fits)


def startable(
    entries: Sequence[Entry], expected: Collection[str] = (), limit: StartLimit | None = None
) -> Iterator[str]:
    """Instances that wait for nothing any more, the largest first: every service they depend on is
    ready, and a worker has a place among those that are starting.

    Services that are ``expected`` are waited for even while they have no instance at all.
    """
    return (spec.name for spec, why in _turns(entries, expected, limit) if why is None)


def held_back(
    entries: Sequence[Entry], expected: Collection[str] = (), limit: StartLimit | None = None
) -> dict[str, str]:
    """Workers that wait for nothing but a place among those that are starting; why, for people."""
    return {spec.name: why for spec, why in _turns(entries, expected, limit) if why is not None}


def takes_a_place(spec: InstanceSpec, status: Status) -> bool:
    """Whether a worker is starting: it has not answered yet, and nobody has told it to end.

    What ends in failure, in a backoff or at its deadline makes room for the next. How long the
    controller takes to confirm one that has answered is nobody else's affair.
    """
    return spec.role is Role.WORKER and status.state is State.STARTING and not status.in_rotation


def _turns(
    entries: Sequence[Entry], expected: Collection[str], limit: StartLimit | None
) -> Iterator[tuple[InstanceSpec, str | None]]:
    """Who waits and could start, the largest first, each with why it may not yet.

    Nobody overtakes a larger one: that would come last otherwise, and the whole with it.
    """
    unready = not_ready(entries, expected)
    free = [
        spec
        for spec, status in entries
        if _waits(status) and not any(name in unready for name in spec.depends_on)
    ]
    starting = [spec for spec, status in entries if takes_a_place(spec, status)]
    first: InstanceSpec | None = None
    for spec in sorted(free, key=lambda spec: -spec.weights):
        if limit is None or spec.role is not Role.WORKER:
            yield spec, None
            continue
        why = _why_no_place(spec, starting, limit)
        if why is None and first is not None:
            why = f"{first.name} is larger and goes first"
        elif why is None:
            starting.append(spec)
        else:
            first = first or spec
        yield spec, why


def _why_no_place(
    spec: InstanceSpec, starting: Sequence[InstanceSpec], limit: StartLimit
) -> str | None:
    """As a clause for people; None if there is a place."""
    sizes = [one.weights for one in starting]
    if limit.admits(sizes, spec.weights):
        return None
    more = ", ..." if len(starting) > _NAMED else ""
    names = ", ".join(one.name for one in starting[:_NAMED]) + more
    workers = "worker is" if len(starting) == 1 else "workers are"
    who = f"{len(starting)} {workers} starting ({names})"
    if len(starting) >= limit.workers:
        return f"{who}, max_parallel_starts is {limit.workers}"
    return (
        f"{who}, and {_gib(spec.weights)} of weights beside their {_gib(sum(sizes))} are more than "
        f"the {_gib(limit.memory or 0)} of memory that are free"
    )


_NAMED = 3
"""Instances that a reason names; of more, the number is enough."""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _waits(status: Status) -> bool:
    return status.wanted and status.state is State.STOPPED


def stoppable(entries: Sequence[Entry]) -> Iterator[str]:
    """Unwanted instances that run, and on which nothing depends that is to stop as well."""
    holding: set[str] = set()
    for spec, status in entries:
        if not status.wanted and status.state in RUNNING | {State.STOPPING}:
            holding.update(spec.depends_on)
    for spec, status in entries:
        if not status.wanted and status.state in RUNNING and spec.service not in holding:
            yield spec.name


def blocked(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Instances that wait in vain, each with those that it waits for, at however many removes, and
    that do not come unless a person starts them: they have failed, or were stopped on purpose.
    """
    unready = not_ready(entries)
    services: dict[str, list[Entry]] = {}
    for entry in entries:
        services.setdefault(entry[0].service, []).append(entry)
    known: dict[str, list[str]] = {}

    def behind(service: str) -> list[str]:
        """Who keeps a service from becoming ready; nobody if it may yet."""
        if service not in known:
            known[service] = []  # the answer for a circle, which no file can have
            if service in unready:
                known[service] = among(services[service])
        return known[service]

    def among(instances: Sequence[Entry]) -> list[str]:
        coming = [entry for entry in instances if not _given_up(entry[1])]
        if not coming:
            return [spec.name for spec, _ in instances]
        return _unique(name for entry in coming for name in before(*entry))

    def before(spec: InstanceSpec, status: Status) -> list[str]:
        if not _waits(status):
            return []  # it is under way, and a restart of its own waits for nobody
        return _unique(name for service in spec.depends_on for name in behind(service))

    found = {spec.name: before(spec, status) for spec, status in entries}
    return {name: names for name, names in found.items() if names}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _given_up(status: Status) -> bool:
    return not status.wanted or status.state is State.FAILED


def not_ready(entries: Sequence[Entry], expected: Collection[str] = ()) -> set[str]:
    """Services to wait for: none of their instances is ready, or one is still on its way.

    A replica that was stopped on purpose, or has failed for good, holds nobody up while another
    one serves.
    """
    ready = {spec.service for spec, status in entries if status.state is State.READY}
    unready = set(expected).difference(spec.service for spec, _ in entries)
    for spec, status in entries:
        spared = _given_up(status) and spec.service in ready
        if status.state is not State.READY and not spared:
            unready.add(spec.service)
    return unready


def start_order(specs: Mapping[str, InstanceSpec]) -> list[list[str]]:
    """Instances in waves: each wave starts when the ones before it are ready."""
    waves: list[list[str]] = []
    done: set[str] = set()
    left = dict(specs)
    services = {spec.service for spec in specs.values()}
    while left:
        wave = [n for n, s in left.items() if not (set(s.depends_on) & services) - done]
        if not wave:  # a circle; the spec's checks refuse it long before
            wave = list(left)
        waves.append(wave)
        for name in wave:
            left.pop(name)
        done = services - {spec.service for spec in left.values()}
    return waves
