"""What a supervisor knows of its instances, for the one that comes after it.

Two carriers, one form: the state file, for a successor of a killed supervisor, has no secrets; the
handover to the program that an upgrade becomes (``upgrade.py``) is in memory only, and has all.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from supervisor.core.instance import InstanceSpec
from supervisor.core.lifecycle import State as Phase
from supervisor.core.lifecycle import Status
from supervisor.core.plan import form_of
from supervisor.core.rollout import History, Member

VERSION = 1
"""Of the form; one that a reader does not know is as good as none."""
_DAMAGED = (ValueError, RecursionError, AttributeError)
"""What reading nonsense raises; a ValidationError is a ValueError."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class State:
    """All that the reconciler remembers. Times are of the machine's monotonic clock."""

    members: tuple[Member, ...] = ()
    held: tuple[str, ...] = ()
    histories: Mapping[str, History] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    going_down: bool = False
    last_event: int = 0
    """Number of the last entry of the journal."""


@dataclass(frozen=True, slots=True)
class _Saved:
    version: int
    boot_id: str
    state: State


class Unusable(Exception):
    """A state that cannot be gone on from; the text says why."""


@functools.cache
def _form() -> TypeAdapter[_Saved]:
    """Takes a while to make, and a first start has nothing to read."""
    return TypeAdapter(_Saved)


def write(state: State) -> bytes:
    """As JSON, whole: secrets of the specs included."""
    return to_json(_Saved(VERSION, boot_id(), state))


def read(content: bytes) -> State:
    """Raises Unusable: damaged, of another version, or from before the last boot."""
    try:
        found = json.loads(content, parse_float=_finite, parse_constant=_finite)
        version = found.get("version")
        if version != VERSION:
            raise Unusable(f"it is of version {version!r}, and this program knows {VERSION}")
        saved = _form().validate_python(found)
    except _DAMAGED:  # without its text, which quotes what was read
        raise Unusable("it is damaged") from None
    if saved.boot_id != boot_id():
        raise Unusable("it is from before the last boot")
    if not _can_be(saved.state):
        raise Unusable("it is damaged")
    return saved.state


def _finite(text: str) -> float:
    """A time that is none could not even be shown. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _can_be(state: State) -> bool:
    """Of two members with one name, the process of one would be nobody's; names become paths."""
    names = [one.name for one in state.members]
    return (
        len(set(names)) == len(names)
        and not any("/" in name or name[:1] in ("", ".") for name in names)
        and all(_can_be_an_instance(one.status.pid) for one in live(state))
        # Without a timer, nobody would ever be more firm with one that does not stop.
        and all(one.status.timer for one in state.members if one.state is Phase.STOPPING)
    )


def _can_be_an_instance(pid: int | None) -> bool:
    """Whoever takes init, or pid 0 (whose session is that of all that came from outside of our
    namespace), or ourselves for an instance, ends all of it with that."""
    return pid is not None and pid > 1 and pid != os.getpid()


def to_json(value: object) -> bytes:
    """Of dataclasses. Also of paths and variables that are not UTF-8, which JSON of pydantic's own
    cannot hold."""
    return json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> object:
    """What the encoder does not know."""
    if isinstance(value, bytes):
        return value.decode()
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- secrets


class Notes:
    """Writes one state after another, without secrets: specs without what a process is started
    with, its environment, stdin and command line.

    Of a thousand instances it works out anew only what has changed since the last time: specs and
    statuses are immutable, so that the same object has the same text.
    """

    def __init__(self) -> None:
        self._texts: dict[int, tuple[object, bytes]] = {}
        """By identity, what was written last. An object that is kept has its number to itself."""
        self._before = self._texts

    def write(self, state: State) -> bytes:
        """As ``state.write`` does."""
        self._before, self._texts = self._texts, {}
        histories = (
            b"%b:%b" % (to_json(slot), self._history(one)) for slot, one in state.histories.items()
        )
        pieces = {
            "members": b"[%b]" % b",".join(map(self._member, state.members)),
            "histories": b"{%b}" % b",".join(histories),
        }
        whole = b",".join(
            b'"%b":%b' % (name.encode(), pieces.get(name) or to_json(getattr(state, name)))
            for name in State.__dataclass_fields__
        )
        head = b'"version":%b,"boot_id":%b' % (to_json(VERSION), to_json(boot_id()))
        return b'{%b,"state":{%b}}' % (head, whole)

    def _member(self, one: Member) -> bytes:
        spec, status = self._text(one.spec), self._text(one.status)
        rest = _WORDS[one.leaving], _WORDS[one.outdated]
        return b'{"spec":%b,"status":%b,"leaving":%b,"outdated":%b}' % (spec, status, *rest)

    def _history(self, one: History) -> bytes:
        good = b"null" if one.good is None else self._text(one.good)
        failure = b"null" if one.failure is None else to_json(one.failure)
        return b'{"good":%b,"failure":%b}' % (good, failure)

    def _text(self, value: InstanceSpec | Status) -> bytes:
        known = self._before.get(id(value))
        if known is None:
            known = value, to_json(_bare(value) if isinstance(value, InstanceSpec) else value)
        self._texts[id(value)] = known
        return known[1]


_WORDS = {True: b"true", False: b"false"}


def _bare(spec: InstanceSpec) -> dict[str, object]:
    secrets = {"argv": (), "env": (), "template": None, "secret_input": None, "beside": None}
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__} | secrets


# ---------------------------------------------------------------- going on


def rejoined(state: State, wanted: Mapping[str, InstanceSpec]) -> State:
    """With the specs of the file, for all that is what the file wants; the others keep what they
    have, and cannot be started again if that is not all (``InstanceSpec.is_launchable``)."""
    members = tuple(replace(one, spec=_rejoined(one.spec, wanted)) for one in state.members)
    running = {one.spec.launch for one in members if one.status.pid is not None}
    histories = {
        slot: known
        for slot, one in state.histories.items()
        if (known := _known(one, wanted, running)).good is not None
    }
    return replace(state, members=members, histories=histories)


def _rejoined(spec: InstanceSpec, wanted: Mapping[str, InstanceSpec]) -> InstanceSpec:
    target = wanted.get(spec.slot)
    form = None if target is None else form_of(spec, target)
    return form or spec


def _known(history: History, wanted: Mapping[str, InstanceSpec], running: set[str]) -> History:
    """What ran before is something to go back to if it can be started, or still runs."""
    if history.good is None:
        return history
    good = _rejoined(history.good, wanted)
    usable = good.is_launchable or good.launch in running
    return replace(history, good=good if usable else None)


def live(state: State) -> Iterable[Member]:
    """Those that have a process, as far as is known."""
    return (one for one in state.members if one.status.pid is not None)
