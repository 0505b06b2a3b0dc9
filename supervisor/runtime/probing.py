"""Asks the questions of running instances, and reports every answer. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from supervisor.core.instance import Ask, InstanceSpec, Probe, Question, Startup
from supervisor.core.lifecycle import Check, Outcome, Probed
from supervisor.core.probing import Answer, Asker, patience
from supervisor.runtime.rounds import Rounds

log = logging.getLogger(__name__)

Report = Callable[[str, Probed], None]
_Loop = Coroutine[Any, Any, None]

_SLOWEST_STARTUP = 2.0
"""Seconds between two questions to a start that takes long."""
_SHARE_OF_START = 0.01
"""A start is noticed late by at most this share of what it took: asking a port that nobody listens
on yet costs a tenth of a millisecond."""
_AFTER_WRONG_ANSWER = 5.0
"""An answer that says no costs the instance something; silence does not."""
_ABSENT = 0.25
"""Seconds after its time at which a timeout tells of our own event loop, not of who was asked."""


class Prober:
    """One task per check of each instance."""

    def __init__(self, askers: Mapping[Ask, Asker], report: Report) -> None:
        self._askers = askers
        self._report = report
        self._rounds = Rounds()
        self._tasks: dict[tuple[str, Check], asyncio.Task[None]] = {}
        self._defective: set[tuple[str, Check]] = set()
        """What could not be asked the last time, for a reason that nobody has thought of."""

    def start(self, spec: InstanceSpec, run: int, checks: tuple[Check, ...]) -> None:
        """Begin ``checks`` for this run; one that is under way already is begun anew."""
        for check in checks:
            coroutine = self._loop_for(spec, run, check)
            self._cancel(spec.name, check)
            if coroutine is not None:
                self._tasks[spec.name, check] = asyncio.create_task(coroutine)

    def stop(self, name: str) -> None:
        for check in Check:
            self._cancel(name, check)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cancel(self, name: str, check: Check) -> None:
        task = self._tasks.pop((name, check), None)
        if task is not None:
            task.cancel()

    def _loop_for(self, spec: InstanceSpec, run: int, check: Check) -> _Loop | None:
        match check:
            case Check.STARTUP:
                return self._startup(spec, run, spec.startup) if spec.startup else None
            case Check.READINESS:
                return self._repeat(spec, run, check, spec.readiness) if spec.readiness else None
            case Check.LIVENESS:
                return self._repeat(spec, run, check, spec.liveness) if spec.liveness else None
            case Check.PROGRESS:
                if spec.progress is None or not spec.progress.enabled:
                    return None
                question, progress = Question(Ask.PROGRESS), spec.progress
                looks = Probe(question, progress.interval, progress.stall_after)
                return self._repeat(spec, run, check, looks)

    async def _startup(self, spec: InstanceSpec, run: int, startup: Startup) -> None:
        """Every question in order, each until it passes; the last pass is the one that counts."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for i, question in enumerate(startup.questions):
            while True:
                outcome, detail = await self._ask(spec, Check.STARTUP, question, startup.timeout)
                passed = outcome is Outcome.PASSED
                if passed and i + 1 < len(startup.questions):
                    break
                self._report(spec.name, Probed(run, Check.STARTUP, outcome, detail))
                if passed:
                    return
                pause = min(_SHARE_OF_START * (clock() - began), _SLOWEST_STARTUP)
                await asyncio.sleep(max(_AFTER_WRONG_ANSWER if i else pause, startup.interval))

    async def _repeat(self, spec: InstanceSpec, run: int, check: Check, probe: Probe) -> None:
        # Spread out, so that a thousand instances are not all asked in the same round.
        await self._rounds.after(probe.interval * random.uniform(0.5, 1.0))
        while True:
            outcome, detail = await self._ask(spec, check, probe.question, probe.timeout)
            self._report(spec.name, Probed(run, check, outcome, detail))
            await self._rounds.after(probe.interval)

    async def _ask(
        self, spec: InstanceSpec, check: Check, question: Question, timeout: float
    ) -> Answer:
        """Never raises: a check that ends for a defect would never be made again."""
        asker = self._askers.get(question.ask)
        if asker is None:
            return Outcome.UNASKED, f"nobody here can ask {question}"
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer = await asker(spec, question, timeout)
        except Exception as error:
            if (spec.name, check) not in self._defective:
                self._defective.add((spec.name, check))
                log.exception("cannot ask %s of %s; please report this", question, spec.name)
            return Outcome.UNASKED, f"{question.ask} {Outcome.UNASKED}: {error!r}"
        self._defective.discard((spec.name, check))
        late = clock() - began - patience(question.ask, timeout)
        if answer[0] is Outcome.FAILED and late > _ABSENT:
            # Whatever came meanwhile, we were not there to hear it (SIGSTOP, a machine that slept).
            return Outcome.UNASKED, f"{question.ask} {Outcome.UNASKED}: we were held up ourselves"
        return answer
