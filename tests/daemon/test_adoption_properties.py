"""Random clusters whose supervisor is killed at any moment, and whose state file is old or lost.

Below the supervisor is a machine that does not die with it: its processes go on, and the next
supervisor finds them as they are. The world is that of the rollout's own stories, and holds its
promises after a death as well.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))
from rollout_world import Instance, World
from test_rollout_properties import Play, comes_to_rest, play

from supervisor.core.lifecycle import Exited
from supervisor.core.resume import resume
from supervisor.core.rollout import Member
from supervisor.daemon import state
from supervisor.daemon.adoption import survey
from supervisor.runtime.leftovers import Leftover


@dataclass(frozen=True)
class Process:
    """What is found on the machine."""

    seen: Leftover
    signalled: bool


class MortalWorld(World):
    """A world whose supervisor can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = state.Notes()
        self.note = state.write(state.State())
        self.deaths = 0
        self.adopted = 0

    def writes_note(self) -> None:
        self.note = self.notes.write(
            state.State(
                members=tuple(self.members()),
                histories=dict(self.histories),
                counts=dict(self.counts),
            )
        )

    def loses_note(self) -> None:
        self.note = state.write(state.State())

    def dies(self) -> None:
        """The next supervisor goes on from the note, and from what it finds."""
        self.deaths += 1
        processes = {one.name: found for one in self.instances.values() if (found := _process(one))}
        born = {one.seen.pid: one.seen.born for one in processes.values()}
        known = state.rejoined(state.read(self.note), self.wanted)
        adoption = survey(
            known, [one.seen for one in processes.values()], self.wanted, born.get, now=self.now
        )
        ended = {one.instance for one in adoption.unknown} | set(adoption.strays)
        for name in ended:
            del processes[name]
        self.histories = dict(adoption.known.histories)
        self.counts = dict(adoption.known.counts)
        self.instances = {}
        for member in adoption.known.members:
            self._adopt(member, processes.pop(member.name, None))
        assert not processes, "a process that nobody knows of"
        self.stopped_slots = {
            slot
            for slot in self.stopped_slots & set(self.wanted)
            if self.live(slot) and not any(one.status.wanted for one in self.live(slot))
        }
        for one in list(self.instances.values()):
            self._go_on(one)

    def _adopt(self, member: Member, process: Process | None) -> None:
        one = Instance(member.spec, member.status, member.leaving, member.outdated)
        self.instances[one.name] = one
        if process is not None:
            assert one.status.pid == process.seen.pid, "another process than the one that runs"
            one.launched, one.signalled = process.seen.launch, process.signalled
            self.adopted += 1

    def _go_on(self, one: Instance) -> None:
        effects, events = resume(one.status, one.spec)
        self._do(one, effects)
        if one.status.pid is not None and one.launched is None:
            self.tell(one, Exited(one.status.run, None, None))
            return
        for event in events:
            self.tell(one, event)


def _process(one: Instance) -> Process | None:
    """None if it has none, or one that was only decided on: that never comes to be."""
    if one.launched is None or one.spawning:
        return None
    spec, status = one.spec, one.status
    assert status.pid is not None
    command = ("run", spec.name)  # whatever it is, the same for all of its launches
    seen = Leftover(
        status.pid, status.born, one.name, status.run, spec.port, one.launched, True, command
    )
    return Process(seen, one.signalled)


class MortalPlay(Play):
    world: MortalWorld

    def __init__(self) -> None:
        super().__init__(MortalWorld())

    def possible(self) -> Iterator[Callable[[int], object]]:
        world = self.world
        yield from [lambda _: world.writes_note()] * 6
        yield from [lambda n: world.loses_note() if n % 8 == 0 else world.dies()] * 2
        yield from super().possible()


def lives(choices: bytes) -> MortalPlay:
    life = MortalPlay()
    play(choices, life)
    life.world.dies()
    comes_to_rest(life)
    return life


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=20, max_size=300))
def test_killed_at_any_moment_it_comes_to_what_is_wanted(choices: bytes) -> None:
    lives(choices)


def test_hundreds_of_longer_lives() -> None:
    chance = random.Random(11)
    deaths = adopted = 0
    for _ in range(250):
        world = lives(chance.randbytes(2 * chance.randrange(20, 300))).world
        deaths, adopted = deaths + world.deaths, adopted + world.adopted
    assert deaths > 250
    assert adopted > 500


def test_with_a_fresh_note_nothing_that_was_ready_is_touched() -> None:
    chance = random.Random(5)
    kept = 0
    for _ in range(100):
        life = MortalPlay()
        play(chance.randbytes(2 * chance.randrange(20, 200)), life)
        world = life.world
        comes_to_rest(life)
        before, restarts = world.runs(), {n: o.status.restarts for n, o in world.instances.items()}
        world.writes_note()
        for _ in range(3):
            world.dies()
        assert world.settle() == []
        assert world.runs() == before
        assert {n: o.status.restarts for n, o in world.instances.items()} == restarts
        kept += len(before)
    assert kept > 200
