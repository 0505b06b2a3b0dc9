"""The state of the whole, from the states of its instances. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from supervisor.core.lifecycle import State, Status, on_probation


class ClusterState(StrEnum):
    STARTING = "starting"
    UPDATING = "updating"
    """All is well, and a change of the file is on its way into service."""
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"


_BROKEN = frozenset({State.FAILED, State.BACKOFF, State.UNREADY, State.STOPPING})


def cluster_state(statuses: Sequence[Status], *, going_down: bool) -> ClusterState:
    """What a person would say of it. Instances stopped on purpose do not count against it.

    If all are stopped on purpose it is ready: all that is wanted of it is there. A word of its own
    would say no more than the instances do, and every reader of the four would have to learn it.
    """
    if going_down:
        return ClusterState.STOPPING
    wanted = [status for status in statuses if status.wanted]
    if any(on_probation(status) for status in wanted):
        return ClusterState.DEGRADED  # or it would be ready in each round of a crash loop
    if all(status.state is State.READY for status in wanted):
        return ClusterState.READY
    not_ready = [status for status in wanted if status.state is not State.READY]
    if any(status.state in _BROKEN or status.restarts for status in not_ready):
        return ClusterState.DEGRADED
    return ClusterState.STARTING
