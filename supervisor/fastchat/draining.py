"""Draining: a worker that has left rotation goes on with the requests it has."""

from __future__ import annotations

import asyncio

from supervisor.core.instance import InstanceSpec
from supervisor.fastchat.asking import queue_length
from supervisor.fastchat.client import Client, Fault, Refused, is_absence
from supervisor.fastchat.rotation import Rotation

_INTERVAL = 0.1
_QUIET = 5
"""Answers in a row that tell of no request: between the controller's naming a worker and the
worker's first request pass some milliseconds, on a busy machine some hundred."""
_TIMEOUT = 5.0
_CONTROLLER_PATIENCE = 5.0
"""Seconds for the controller to confirm; a hung one gives nobody requests."""


async def drained(client: Client, rotation: Rotation, spec: InstanceSpec) -> None:
    """Return when the worker has no request and gets none, or is gone.

    FastChat counts a request in ``queue_length`` until the last byte of its stream has been sent
    (serve/base_model_worker.py, ``get_queue_length``). One that does not answer or does not
    tell is busy; ``drain_timeout`` bounds that.
    """
    assert spec.address is not None
    try:
        async with asyncio.timeout(_CONTROLLER_PATIENCE):
            await rotation.until_out(spec)
    except TimeoutError:
        pass
    quiet = 0
    while quiet < _QUIET:
        try:
            length = queue_length(await client.worker_status(spec.address, _TIMEOUT))
            quiet = quiet + 1 if length == 0 else 0
        except Fault as fault:
            if is_absence(fault):
                return
            quiet = 0
        except Refused:
            quiet = 0
        await asyncio.sleep(_INTERVAL)
