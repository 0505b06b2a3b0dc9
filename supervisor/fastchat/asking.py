"""The questions that only FastChat's workers and its API server can be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor.core.instance import Ask, InstanceSpec, Progress, Question
from supervisor.core.lifecycle import Outcome
from supervisor.core.probing import Answer, Asker, guarded
from supervisor.core.progress import Condition, Judgement, Look, excuse, judge
from supervisor.fastchat.client import Client, Fault, Refused
from supervisor.fastchat.rotation import Rotation

_FAULTS = (*Fault, Refused)
_FAULT_OF_REQUEST = range(40000, 50000)
"""FastChat's error codes that do not blame the worker (``fastchat.constants.ErrorCode``)."""
_MARGIN = 1.0
"""Seconds by which a question is given up later than what waits so long counts as hung."""

LookAt = Callable[[str], Look | None]
"""What there is to see of a worker, by the name of its instance."""


def askers(client: Client, rotation: Rotation, look_at: LookAt) -> dict[Ask, Asker]:
    """One function per question. Each passes a worker's queue length on to the controller."""

    async def status(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        try:
            answer = await client.worker_status(_address(instance), timeout)
        except TimeoutError:
            return await busy_instead(instance)
        length = queue_length(answer)
        if length is None:
            return Outcome.PASSED, "answers, queue unknown"
        await rotation.report_queue(instance, length)
        return Outcome.PASSED, f"answers, queue {length}"

    async def busy_instead(instance: InstanceSpec) -> Answer:
        """Who is too busy to answer is alive, and ready as well: whoever asks it waits in a queue,
        which is better than to be refused. Its queue length sends others to another replica.

        Raises TimeoutError if it is not busy.
        """
        look = look_at(instance.name) if instance.progress else None
        if look is None or instance.progress is None:
            raise TimeoutError
        text = excuse(look, stall_after=instance.progress.stall_after)
        if text is None:
            raise TimeoutError
        await rotation.report_queue(instance, look.record.in_flight)
        return Outcome.PASSED, text

    async def progress(instance: InstanceSpec, _: Question, __: float) -> Answer:
        settings = instance.progress
        found = _judged(instance, settings, look_at)
        if settings is None or found is None:
            return Outcome.UNASKED, "there is no record of its progress"
        match found.condition:
            case Condition.ALIVE | Condition.BUSY:
                return Outcome.PASSED, found.reason
            case Condition.HUNG:
                return Outcome.CONDEMNED, found.reason
            case Condition.SUSPECT | Condition.IDLE:
                return await one_token(instance, settings, found.reason)

    async def one_token(instance: InstanceSpec, settings: Progress, doubt: str) -> Answer:
        if settings.question is None:
            return Outcome.UNASKED, f"{doubt}, and it is not known what it could be asked"
        ask = embed if settings.question.ask is Ask.EMBED else generate_again
        try:
            _, answer = await ask(instance, settings.question, settings.stall_after + _MARGIN)
        except Refused as refused:
            answered = refused.code in _FAULT_OF_REQUEST
            return Outcome.PASSED if answered else Outcome.FAILED, str(refused)
        except TimeoutError:
            found = _judged(instance, settings, look_at)
            if found is not None and found.condition is Condition.HUNG:
                return Outcome.CONDEMNED, found.reason
            if found is not None and found.condition is Condition.BUSY:
                return Outcome.UNASKED, found.reason  # others are served before us
            raise
        return Outcome.PASSED, f"{doubt}, but it {answer}"

    async def generate(instance: InstanceSpec, question: Question, timeout: float) -> Answer:
        try:
            return await generate_again(instance, question, timeout)
        except Refused as refused:
            hint = "if it only embeds, set probes.startup.fastchat: embed"
            raise Refused(f"{refused}; {hint}", refused.code) from refused

    async def generate_again(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            await client.generate_one_token(_address(instance), model, timeout)
        return Outcome.PASSED, "generated a token"

    async def embed(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            await client.embed(_address(instance), model, timeout)
        return Outcome.PASSED, "made an embedding"

    async def health(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        answering, status = await client.health(_address(instance), timeout)
        if answering not in (None, instance.name):  # they share a socket while one takes over
            return Outcome.UNASKED, f"{answering} answered in its place"
        if status != 200:
            return Outcome.FAILED, f"HTTP {status}: it answers nothing but errors"
        return Outcome.PASSED, "answers"

    return {
        Ask.HEALTH: guarded(health, _FAULTS),
        Ask.STATUS: guarded(status, _FAULTS),
        Ask.PROGRESS: guarded(progress, _FAULTS),
        Ask.GENERATE: guarded(generate, _FAULTS),
        Ask.EMBED: guarded(embed, _FAULTS),
    }


def queue_length(answer: dict[str, Any]) -> int | None:
    """None if it does not tell, or nonsense."""
    length = answer.get("queue_length")
    return length if type(length) is int and length >= 0 else None


def _judged(instance: InstanceSpec, settings: Progress | None, look_at: LookAt) -> Judgement | None:
    look = look_at(instance.name) if settings else None
    if look is None or settings is None:
        return None
    return judge(look, stall_after=settings.stall_after, idle_after=settings.idle_after)


def _address(instance: InstanceSpec) -> str:
    assert instance.address is not None
    return instance.address


def _one_name_each(instance: InstanceSpec) -> tuple[str, ...]:
    """Several names of one model need one prompt only; a multi-model worker answers for each."""
    return instance.models if instance.kind == "multi_model_worker" else instance.models[:1]
