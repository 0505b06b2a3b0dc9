"""llm-supervisor side by side with other supervisors, a shell script, and nothing: `make bench`.

Progress goes to stderr, the tables to stdout. Linux only; everything stays on loopback, nothing is
installed but into a folder of its own, and every process that is started here ends with the
benchmark, however that ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import failover
import goals
import machine
import report
import resting
import told
import trivial
import workers
from clusters import folder
from contestants import TRIVIAL, WORKERS, Contestant, Missing, Ours, everybody
from machine import load_average
from processes import end_all_of_this_run, guard
from results import Results

_PARTS = ("trivial", "workers", "resting", "failover")
_ROUNDS = 3
_LARGE = {"trivial": 100, "workers": 16}
"""From this size on there is a third of the rounds, or all would take an hour."""


class Run:
    """One run of the benchmark: whom it measures, and what it has found."""

    def __init__(self, arguments: argparse.Namespace, place: Path) -> None:
        self._arguments, self._place = arguments, place
        self._began = time.monotonic()
        self._about: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "rounds": arguments.rounds,
            "machine": machine.describe(),
            "load_before": load_average(),
        }
        self._versions: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self.results = Results()

    def of_ours_is_missing(self) -> bool:
        return any(name.startswith(Ours.name) for name, _, _ in self.results.remarks)

    def not_measured(self) -> list[str]:
        """One line for each, with the reason."""
        lines = [f"{name}: {why}" for name, why in self._skipped.items()]
        for (name, size, sized), why in self.results.remarks.items():
            lines.append(f"{name}, {size:,} {sized}: {why}")
        return lines

    def play(self) -> None:
        parts: dict[str, Callable[[], None]] = {
            "trivial": self._trivial,
            "workers": self._workers,
            "resting": self._resting,
            "failover": self._failover,
        }
        for name in self._arguments.only:
            parts[name]()

    def about(self) -> dict[str, Any]:
        minutes = round((time.monotonic() - self._began) / 60)
        after = {"minutes": minutes, "load_after": load_average()}
        return {**self._about, **after, "contestants": self._versions}

    # ------------------------------------------------------------ parts

    def _trivial(self) -> None:
        program = told.program(self._place)

        def session(one: type[Contestant], size: int, place: Path) -> trivial.Session:
            return trivial.Session(one, size, place, self._arguments, program)

        self._compete("trivial", TRIVIAL, self._arguments.sizes, session)

    def _workers(self) -> None:
        def session(one: type[Contestant], size: int, place: Path) -> workers.Session:
            return workers.Session(one, size, place, self._arguments)

        self._compete("workers", WORKERS, self._arguments.workers, session)

    def _resting(self) -> None:
        if self._wanted(Ours):
            for _ in range(self._arguments.rounds):
                with self._turn(Ours, resting.SIZE, "probed processes") as place:
                    resting.measure(place, self._arguments, self.results)

    def _failover(self) -> None:
        if self._wanted(Ours):
            with self._turn(Ours, 2, "replicas under load"):
                failover.measure(self._arguments.rounds, self.results)

    # ------------------------------------------------------------ taking turns

    def _compete(
        self,
        part: str,
        contestants: Sequence[type[Contestant]],
        sizes: Sequence[int],
        session: Callable[[type[Contestant], int, Path], trivial.Session | workers.Session],
    ) -> None:
        """They take turns, and each round begins with another one."""
        there = [one for one in contestants if self._wanted(one) and self._installed(one)]
        if not there:
            return
        for one in () if self._arguments.no_warm_up else there:
            with self._turn(one, 1, f"{part}, not counted") as place:
                session(one, 1, place).warm_up()
        for size in sizes:
            large = size >= _LARGE[part]
            rounds = math.ceil(self._arguments.rounds / (3 if large else 1))
            for i in range(rounds):
                for one in (*there[i % len(there) :], *there[: i % len(there)]):
                    with self._turn(one, size, f"{part}, round {i + 1} of {rounds}") as place:
                        session(one, size, place).measure(self.results)

    @contextmanager
    def _turn(self, one: type[Contestant], size: int, what: str) -> Iterator[Path]:
        """A folder for it. What goes wrong is noted, and others have their turn all the same."""
        began = time.monotonic()
        with folder() as place:
            try:
                yield place
            except Exception as error:
                why = " ".join(str(error).split())
                self.results.remarks.setdefault((one.name, size, what.split(",")[0]), why[:300])
                print(f"  {one.name}: {error}", file=sys.stderr)
        took = time.monotonic() - began
        print(f"{what}: {one.name} × {size:,}, {took:.0f} s", file=sys.stderr, flush=True)

    def _wanted(self, one: type[Contestant]) -> bool:
        return one.program in self._arguments.contestants

    def _installed(self, one: type[Contestant]) -> bool:
        try:
            version = one.install(self._arguments.peers, offline=self._arguments.offline)
        except Missing as why:
            self._skipped[one.program] = str(why)
            print(f"{one.program} is skipped: {why}", file=sys.stderr, flush=True)
            return False
        self._versions[one.program] = version
        return True


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.table and not report.has_place(arguments.table):
        parser.error(f"{arguments.table} has no marks where the tables go: see docs/benchmarks.md")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    _allow_descriptors()
    ending = guard()
    try:
        with folder() as place:
            run = Run(arguments, place)
            complete = _played(run)
    finally:
        end_all_of_this_run()
        ending.communicate()
    _tell(run, arguments)
    return 0 if complete and not run.of_ours_is_missing() else 1


def _played(run: Run) -> bool:
    try:
        run.play()
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:", file=sys.stderr)
        return False
    return True


def _tell(run: Run, arguments: argparse.Namespace) -> None:
    about, verdicts = run.about(), goals.judge(run.results)
    text = report.markdown(about, run.results, verdicts, run.not_measured())
    print(text)
    if arguments.table:
        report.write(arguments.table, text)
    if arguments.json:
        content = {
            **about,
            "not_measured": run.not_measured(),
            "goals": [one.as_json() for one in verdicts],
            "results": run.results.as_json(),
        }
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _allow_descriptors() -> None:
    """By default a process may open 1,024 in many places: too few for a thousand processes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=_PARTS,
        default=_PARTS,
        metavar="PART",
        help=f"of {', '.join(_PARTS)}",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=everybody(),
        default=everybody(),
        metavar="NAME",
        help=f"of {', '.join(everybody())}",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=_ROUNDS,
        metavar="N",
        help=f"default: {_ROUNDS}; a third of it for large sizes",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[10, 100, 1000],
        metavar="N",
        help="numbers of trivial processes; default: 10 100 1000",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="numbers of FastChat workers; default: 1 4 16",
    )
    parser.add_argument(
        "--span",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="over which processor time at rest is counted; default: 3",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=cache / "llm-supervisor-peers",
        metavar="DIR",
        help="where other supervisors are, or get installed; default: %(default)s",
    )
    parser.add_argument("--no-warm-up", action="store_true", help="measure at once")
    parser.add_argument("--offline", action="store_true", help="install nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="write the tables there, between the two lines that mark their place",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
