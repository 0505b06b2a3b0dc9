"""How a question is asked, and what it means that it could not be. Pure.

"Failed" is an answer, or its absence. When we could not even ask (no descriptors left, no such
program), that is no evidence against the instance, and the outcome is ``UNASKED``.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from supervisor.core.instance import Ask, InstanceSpec, Question
from supervisor.core.lifecycle import Outcome

Answer = tuple[Outcome, str]
Asker = Callable[[InstanceSpec, Question, float], Awaitable[Answer]]

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
"""Errors of our own side of a connection."""


_PATIENCE = {Ask.GENERATE: 60.0, Ask.EMBED: 60.0}
"""Seconds: the first token of a large model comes late: kernels compile, graphs are captured."""


def patience(ask: Ask, timeout: float) -> float:
    """How long such a question really waits for its answer, in seconds."""
    return max(timeout, _PATIENCE.get(ask, 0.0))


def guarded(ask: Asker, faults: tuple[type[Exception], ...]) -> Asker:
    """Ask, with patience, and make an answer of ``faults``."""

    async def asked(instance: InstanceSpec, question: Question, timeout: float) -> Answer:
        timeout = patience(question.ask, timeout)
        try:
            return await ask(instance, question, timeout)
        except TimeoutError:
            return Outcome.FAILED, f"no answer to {question.ask} within {timeout:g} s"
        except faults as fault:
            outcome, text = blame(fault)
            how = "failed" if outcome is Outcome.FAILED else outcome
            return outcome, f"{question.ask} {how}: {text}"

    return asked


def blame(error: Exception) -> Answer:
    """Whose fault an error is that came instead of an answer, and the error in a few words."""
    cause = getattr(error, "os_error", None) or error
    ours = getattr(cause, "errno", None) in _OURS
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return (Outcome.UNASKED if ours else Outcome.FAILED), text
