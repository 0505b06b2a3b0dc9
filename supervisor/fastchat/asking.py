"""The questions that only FastChat's workers and its API server can be asked."""

from __future__ import annotations

from typing import Any

from supervisor.core.instance import Ask, InstanceSpec, Question
from supervisor.core.lifecycle import Outcome
from supervisor.core.probing import Answer, Asker, guarded
from supervisor.fastchat.client import Client, Fault, Refused
from supervisor.fastchat.rotation import Rotation

_GENERATE_PATIENCE = 60.0
"""The first token of a large model comes late: kernels compile, graphs are captured."""
_FAULTS = (*Fault, Refused)


def askers(client: Client, rotation: Rotation) -> dict[Ask, Asker]:
    """One function per question. Each passes a worker's queue length on to the controller."""

    async def status(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        answer = await client.worker_status(_address(instance), timeout)
        length = queue_length(answer)
        if length is None:
            return Outcome.PASSED, "answers, queue unknown"
        await rotation.report_queue(instance, length)
        return Outcome.PASSED, f"answers, queue {length}"

    async def generate(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            try:
                await client.generate_one_token(_address(instance), model, timeout)
            except Refused as refused:
                hint = "if it only embeds, set probes.startup.fastchat: embed"
                raise Refused(f"{refused}; {hint}") from refused
        return Outcome.PASSED, "generated a token"

    async def embed(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        for model in _one_name_each(instance):
            await client.embed(_address(instance), model, timeout)
        return Outcome.PASSED, "made an embedding"

    async def health(instance: InstanceSpec, _: Question, timeout: float) -> Answer:
        answering = await client.health(_address(instance), timeout)
        if answering not in (None, instance.name):  # they share a socket while one takes over
            return Outcome.UNASKED, f"{answering} answered in its place"
        return Outcome.PASSED, "answers"

    return {
        Ask.HEALTH: guarded(health, _FAULTS),
        Ask.STATUS: guarded(status, _FAULTS),
        Ask.GENERATE: guarded(generate, _FAULTS, patience=_GENERATE_PATIENCE),
        Ask.EMBED: guarded(embed, _FAULTS, patience=_GENERATE_PATIENCE),
    }


def queue_length(answer: dict[str, Any]) -> int | None:
    """None if it does not tell, or nonsense."""
    length = answer.get("queue_length")
    return length if type(length) is int and length >= 0 else None


def _address(instance: InstanceSpec) -> str:
    assert instance.address is not None
    return instance.address


def _one_name_each(instance: InstanceSpec) -> tuple[str, ...]:
    """Several names of one model need one prompt only; a multi-model worker answers for each."""
    return instance.models if instance.kind == "multi_model_worker" else instance.models[:1]
