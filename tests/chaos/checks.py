"""What must be so after every blow, and what at the end of it all."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.processes import Process, below
from chaos.world import World

_POLL = 0.02
_LINE = re.compile(rb"(\S+) (\d+\.\d+) #(\d+);")
_LOSS = re.compile(rb"llm-supervisor: (\d+) bytes of output lost")


@dataclass(frozen=True)
class Settled:
    """Which process serves in each slot, and how long it took until that was so."""

    pids: Mapping[str, int]
    seconds: float


def converge(world: World, bound: float) -> Settled | None:
    """Wait until what runs is what should run, to the last process; None if it never is."""
    began = time.monotonic()
    why = "nothing was asked"
    while time.monotonic() - began < bound:
        world.look_after_supervisor()
        status = world.status()
        found = world.processes()
        if world.form.one_leader:
            _no_two_leaders(world, found)
        why = _difference(world, status)
        if not why:
            pids = _pids(status)
            why = _misplaced(world, pids, found)
            if not why:
                return Settled(pids, time.monotonic() - began)
        time.sleep(_POLL)
    world.violate(f"not converged within {bound:g} s: {why}" + "".join(_tell(world)))
    return None


def _tell(world: World) -> Iterator[str]:
    for line in world.events(12):
        yield f"\n      {line}"
    for line in world.output.read_text(errors="replace").splitlines()[-12:]:
        yield f"\n      up.log: {line}"


def slot_of(name: str) -> str:
    return name.removesuffix(".b")


def _difference(world: World, status: Any) -> str:
    """Between what is said to run and what should run; nothing if there is none."""
    if status is None:
        return "the supervisor does not answer"
    cluster = status["cluster"]
    if cluster["pid"] != world.supervisor:
        return f"pid {cluster['pid']} answers in place of the supervisor"
    if bool(cluster["problems"]) != world.broken:
        return f"what it says of the file: {cluster['problems']}"
    there = [slot_of(one["name"]) for one in status["instances"]]
    wanted = world.slots
    if sorted(there) != sorted(wanted):
        return f"there are {sorted(there)} in place of {sorted(wanted)}"
    for one in status["instances"]:
        state = "stopped" if slot_of(one["name"]) in world.stopped else "ready"
        if one["state"] != state:
            return f"{one['name']} is {one['state']} and not {state}: {one['reason']}"
    if cluster["state"] != "ready" or cluster["under_way"] or cluster["failed"]:
        return f"the cluster is {cluster['state']}: {cluster['under_way']} {cluster['failed']}"
    return ""


def _pids(status: Any) -> dict[str, int]:
    return {slot_of(one["name"]): one["pid"] for one in status["instances"] if one["pid"]}


def _misplaced(world: World, pids: Mapping[str, int], found: list[Process]) -> str:
    """Processes that belong to nothing that runs, and instances that have none; or nothing."""
    writers = [one for one in found if one.is_log_writer]
    if len(writers) != 1:
        return f"log writers: {', '.join(map(str, writers)) or 'none'}"
    trees = {pid for leader in pids.values() for pid in below(leader, found)}
    missing = sorted(set(pids.values()) - {one.pid for one in found})
    if missing:
        return f"said to run, but gone: {missing}"
    leaders = set(pids.values())
    made_for = {one.pid: one.generation for one in found}
    for slot, generation in world.form.generations(world.content).items():
        if slot in pids and made_for[pids[slot]] != generation:
            return f"{slot} (pid {pids[slot]}) is of an older file"
    others = [
        one
        for one in found
        if one.pid not in trees
        and one.pid != world.supervisor
        and not one.is_log_writer
        and not (one.is_template and one.parent == world.supervisor)
        and one.stray_of not in leaders
    ]
    return f"belong to nobody: {', '.join(map(str, others))}" if others else ""


def kept(world: World, before: Settled, after: Settled, touched: Collection[str]) -> int:
    """Those that nobody has touched have their process still; how many these are."""
    untouched = (before.pids.keys() & after.pids.keys()) - set(touched)
    for slot in sorted(untouched):
        old, new = before.pids[slot], after.pids[slot]
        if old != new:
            world.violate(f"{slot} has lost its process {old} (now {new}); nobody had touched it")
    return len(untouched)


def _no_two_leaders(world: World, found: list[Process]) -> None:
    marks = {one.pid: one.instance for one in found}
    leaders = [
        one
        for one in found
        if one.instance and not one.is_template and marks.get(one.parent) != one.instance
    ]
    for name, count in Counter(one.instance for one in leaders).items():
        if count > 1:
            world.violate(f"{count} processes of {name}: {', '.join(map(str, leaders))}")


def no_duplicates(world: World) -> None:
    for told in sorted((world.folder / "duplicates").iterdir()):
        world.violate(f"a duplicate of {told.name.partition('.')[0]}: {told.read_text()}")
        told.unlink()


def successions(world: World) -> list[float]:
    """Seconds from each kill that a supervisor could see until the successor ran its first line."""
    births = defaultdict(list)
    for page in (world.folder / "diary").iterdir():
        name, _, born = page.name.partition(".")
        births[name].append(int(born.partition(".")[2]) / 1e9)
    found = []
    for hit in world.hits:
        later = [born for born in births[hit.slot] if born > hit.at]
        if hit.supervised and not hit.sick and later:
            found.append(min(later) - hit.at)
    return found


# ---------------------------------------------------------------- logs, at the end


@dataclass
class LogsFound:
    """How many lines were written, and how many of them were lost and admitted to be."""

    written: int = 0
    admitted: int = 0


def logs(world: World) -> LogsFound:
    """Every line that a fake has written is in its log once, in order, or its loss is admitted."""
    found = LogsFound()
    written = _written(world.folder / "diary")
    for log in sorted({f"{name}.log" for name, _ in written}):
        _check_log(world, log, written, found)
    return found


def _written(diary: Path) -> dict[tuple[str, str], int]:
    """By instance and process, as these have noted it themselves."""
    counts = {}
    for page in diary.iterdir():
        name, _, born = page.name.partition(".")
        counts[name, born] = int.from_bytes(page.read_bytes(), "little")
    return counts


def _check_log(
    world: World, log: str, written: Mapping[tuple[str, str], int], found: LogsFound
) -> None:
    seen: dict[tuple[str, str], int] = {}
    missing = admitted = 0
    holes: list[str] = []
    for line in _lines(world.log_dir / log):
        if loss := _LOSS.match(line):
            admitted += int(loss[1])
        elif match := _LINE.fullmatch(line):
            key, number = (match[1].decode(), match[2].decode()), int(match[3])
            last = seen.get(key, 0)
            if number <= last:
                world.violate(f"{log}: line {number} of {key[1]} comes after line {last}")
            elif number > last + 1:
                holes.append(f"{last + 1}-{number - 1} of {key[1]}")
                missing += number - last - 1
            seen[key] = number
    for (name, born), count in written.items():
        if f"{name}.log" != log:
            continue
        found.written += count
        last = seen.get((name, born), 0)
        if last > count + 1:  # the last one may have been written, and not noted yet
            world.violate(f"{log}: {born} has written {count} lines, and {last} are in the log")
        elif last < count:
            holes.append(f"{last + 1}-{count} of {born}, at its end")
            missing += count - last
    found.admitted += missing if admitted else 0
    if any(hit.unread and log in (f"{hit.slot}.log", f"{hit.slot}.b.log") for hit in world.hits):
        admitted = admitted or missing
    if missing and not admitted:
        world.violate(f"{log}: {missing} lines are lost: {'; '.join(holes[:5])}")


def _lines(log: Path) -> Iterator[bytes]:
    numbers = [int(one.name.rpartition(".")[2]) for one in log.parent.glob(f"{log.name}.*")]
    for path in [*(log.with_name(f"{log.name}.{n}") for n in sorted(numbers, reverse=True)), log]:
        if path.exists():
            yield from path.read_bytes().split(b"\n")
