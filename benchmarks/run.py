"""Measurements of llm-supervisor, side by side with FastChat started by hand: `make bench`.

A Markdown table goes to stdout, progress to stderr. Linux only; everything stays on loopback, and
every process that is started here ends with the benchmark.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import edits
import failover
import idling
import machine
import restarting
import starting
from figures import Measurement, Row, load_average, table

MEASUREMENTS: dict[str, tuple[str, Callable[[int], list[Row]]]] = {
    "start": ("start: from `up` to the first answers", starting.measure),
    "script": ("start, by the nohup script", starting.measure_script),
    "kill": ("kill -9", restarting.measure),
    "failover": ("one of two replicas killed under load", failover.measure),
    "edits": ("edits of a running cluster under load", edits.measure),
    "idle": ("supervisor alone, idle", idling.measure),
}


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    done: list[Measurement] = []
    about = machine.describe()
    try:
        for name in arguments.only or MEASUREMENTS:
            done.append(_measure(name, arguments.rounds))
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:", file=sys.stderr)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(table(done))
    if arguments.json:
        content = {"machine": about, "measurements": [one.as_json() for one in done]}
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0 if len(done) == len(arguments.only or MEASUREMENTS) else 130


def _measure(name: str, rounds: int) -> Measurement:
    title, measure = MEASUREMENTS[name]
    print(f"measuring {title} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    result = Measurement(title, load_average())
    result.rows = measure(rounds)
    result.load_after = load_average()
    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = ", ".join(MEASUREMENTS)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=list(MEASUREMENTS),
        help=f"only this one of {names}; may be given several times",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    return parser


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
