"""FastChat's HTTP interface, as much of it as supervision needs (fastchat/serve/*.py, 0.2.36).

None of its services has authentication. A worker answers HTTP 200 with ``error_code`` in the body.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from typing import Any

import aiohttp

Fault = (aiohttp.ClientError, TimeoutError, OSError)
"""What talking to a service that is not well can raise."""


def is_absence(fault: Exception) -> bool:
    """Whether it means that nobody listens there.

    Only a refused connection does: one that fails otherwise may be our own lack of descriptors, or
    a network that is away for a moment.
    """
    cause = getattr(fault, "os_error", None)
    return isinstance(fault, aiohttp.ClientConnectorError) and (
        getattr(cause, "errno", None) == errno.ECONNREFUSED
    )


class Refused(Exception):
    """It answered, and the answer was no, or nonsense; the text says why in one line."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code
        """FastChat's (``fastchat.constants.ErrorCode``); 0: none."""


class Client:
    """One for all services; connections are kept alive between calls. Times are seconds."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    # ------------------------------------------------------------ worker

    async def worker_status(self, address: str, timeout: float) -> dict[str, Any]:
        """``{"model_names", "speed", "queue_length"}``."""
        return await self._post(f"{address}/worker_get_status", {}, timeout)

    async def generate_one_token(self, address: str, model: str, timeout: float) -> None:
        """A real prompt. Raises ``Refused`` when the worker cannot generate."""
        prompt = {
            "model": model,
            "prompt": "Hello",
            "temperature": 0.0,
            "max_new_tokens": 1,
            "echo": False,
            "stop": [],
        }
        answer = await self._post(f"{address}/worker_generate", prompt, timeout)
        _raise_for(answer)

    async def embed(self, address: str, model: str, timeout: float) -> None:
        """A real embedding. Raises ``Refused`` when the worker cannot embed."""
        request = {"model": model, "input": ["Hello"]}
        answer = await self._post(f"{address}/worker_get_embeddings", request, timeout)
        _raise_for(answer)

    # ------------------------------------------------------------ API server

    async def health(self, address: str, timeout: float) -> tuple[str | None, int]:
        """The instance that answers (None if it does not tell), and its HTTP status."""
        limit = _limit(timeout)
        # A connection of its own: one that is kept stays with the process that took it.
        headers = {"Connection": "close"}
        async with self._session.get(
            f"{address}/health", timeout=limit, headers=headers
        ) as response:
            answer = await self._json(response)
        instance = answer.get("instance")
        return (instance if isinstance(instance, str) else None), response.status

    # ------------------------------------------------------------ controller

    async def register(
        self,
        controller: str,
        worker: str,
        models: Sequence[str],
        *,
        expires: bool,
        queue_length: int,
        multimodal: bool,
        timeout: float,
    ) -> None:
        """Enter a worker, or refresh what the controller knows of it. It answers 200 always."""
        entry = {
            "worker_name": worker,
            "check_heart_beat": expires,
            "worker_status": {
                "model_names": list(models),
                "speed": 1,
                "queue_length": queue_length,
            },
            "multimodal": multimodal,
        }
        await self._post(f"{controller}/register_worker", entry, timeout)

    async def deregister(self, controller: str, worker: str, timeout: float) -> bool:
        """Take a worker out; False if this controller is not ours and does not know how to."""
        try:
            await self._post(f"{controller}/deregister_worker", {"worker_name": worker}, timeout)
        except Refused:
            return False
        return True

    async def workers(self, controller: str, timeout: float) -> list[str]:
        """Addresses of all registered workers; only our own controller tells them."""
        limit = _limit(timeout)
        async with self._session.get(f"{controller}/workers", timeout=limit) as response:
            return list((await self._read(response)).get("workers", {}))

    async def heartbeat(
        self, controller: str, worker: str, queue_length: int, timeout: float
    ) -> bool:
        """Tell the queue length; False if the controller does not know the worker."""
        beat = {"worker_name": worker, "queue_length": queue_length}
        answer = await self._post(f"{controller}/receive_heart_beat", beat, timeout)
        return bool(answer.get("exist"))

    async def _post(self, url: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        limit = _limit(timeout)
        async with self._session.post(url, json=body, timeout=limit) as response:
            return await self._read(response)

    @classmethod
    async def _read(cls, response: aiohttp.ClientResponse) -> dict[str, Any]:
        if response.status != 200:
            raise Refused(f"HTTP {response.status} {response.reason}")
        return await cls._json(response)

    @staticmethod
    async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
        try:
            answer = await response.json(content_type=None)
        except ValueError:
            raise Refused("answered no JSON") from None
        return answer if isinstance(answer, dict) else {}


def _limit(timeout: float) -> aiohttp.ClientTimeout:
    """Exact: aiohttp lets what is over 5 s end at a whole second of its clock."""
    return aiohttp.ClientTimeout(total=timeout, ceil_threshold=math.inf)


def _raise_for(answer: dict[str, Any]) -> None:
    code = answer.get("error_code", 0)
    if code:
        cause = str(answer.get("text", "")).rpartition("**")[2]  # after FastChat's banner
        text = " ".join(cause.split())[:200]
        raise Refused(f"error {code}: {text}", code if type(code) is int else 0)
