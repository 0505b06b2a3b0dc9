"""The questions anybody can be asked: http, tcp, command."""

from __future__ import annotations

import asyncio
import math

import aiohttp

from supervisor.core.instance import Ask, InstanceSpec, Question
from supervisor.core.lifecycle import Outcome
from supervisor.core.probing import Answer, Asker, guarded
from supervisor.runtime.processes import Processes

_FAULTS = (aiohttp.ClientError, OSError, ValueError)


def askers(session: aiohttp.ClientSession, processes: Processes) -> dict[Ask, Asker]:
    async def http(_: InstanceSpec, question: Question, timeout: float) -> Answer:
        (url,) = question.target
        # Exact: else what is over 5 s ends at a whole second, and passes for lateness of ours.
        limit = aiohttp.ClientTimeout(total=timeout, ceil_threshold=math.inf)
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

    asking: dict[Ask, Asker] = {Ask.HTTP: http, Ask.TCP: tcp, Ask.COMMAND: command}
    return {ask: guarded(asker, _FAULTS) for ask, asker in asking.items()}
