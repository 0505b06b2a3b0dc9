"""Who may start and who may stop now: dependencies as levels, not as a script. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import RUNNING, State, Status

Entry = tuple[InstanceSpec, Status]


def startable(entries: Sequence[Entry]) -> Iterator[str]:
    """Instances that wait for nothing any more: every service they depend on is ready."""
    unready = _unready(entries)
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


def waiting_for(spec: InstanceSpec, entries: Sequence[Entry]) -> list[str]:
    """Services that ``spec`` depends on and that are not ready."""
    unready = _unready(entries)
    return [name for name in spec.depends_on if name in unready]


def _unready(entries: Sequence[Entry]) -> set[str]:
    """Services to wait for: none of their instances is ready, or one is still on its way.

    A replica that was stopped on purpose, or has failed for good, holds nobody up while another
    one serves.
    """
    ready = {spec.service for spec, status in entries if status.state is State.READY}
    unready = set()
    for spec, status in entries:
        given_up = not status.wanted or status.state is State.FAILED
        if status.state is not State.READY and not (given_up and spec.service in ready):
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
