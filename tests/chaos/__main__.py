"""``python -m chaos --seconds 60 --seed 1``: a cluster under blows. Exit status 1: a promise broken."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]

import machine
from chaos import checks, fast
from chaos.blows import Blow
from chaos.clients import Clients
from chaos.clock import Clock
from chaos.disk import mount_small
from chaos.game import Game, Report, figures
from chaos.world import World

_CLIENTS = 4
_MEGABYTES = 64


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seed = Random().randrange(10**6) if arguments.seed is None else arguments.seed
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    no_disk = mount_small(folder / "disk", _MEGABYTES)
    clock = Clock(folder)
    left_out = {"the disk is full": no_disk, "the clock jumps": clock.reason}
    world = World(folder, fast.content(folder), fast.generations, clock)
    clients = Clients(seed)
    game = Game(
        world,
        [one for one in fast.BLOWS if not left_out.get(one.title) and _is_meant(one, arguments)],
        seed,
        fast.BOUND,
        offer=lambda world, slots: clients.offer(_ports(world, slots)),
        failures=clients.unexcused,
    )
    try:
        world.begin()
        with clients.running(_CLIENTS):
            game.play(arguments.seconds)
        world.end(fast.BOUND)
        lines = checks.logs(world)
    finally:
        world.clean_up()
        shutil.copytree(
            world.disk, folder / "found", ignore=shutil.ignore_patterns("out", "*.sock")
        )
    print(table(game.report))
    print()
    print(
        f"{game.report.blows} blows in {game.report.seconds:.0f} s, seed {seed}: "
        f"{len(world.violations)} violations; {clients.requests} requests, {clients.excused} failed "
        f"at what was hit; {lines.written} lines written, {lines.admitted} lost to a full disk and "
        "admitted, none else"
    )
    for title, reason in left_out.items():
        if reason:
            print(f"left out: {title} ({reason})")
    if arguments.json:
        content = {
            "machine": machine.describe(),
            "seed": seed,
            "seconds": round(game.report.seconds, 1),
            "rows": figures(game.report),
            "violations": [str(one) for one in world.violations],
            "requests": clients.requests,
            "lines": lines.written,
            "left_out": {title: reason for title, reason in left_out.items() if reason},
        }
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if not world.violations:
        if arguments.keep is None:
            shutil.rmtree(folder)
        return 0
    for one in world.violations:
        print(f"VIOLATION {one}")
    print(f"what is left of it: {folder}/found; play it again:")
    print(f"  make chaos SECONDS={arguments.seconds:g} SEED={seed}")
    return 1


def _is_meant(blow: Blow, arguments: argparse.Namespace) -> bool:
    return all(one not in blow.title for one in arguments.without)


def _ports(world: World, slots: Collection[str]) -> dict[str, int]:
    from chaos.blows import port_of

    return {slot: port_of(world, slot) for slot in slots}


def table(report: Report) -> str:
    lines = [
        "| blow | times | all well again after, median | max | pids kept | violations |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in figures(report):
        median, most = row["converged_median_s"], row["converged_max_s"]
        cells = [row["blow"], row["count"], _s(median), _s(most), row["kept"], row["violations"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _s(seconds: object) -> str:
    return f"{seconds:.2f} s" if isinstance(seconds, float) else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--seed", type=int, metavar="N", help="default: another one each time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it all")
    parser.add_argument("--without", action="append", default=[], metavar="TEXT")
    return parser


if __name__ == "__main__":
    sys.exit(main())
