"""The state of the whole, from the states of its instances. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from supervisor.core.lifecycle import State, Status


class ClusterState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"


def cluster_state(statuses: Sequence[Status], *, going_down: bool) -> ClusterState:
    """What a person would say of it. Instances stopped on purpose do not count against it."""
    if going_down:
        return ClusterState.STOPPING
    wanted = [status for status in statuses if status.wanted]
    if all(status.state is State.READY for status in wanted):
        return ClusterState.READY
    broken = {State.FAILED, State.BACKOFF, State.UNREADY, State.STOPPING}
    if any(status.state in broken or status.restarts for status in wanted):
        not_ready = [s for s in wanted if s.state is not State.READY]
        if any(s.state in broken or s.restarts for s in not_ready):
            return ClusterState.DEGRADED
    return ClusterState.STARTING
