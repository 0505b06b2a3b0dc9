"""The questions anybody can be asked: http, tcp, command.

"Failed" is an answer, or its absence. When we could not even ask (no descriptors left, no such
program), that is no evidence against the instance, and the outcome is ``UNASKED``.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import aiohttp

from supervisor.core.instance import Ask, InstanceSpec, Question
from supervisor.core.lifecycle import Outcome
from supervisor.runtime.processes import Processes

Answer = tuple[Outcome, str]
Asker = Callable[[InstanceSpec, Question, float], Awaitable[Answer]]

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
"""Errors of our own side of a connection."""


def askers(session: aiohttp.ClientSession, processes: Processes) -> dict[Ask, Asker]:
    async def http(_: InstanceSpec, question: Question, timeout: float) -> Answer:
        (url,) = question.target
        limit = aiohttp.ClientTimeout(total=timeout)
        async with session.get(url, timeout=limit, ssl=False) as response:
            outcome = Outcome.PASSED if response.status < 400 else Outcome.FAILED
            return outcome, f"HTTP {response.status} from {url}"

    async def tcp(_: InstanceSpec, question: Question, timeout: float) -> Answer:
        (target,) = question.target
        host, _colon, port = target.rpartition(":")
        async with asyncio.timeout(timeout):
            _reader, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return Outcome.PASSED, f"{target} accepts connections"

    async def command(instance: InstanceSpec, question: Question, timeout: float) -> Answer:
        try:
            code = await processes.run(question.target, instance, timeout)
        except TimeoutError:  # an OSError as well
            raise
        except OSError as error:
            return Outcome.UNASKED, f"cannot run {question.target[0]}: {error.strerror}"
        outcome = Outcome.PASSED if code == 0 else Outcome.FAILED
        return outcome, f"{question.target[0]} exited with {code}"

    return {Ask.HTTP: _guarded(http), Ask.TCP: _guarded(tcp), Ask.COMMAND: _guarded(command)}


def _guarded(ask: Asker) -> Asker:
    async def asked(instance: InstanceSpec, question: Question, timeout: float) -> Answer:
        try:
            return await ask(instance, question, timeout)
        except TimeoutError:
            return Outcome.FAILED, f"no answer within {timeout:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = getattr(error, "os_error", None) or error
            ours = getattr(cause, "errno", None) in _OURS
            text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            return (Outcome.UNASKED if ours else Outcome.FAILED), text

    return asked
