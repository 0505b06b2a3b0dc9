"""The supervisor is killed and upgraded, again and again under a steady traffic: nobody may notice.

A table goes to stdout, progress to stderr; the exit status is 1 if a request failed, an instance
did not keep its process, was restarted, or runs twice.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import machine
from clusters import Supervised, demo, folder
from processes import guard, variables
from traffic import Answer, Traffic

KILLS, UPGRADES, CLIENTS = 10, 5, 8
_TOKEN = "BENCHMARKED_CLUSTER"
"""Environment variable of all instances: the folder of the cluster."""
_QUIET = 1.5
"""Seconds of traffic between two blows."""


@dataclass
class Outcome:
    kills: int
    upgrades: int
    requests: int = 0
    streamed: int = 0
    failures: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    away: dict[str, list[float]] = field(default_factory=lambda: {"kill": [], "upgrade": []})
    """Seconds from the blow until the supervisor answers again, with all instances."""
    restarts: int = 0


class Story:
    def __init__(self, cluster: Supervised, traffic: Traffic, outcome: Outcome) -> None:
        self._cluster, self._traffic, self._outcome = cluster, traffic, outcome
        self._pids = cluster.pids()

    def blow(self, what: str, strike: Callable[[], None]) -> None:
        time.sleep(_QUIET)
        began = time.monotonic()
        strike()
        self._cluster.await_ready()
        self._outcome.away[what].append(time.monotonic() - began)
        number = len(self._outcome.away[what])
        print(f"{what} {number}: {len(self._traffic.answers)} answers so far", file=sys.stderr)
        self._look(f"{what} {number}")

    def kill(self) -> None:
        assert self._cluster.process is not None
        self._cluster.process.kill()
        self._cluster.process.wait()
        self._cluster.up_and_ready()

    def upgrade(self) -> None:
        pid = self._cluster.pid
        self._cluster.ask("upgrade")
        if self._cluster.pid != pid:
            self._outcome.surprises.append("an upgrade has changed the supervisor's pid")

    def _look(self, when: str) -> None:
        pids = self._cluster.pids()
        if pids != self._pids:
            self._outcome.surprises.append(f"{when}: pids were {self._pids}, are {pids}")
        for name, count in _leaders(self._cluster).items():
            if count != 1:
                self._outcome.surprises.append(f"{when}: {count} processes of {name}")


def _leaders(cluster: Supervised) -> Counter[str]:
    """Processes by instance, as their own environment names it."""
    here = str(cluster.folder)
    return Counter(
        env["LLM_SUPERVISOR_INSTANCE"].partition("/")[2]
        for env in variables("LLM_SUPERVISOR_INSTANCE")
        if env.get(_TOKEN) == here
    )


def main() -> None:
    arguments = _arguments()
    outcome = Outcome(arguments.kills, arguments.upgrades)
    with folder() as place:

        def edit(content: dict[str, object]) -> None:
            content["env"] = {_TOKEN: str(place)}

        cluster = Supervised(place, demo(edit))
        guarded = guard(f"{_TOKEN}={place}")
        try:
            cluster.up_and_ready()
            traffic = Traffic(cluster.url, tuple(cluster.models))
            with traffic.running(arguments.clients):
                story = Story(cluster, traffic, outcome)
                for _ in range(arguments.kills):
                    story.blow("kill", story.kill)
                for _ in range(arguments.upgrades):
                    story.blow("upgrade", story.upgrade)
                while len(traffic.answers) < arguments.requests:
                    time.sleep(0.1)
            _count(outcome, traffic.answers)
            status = json.loads(cluster.ask("status", "--json"))
            outcome.restarts = sum(one["restarts"] for one in status["instances"])
        finally:
            cluster.down()
            guarded.communicate()  # should anything be left, it is ended now
    _print(outcome)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(outcome), indent=1))
    sys.exit(bool(outcome.failures or outcome.surprises or outcome.restarts))


def _count(outcome: Outcome, answers: list[Answer]) -> None:
    outcome.requests = len(answers)
    outcome.streamed = sum(one.stream for one in answers)
    outcome.failures = [f"{one.model}: {one.fault}" for one in answers if one.fault]


def _print(outcome: Outcome) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    for what, times in outcome.away.items():
        if times:
            print(
                f"{what:<8} {len(times):>3}   the supervisor was away for "
                f"{statistics.median(times):.2f} s (max {max(times):.2f})"
            )
    print(f"requests {outcome.requests}, streamed {outcome.streamed}")
    print(f"failed   {len(outcome.failures)}")
    print(f"restarts of instances {outcome.restarts}")
    print(f"surprises (another pid, a second process) {len(outcome.surprises)}")
    for line in (*outcome.failures[:10], *outcome.surprises[:10]):
        print(f"  {line}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--upgrades", type=int, default=UPGRADES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--requests", type=int, default=0, help="at least this many")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
