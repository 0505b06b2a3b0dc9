"""A cluster under blows by chance; the exit status is 1 if a promise was broken."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import median

import machine  # of benchmarks/, which is to be on the path, too

from chaos import checks, fast, fastchat
from chaos.blows import Blow
from chaos.clock import Clock
from chaos.disk import mount_small
from chaos.game import Game
from chaos.report import table
from chaos.world import World

_FORMS = {form.name: form for form in (fast.FORM, fastchat.FORM)}
_MEGABYTES = 64
"""Of the disk that is filled."""


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    form = _FORMS[arguments.form]
    seed = Random().randrange(10**6) if arguments.seed is None else arguments.seed
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    no_disk = mount_small(folder / "disk", _MEGABYTES)
    clock = Clock(folder)
    without = {"the disk is full": no_disk, "the clock jumps": clock.reason}
    left_out = {title: reason for title, reason in without.items() if reason}
    world = World(folder, form, clock)
    clients = form.clients(seed, world.content)
    blows = [one for one in form.blows if one.title not in left_out and _is_meant(one, arguments)]
    game = Game(world, blows, clients, seed)
    try:
        world.begin()
        game.play(arguments.seconds)
        world.end(form.bound)
        lines = checks.logs(world)
    finally:
        world.clean_up()
    report = game.report
    print(table(report, [one.title for one in form.blows]), end="\n\n")
    print(
        f"{report.blows} blows in {report.seconds:.0f} s, seed {seed}: "
        f"{len(world.violations)} violations. {clients.requests} requests, of which "
        f"{clients.excused} failed at what was hit. {lines.written} numbered lines, of which "
        f"{lines.admitted} were lost to a full disk, as their logs say."
    )
    again = checks.successions(world)
    if again:
        took = f"{1000 * median(again):.0f} ms"
        print(f"kill -9 → its successor runs: median {took}, {len(again)} times")
    for title, reason in left_out.items():
        print(f"left out: {title} ({reason})")
    if arguments.json:
        content = {
            "machine": machine.describe(),
            "form": form.name,
            "seed": seed,
            "seconds": round(report.seconds, 1),
            "blows": report.blows,
            "rows": [row.as_json() for row in report.rows.values()],
            "violations": [str(one) for one in world.violations],
            "requests": clients.requests,
            "excused": clients.excused,
            "running_again_s": [round(one, 4) for one in again],
            "lines": lines.written,
            "lines_lost_to_full_disk": lines.admitted,
            "left_out": left_out,
        }
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if not world.violations:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    for one in world.violations:
        print(f"VIOLATION {one}")
    # It is in memory, and goes with us.
    shutil.copytree(
        world.disk, folder / "disk-at-the-end", ignore=shutil.ignore_patterns("out", "*.sock")
    )
    chosen = "" if form is fast.FORM else f" FORM={form.name}"
    print(f"what is left of it is in {folder}; play it again:")
    print(f"  make chaos SECONDS={arguments.seconds:g} SEED={seed}{chosen}")
    return 1


def _is_meant(blow: Blow, arguments: argparse.Namespace) -> bool:
    wanted = not arguments.only or any(one in blow.title for one in arguments.only)
    return wanted and not any(one in blow.title for one in arguments.without)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--form", choices=sorted(_FORMS), default=fast.FORM.name)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--seed", type=int, metavar="N", help="default: another one each time")
    for name, text in (("only", "only blows"), ("without", "no blows")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="TEXT",
            help=f"{text} with TEXT in their title; may be given several times",
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
