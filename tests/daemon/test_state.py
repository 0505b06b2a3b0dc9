"""A state file is believed only as far as it can be true."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from instances import instance

from supervisor.core.lifecycle import State, Status
from supervisor.core.rollout import Failure, History, Member
from supervisor.daemon import state


def noted(pid: int) -> bytes:
    status = Status(State.READY, wanted=True, run=1, pid=pid, born=1)
    return state.write(state.State(members=(Member(instance("one"), status),)))


def test_it_is_read_as_it_was_written() -> None:
    (member,) = state.read(noted(os.getppid())).members
    assert member.status.pid == os.getppid()


@pytest.mark.parametrize("pid", [0, 1, -1, -5, os.getpid()])
def test_a_pid_that_can_be_no_instance_is_damage(pid: int) -> None:
    """All with the session of pid 0 would be killed, and all that is below init."""
    with pytest.raises(state.Unusable, match="damaged"):
        state.read(noted(pid))


@pytest.mark.parametrize("time", [b"NaN", b"-Infinity", b"1e999"])
def test_a_time_that_is_none_is_damage(time: bytes) -> None:
    content = noted(os.getppid())
    assert b'"since":0.0' in content
    with pytest.raises(state.Unusable, match="damaged"):
        state.read(content.replace(b'"since":0.0', b'"since":' + time))


def test_a_stop_that_would_never_end_is_damage() -> None:
    status = Status(State.STOPPING, run=1, pid=os.getppid(), born=1)
    with pytest.raises(state.Unusable, match="damaged"):
        state.read(state.write(state.State(members=(Member(instance("one"), status),))))


@pytest.mark.parametrize("names", [("one", "one"), ("../one",), ("",), (".one",)])
def test_names_that_cannot_be_are_damage(names: tuple[str, ...]) -> None:
    members = tuple(Member(instance(name), Status()) for name in names)
    with pytest.raises(state.Unusable, match="damaged"):
        state.read(state.write(state.State(members=members)))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"1", b"null", b"{", b"[" * 100_000, b'{"version": 1, "state": []}', b"\xff"],
)
def test_nonsense_is_damage_or_of_another_version(content: bytes) -> None:
    with pytest.raises(state.Unusable):
        state.read(content)


def test_what_is_not_utf8_is_kept() -> None:
    spec = instance("one", cwd=os.fsdecode(b"/caf\xe9"))
    known = state.State(members=(Member(spec, Status()),))
    assert state.read(state.write(known)).members == known.members
    assert json.loads(state.write(known))["version"] == state.VERSION


# ---------------------------------------------------------------- notes


def many(count: int) -> state.State:
    members = [
        Member(instance(f"one-{i}", env=(("KEY", "secret"),)), Status()) for i in range(count)
    ]
    histories = {one.name: History(one.spec) for one in members}
    histories["one-1"] = History(failure=Failure("launch", "one-1", "no"))
    return state.State(members=tuple(members), histories=histories)


def with_another(known: state.State, **changes: object) -> state.State:
    """The first member has changed."""
    first, *rest = known.members
    return replace(known, members=(replace(first, **changes), *rest))


def test_notes_are_read_as_they_were_written_but_for_secrets() -> None:
    known = many(3)
    content = state.Notes().write(known)
    assert b"sk-hush" not in content
    bare = [
        replace(one.spec, argv=(), env=(), template=None, secret_input=None, beside=None)
        for one in known.members
    ]
    expected = replace(
        known,
        members=tuple(replace(m, spec=s) for m, s in zip(known.members, bare, strict=True)),
        histories={
            s.name: replace(history, good=history.good and s)
            for s, history in zip(bare, known.histories.values(), strict=True)
        },
    )
    assert json.loads(content) == json.loads(state.write(expected))


def test_notes_of_one_state_after_another_are_those_of_each() -> None:
    notes, known = state.Notes(), many(3)
    for later in (
        known,
        with_another(known, status=Status(restarts=1)),
        with_another(known, leaving=True),
        with_another(known, spec=instance("other")),
        replace(known, members=known.members[1:], histories={}),
        replace(known, going_down=True, held=("one-0",)),
        known,
    ):
        assert notes.write(later) == state.Notes().write(later)


@pytest.mark.parametrize("count", [10, 1000])
def test_what_has_not_changed_costs_no_work(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, worked_out = state._plain, 0

    def counted(value: object) -> object:
        nonlocal worked_out
        worked_out += 1
        return plain(value)

    monkeypatch.setattr(state, "_plain", counted)
    notes, known = state.Notes(), many(count)
    notes.write(known)
    worked_out = 0
    notes.write(with_another(known, status=Status(restarts=1)))
    assert worked_out == 2  # that status, and the one failure


def test_a_name_that_is_no_text_and_words_that_look_like_ours() -> None:
    reason = 'a \udcff path, and "histories":{} "members":[]'
    known = state.State(members=(Member(instance("one"), Status(reason=reason)),))
    assert state.read(state.Notes().write(known)).members[0].status.reason == reason
