"""The questions that only FastChat's workers can be asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from supervisor.core.instance import Ask, InstanceSpec, Question
from supervisor.core.lifecycle import Outcome
from supervisor.fastchat.client import Client, Fault, Refused
from supervisor.fastchat.rotation import Rotation

Answer = tuple[Outcome, str]
Asker = Callable[[InstanceSpec, Question, float], Awaitable[Answer]]

_GENERATE_TIMEOUT = 60.0
"""The first token of a large model comes late: kernels compile, graphs are captured."""


def askers(client: Client, rotation: Rotation) -> dict[Ask, Asker]:
    """One function per question. Each passes a worker's queue length on to the controller."""

    async def status(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        answer = await client.worker_status(_address(instance), timeout)
        await rotation.report_queue(instance.name, int(answer.get("queue_length", 0)))
        return Outcome.PASSED, f"answers, queue {answer.get('queue_length', '?')}"

    async def generate(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            await client.generate_one_token(
                _address(instance), model, max(timeout, _GENERATE_TIMEOUT)
            )
        return Outcome.PASSED, "generated a token"

    async def embed(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            await client.embed(_address(instance), model, max(timeout, _GENERATE_TIMEOUT))
        return Outcome.PASSED, "made an embedding"

    return {
        Ask.STATUS: _guarded(status),
        Ask.GENERATE: _guarded(generate),
        Ask.EMBED: _guarded(embed),
    }


def _guarded(ask: Asker) -> Asker:
    async def asked(instance: InstanceSpec, question: Question, timeout: float) -> Answer:
        try:
            return await ask(instance, question, timeout)
        except Refused as refused:
            hint = ""
            if question.ask is Ask.GENERATE:
                hint = "; if it only embeds, set probes.startup.fastchat: embed"
            return Outcome.FAILED, f"{question.ask} failed: {refused}{hint}"
        except TimeoutError:
            return Outcome.FAILED, f"no answer to {question.ask} within {timeout:g} s"
        except Fault as fault:
            return Outcome.FAILED, f"{question.ask} failed: {describe(fault)}"

    return asked


def describe(fault: Any) -> str:
    """A connection error in a few words."""
    inner = getattr(fault, "os_error", None) or fault
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _address(instance: InstanceSpec) -> str:
    assert instance.address is not None
    return instance.address


def _one_name_each(instance: InstanceSpec) -> tuple[str, ...]:
    """Several names of one model need one prompt only; a multi-model worker answers for each."""
    return instance.models if instance.kind == "multi_model_worker" else instance.models[:1]
