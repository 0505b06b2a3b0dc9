"""Rotation: which workers the controller gives requests to. The supervisor alone decides.

Level, not edge: each worker has a wanted entry (or none), and one task that brings the controller
to it and tries again until it is so. Whatever comes late or twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from supervisor.core.instance import InstanceSpec
from supervisor.fastchat.client import Client, Fault, Refused, is_absence

log = logging.getLogger(__name__)

_TIMEOUT = 2.0
_RETRY = 0.2
"""A controller that has just been killed is back within a second; a refused connection is cheap."""


@dataclass
class _Worker:
    address: str
    spec: InstanceSpec | None = None
    """None: it is to be out of rotation."""
    entered: Callable[[], None] | None = None
    queue_length: int = 0
    settled: bool = False
    """The controller is known to agree."""
    task: asyncio.Task[None] | None = None


class Rotation:
    """``expires``: a controller elsewhere must forget us if this whole machine goes away; our own
    must not, since the workers outlive a supervisor that is killed."""

    def __init__(self, client: Client, controller: str, *, expires: bool) -> None:
        self._client = client
        self._controller = controller
        self._expires = expires
        self._workers: dict[str, _Worker] = {}
        """By address, which is what the controller knows them by: an instance may move."""

    def enter(self, spec: InstanceSpec, entered: Callable[[], None]) -> None:
        """Put a worker into rotation; ``entered`` is called once, when the controller has it."""
        address = _address(spec)
        worker = self._workers.setdefault(address, _Worker(address))
        worker.spec, worker.entered = spec, entered
        self._unsettle(worker)

    def leave(self, spec: InstanceSpec) -> None:
        """Take a worker out of rotation, at once; also one that another supervisor has put in."""
        address = _address(spec)
        worker = self._workers.setdefault(address, _Worker(address))
        worker.spec = worker.entered = None
        worker.queue_length = 0
        self._unsettle(worker)

    async def until_out(self, spec: InstanceSpec) -> None:
        """Return when a worker that has left gets no requests any more."""
        worker = self._workers.get(_address(spec))
        if worker is not None and worker.task is not None:
            await asyncio.shield(worker.task)

    def controller_is_at(self, address: str, *, expires: bool) -> None:
        """The controller there has (re)started, or is another one: it is to know all workers."""
        self._controller, self._expires = address, expires
        for worker in self._workers.values():
            if worker.spec is not None:
                self._unsettle(worker)

    async def forget_strangers(self) -> None:
        """Take out of our own controller all that is not ours to keep there: an earlier supervisor
        may have put it in, and have left no note of it. Never raises."""
        try:
            registered = await self._client.workers(self._controller, _TIMEOUT)
        except (*Fault, Refused) as fault:
            log.warning("cannot see which workers the controller knows: %s", fault)
            return
        for address in registered:
            if address not in self._workers:
                log.info("%s is registered, but none of ours: it is taken out", address)
                worker = self._workers[address] = _Worker(address)
                self._unsettle(worker)

    async def report_queue(self, spec: InstanceSpec, queue_length: int) -> None:
        """Pass on a worker's queue length; FastChat's own heartbeat does it every 45 s only.

        Never raises: what is wrong with the controller is no answer of the worker's.
        """
        worker = self._workers.get(_address(spec))
        if worker is None or worker.spec is None or not worker.settled:
            return
        worker.queue_length = queue_length
        try:
            known = await self._client.heartbeat(
                self._controller, worker.address, queue_length, _TIMEOUT
            )
        except (*Fault, Refused):
            return  # the controller's own probes see to it
        except Exception:
            log.exception("cannot tell the queue of %s; please report this", worker.address)
            return
        if not known and worker.spec is not None:
            self._unsettle(worker)

    async def close(self) -> None:
        tasks = [worker.task for worker in self._workers.values() if worker.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _unsettle(self, worker: _Worker) -> None:
        worker.settled = False
        if worker.task is None or worker.task.done():
            worker.task = asyncio.create_task(self._settle(worker))

    async def _settle(self, worker: _Worker) -> None:
        await self._settled(worker)
        if worker.spec is None:
            del self._workers[worker.address]

    async def _settled(self, worker: _Worker) -> None:
        said = ""
        while not worker.settled:
            try:
                await self._try(worker)
                continue
            except Fault as fault:
                if worker.spec is None and is_absence(fault):
                    return  # a controller that is not there gives nobody requests
            except Refused as refused:
                if said != str(refused):  # once, not five times a second
                    log.warning("the controller refuses %s: %s", worker.address, refused)
                said = str(refused)
            except Exception as error:
                # A task that ends for a defect would leave the worker where it is for ever.
                worker.settled = False
                if said != repr(error):
                    log.exception("cannot settle %s; please report this", worker.address)
                said = repr(error)
            await asyncio.sleep(_RETRY)

    async def _try(self, worker: _Worker) -> None:
        spec = worker.spec
        await self._tell(worker, spec)
        if worker.spec is spec:
            worker.settled = True
            if worker.entered is not None:
                worker.entered()
                worker.entered = None

    async def _tell(self, worker: _Worker, spec: InstanceSpec | None) -> None:
        if spec is not None:
            await self._register(worker, spec.models, multimodal=spec.multimodal)
        elif not await self._client.deregister(self._controller, worker.address, _TIMEOUT):
            # A plain FastChat controller cannot deregister. With no model it gets no request.
            await self._register(worker, (), multimodal=False)

    async def _register(
        self, worker: _Worker, models: tuple[str, ...], *, multimodal: bool
    ) -> None:
        await self._client.register(
            self._controller,
            worker.address,
            models,
            expires=self._expires,
            queue_length=worker.queue_length,
            multimodal=multimodal,
            timeout=_TIMEOUT,
        )


def _address(spec: InstanceSpec) -> str:
    assert spec.address is not None
    return spec.address
