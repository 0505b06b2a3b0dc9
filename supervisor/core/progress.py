"""Whether a worker gets on with its work, from what it notes of itself. Pure.

A worker's answer to a status question says little: one that cannot generate any more may give it,
and one that makes an embedding may not. So a worker keeps a record of what it does, which is read
without asking it (``fastchat/entry/progress.py``). What it produces decides. Where the record
raises a doubt, or says nothing because nobody has asked for anything, one token is asked for, and
that answer decides: so no client can get a worker restarted by asking for nonsense.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from supervisor.core.durations import format_duration

DOUBTFUL_FAILURES = 3
"""Failures in a row after which the worker may be at fault, and not who asks it."""

EMBEDDING_PATIENCE = 10
"""An embedding shows nothing of itself until it is made; as long as it uses the processor it may
take so many times ``stall_after``."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a worker has noted. Times are seconds of CLOCK_MONOTONIC."""

    pid: int
    began: float
    in_flight: int
    embeddings: int
    oldest: float | None
    progress: float
    success: float | None
    failures: int
    error: str


@dataclass(frozen=True, slots=True)
class Look:
    """A record, and what the kernel says of the process, at one moment."""

    at: float
    record: Record
    stopped: bool
    """By SIGSTOP or a debugger."""
    worked_at: float
    """When it was last seen to use the processor; not before it was first looked at."""


class Condition(StrEnum):
    ALIVE = "alive"
    BUSY = "busy"
    HUNG = "hung"
    """Beyond doubt, for whatever reason: a deadlock, no slot left, a stopped process."""
    SUSPECT = "suspect"
    """One token is to be asked for."""
    IDLE = "idle"
    """The same, for want of any other evidence."""


@dataclass(frozen=True, slots=True)
class Judgement:
    condition: Condition
    reason: str


def judge(look: Look, *, stall_after: float, idle_after: float) -> Judgement:
    """What a look at a worker means. Times are seconds."""
    record = look.record
    silent = silence(look, stall_after)
    if silent is not None and silent >= stall_after:
        why = ", and its process is stopped" if look.stopped else ""
        return Judgement(Condition.HUNG, f"{_requests(record)}, {_nothing_for(silent)}{why}")
    if record.failures >= DOUBTFUL_FAILURES:
        text = f"{record.failures} requests in a row have failed ({record.error})"
        return Judgement(Condition.SUSPECT, text)
    if silent is not None:
        return Judgement(Condition.BUSY, _busy(record))
    proven = record.began if record.success is None else record.success
    if look.at - proven >= idle_after:
        text = f"no request has succeeded for {format_duration(look.at - proven)}"
        return Judgement(Condition.IDLE, text)
    return Judgement(Condition.ALIVE, f"answered {format_duration(look.at - proven)} ago")


def excuse(look: Look, *, stall_after: float) -> str | None:
    """Why a worker may leave a status question unanswered; None if nothing excuses it.

    Its event loop is blocked while it makes an embedding, or answers a request of some engines. A
    process that is stopped does nothing of the kind.
    """
    silent = silence(look, stall_after)
    if silent is None or silent >= stall_after or look.stopped:
        return None
    return f"too busy to answer: {_busy(look.record)}"


def silence(look: Look, stall_after: float) -> float | None:
    """For how long it has shown no sign of work, though somebody waits; None if nobody does."""
    record = look.record
    if record.in_flight == 0 or record.oldest is None:
        return None
    last_sign = max(record.progress, record.oldest)
    if record.embeddings > 0 and look.at - last_sign < EMBEDDING_PATIENCE * stall_after:
        last_sign = max(last_sign, look.worked_at)
    return max(0.0, look.at - last_sign)


def _requests(record: Record) -> str:
    return "a request waits" if record.in_flight == 1 else f"{record.in_flight} requests wait"


def _nothing_for(seconds: float) -> str:
    return f"and nothing has been produced for {format_duration(seconds)}"


def _busy(record: Record) -> str:
    return f"works on {record.in_flight} request{'' if record.in_flight == 1 else 's'}"
