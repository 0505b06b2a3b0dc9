"""The loop: a blow by chance, then everything is checked; until the time is over."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from chaos import checks
from chaos.blows import Blow, Story
from chaos.checks import Settled
from chaos.form import Clients, Span
from chaos.report import Report, Row
from chaos.world import World

_SALVO = 0.12
"""How often several blows come together."""
_MOST_VIOLATIONS = 5
"""After that many a run is ended: one fault shows in many ways."""


@dataclass
class Game:
    """A world and what befalls it, one blow after the other."""

    world: World
    blows: Sequence[Blow]
    clients: Clients
    seed: int
    report: Report = field(default_factory=Report)
    _before: Settled | None = None
    _touched: set[str] = field(default_factory=set)
    _began: float = 0.0
    _spans: list[Span] = field(default_factory=list)

    def play(self, seconds: float) -> None:
        began = time.monotonic()
        self._before = checks.converge(self.world, self.world.form.bound)
        with self.clients.running():
            self._strike_on(Random(self.seed), began + seconds)
        self.report.blows = self.world.blow
        self.report.seconds = time.monotonic() - began

    def _strike_on(self, chance: Random, end: float) -> None:
        self.clients.offer(self.world)
        self.world.withdraw = lambda slots: self.clients.withdraw(self.world, slots)
        while time.monotonic() < end and not self._is_lost():
            self.world.blow += 1
            self._strike(chance)

    def _is_lost(self) -> bool:
        return self._before is None or len(self.world.violations) >= _MOST_VIOLATIONS

    def _strike(self, chance: Random) -> None:
        """One blow, or several together; whatever chance has to say is asked in a fixed order."""
        first = _choose(self.blows, chance)
        together = [first]
        if chance.random() < _SALVO and not first.alone:
            quick = [one for one in self.blows if one.quick] or [first]
            together += [_choose(quick, chance) for _ in range(chance.randint(1, 3))]
        title = first.title if len(together) == 1 else "several of these together"
        self._tell(" + ".join(one.title for one in together))
        row = self.report.row(title)
        row.count += 1
        before = len(self.world.violations)
        self._begin()
        stories = []
        for one in together:
            story = one.play(self.world, Random(chance.random()))
            if self._go_on(story):
                stories.append(story)
            if one is not together[-1]:
                time.sleep(chance.choice([0.0, 0.01, 0.05, 0.2, 0.5]))
        self._check(row)
        for story in stories:
            while not self._is_lost() and self._go_on(story):
                self._check(row)
        row.violations += len(self.world.violations) - before

    def _begin(self) -> None:
        self._touched, self._began = set(), time.monotonic()

    def _go_on(self, story: Story) -> bool:
        """To its next stop; whether there was one."""
        try:
            self._touched |= set(next(story))
        except StopIteration:
            return False
        return True

    def _check(self, row: Row) -> None:
        """That all is well. What follows is measured from here on."""
        after = checks.converge(self.world, self.world.form.bound)
        self.clients.offer(self.world)
        # Not earlier: whoever is asked until here was on offer before the blow.
        self._spans.append(Span(frozenset(self._touched), self._began, time.monotonic()))
        if after is not None and self._before is not None:
            row.kept += checks.kept(self.world, self._before, after, self._touched)
            row.seconds.append(after.seconds)
        self._before = after
        checks.no_duplicates(self.world)
        self.world.check_bystander()
        failed = self.clients.unexcused(self.world, self._spans)
        for (name, what), count in Counter((one.name, one.what) for one in failed).items():
            self.world.violate(f"{count} requests to {name} failed: {what}")
        self._begin()

    def _tell(self, what: str) -> None:
        print(f"  {self.world.blow}: {what}", file=sys.stderr, flush=True)


def _choose(blows: Sequence[Blow], chance: Random) -> Blow:
    return chance.choices(blows, [one.weight for one in blows])[0]
