"""What a person asked for outlives the supervisor that was asked."""

from __future__ import annotations

import pytest
from instances import instance

from supervisor.core.lifecycle import Stage, State, Status, Timer
from supervisor.core.rollout import Member, next_steps
from supervisor.daemon.adoption import survey
from supervisor.daemon.state import State as Known


@pytest.mark.parametrize("again", [False, True])
def test_one_that_was_stopped_before_it_came_to_be_stays_so(again: bool) -> None:
    """Its spawn waited for the strays of its last run when the supervisor was killed."""
    spec = instance("one")
    status = Status(
        state=State.STOPPING,
        wanted=again,
        run=2,
        epoch=3,
        timer=Timer(1.0, 3),
        stage=Stage.TERM,
        again=again,
        stop_reason="asked to stop",
    )
    known = Known(members=(Member(spec, status),))
    adoption = survey(known, [], {"one": spec}, {}.get, now=0.0)
    (member,) = adoption.known.members
    assert (member.status.state, member.status.wanted) == (State.STOPPED, again)
    assert member.status.reason == "asked to stop"
    assert member.status.timer is None
    assert next_steps({"one": spec}, adoption.known.members, {}) == []
