"""Who may start and who may stop now: dependencies as levels, not as a script. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import RUNNING, State, Status

Entry = tuple[InstanceSpec, Status]


def startable(entries: Sequence[Entry], expected: Collection[str] = ()) -> Iterator[str]:
    """Instances that wait for nothing any more: every service they depend on is ready.

    Services that are ``expected`` are waited for even while they have no instance at all.
    """
    unready = _unready(entries, expected)
    for spec, status in entries:
        waits = status.wanted and status.state is State.STOPPED
        if waits and not any(name in unready for name in spec.depends_on):
            yield spec.name


def stoppable(entries: Sequence[Entry]) -> Iterator[str]:
    """Unwanted instances that run, and on which nothing depends that is to stop as well."""
    holding: set[str] = set()
    for spec, status in entries:
        if not status.wanted and status.state in RUNNING | {State.STOPPING}:
            holding.update(spec.depends_on)
    for spec, status in entries:
        if not status.wanted and status.state in RUNNING and spec.service not in holding:
            yield spec.name


def waiting_for(
    spec: InstanceSpec, entries: Sequence[Entry], expected: Collection[str] = ()
) -> list[str]:
    """Services that ``spec`` depends on and that are not ready."""
    unready = _unready(entries, expected)
    return [name for name in spec.depends_on if name in unready]


def blocked(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Instances that wait in vain, each with those that it waits for, at however many removes, and
    that do not come unless a person starts them: they have failed, or were stopped on purpose.
    """
    unready = _unready(entries)
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
        if not status.wanted or status.state is not State.STOPPED:
            return []  # it is under way, and a restart of its own waits for nobody
        return _unique(name for service in spec.depends_on for name in behind(service))

    found = {spec.name: before(spec, status) for spec, status in entries}
    return {name: names for name, names in found.items() if names}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _given_up(status: Status) -> bool:
    return not status.wanted or status.state is State.FAILED


def _unready(entries: Sequence[Entry], expected: Collection[str] = ()) -> set[str]:
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
