"""Dealing a service's GPUs out to its replicas. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.spec.model import Worker


def gpus_per_replica(worker: Worker) -> int | None:
    """``num_gpus``, or an even share of ``gpus``; None when the file names neither."""
    if worker.num_gpus is not None:
        return worker.num_gpus
    if worker.gpus:
        return max(1, len(worker.gpus) // max(1, worker.replicas))
    return None


def deal(gpus: Sequence[int | str], share: int, replica: int) -> tuple[str, ...]:
    """The GPUs of one replica: the next ``share`` of the list, from its start again when it ends.

    >>> [deal([0, 1, 2, 3], 2, i) for i in range(2)]
    [('0', '1'), ('2', '3')]
    >>> [deal([0], 1, i) for i in range(2)]
    [('0',), ('0',)]
    """
    first = replica * share
    return tuple(str(gpus[(first + i) % len(gpus)]) for i in range(share))
