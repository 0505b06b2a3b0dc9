"""A running cluster is edited by saving its file, under a steady traffic: nobody may notice.

A table goes to stdout, progress to stderr; the exit status is 1 if a request failed, a stream was
cut, or an instance that an edit does not concern has not kept its process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine
from clusters import ROOT, Supervised, demo, folder
from machine import load_average
from saving import APPLIED, MENDED, REFUSED, Change, Content, Control, File, Saved, longest_farewell
from traffic import Answer, Traffic

REQUESTS = 2000
CLIENTS = 8
_QUIET = 3.0
"""Seconds of traffic after each edit is in service, and before the first."""
_OLD_KEY, _NEW_KEY = "sk-old", "sk-new"
_MODELS = _OWL, _FOX, _CAT = "tiny-owl", "tiny-fox", "tiny-cat"


# ---------------------------------------------------------------- the story


@dataclass(frozen=True)
class Step:
    """One save, and what may come of it. ``withdraw`` is asked no more just before it."""

    title: str
    change: Change | None
    """None: a file that cannot be read is saved."""
    soon_after: Change | None = None
    """Saved while the first change is still under way."""
    withdraw: str = ""
    offer: str = ""
    """A model that is asked as soon as the edit is in service."""
    key: str = ""
    """Clients use it as soon as the edit is in service."""
    new: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()
    """Slots: what appears, what ends, what gets another process. All others keep theirs."""
    said: str = APPLIED
    in_small: bool = True
    """Also a part of the small form, which is a test."""


def _story() -> list[Step]:
    return [
        Step("add a model", _add_hen, offer="tiny-hen", new=frozenset({"tiny-hen-0"})),
        Step("remove another", _remove_cat, withdraw=_CAT, gone=frozenset({"tiny-cat-0"})),
        Step("scale 1 → 3", _of(_OWL, replicas=3), new=frozenset({"tiny-owl-1", "tiny-owl-2"})),
        Step(
            "roll 2 replicas, with surge",
            _of(_FOX, limit_worker_concurrency=4),
            replaced=frozenset({"tiny-fox-0", "tiny-fox-1"}),
        ),
        Step("scale 3 → 1", _of(_OWL, replicas=1), gone=frozenset({"tiny-owl-1", "tiny-owl-2"})),
        Step("restart the controller", _dispatch, replaced=frozenset({"controller"})),
        Step("change a description", _describe),
        Step("save a broken file", None, said=REFUSED),
        Step("mend it", _nothing, said=MENDED),
        Step(
            "API server: one key more",
            _keys(_OLD_KEY, _NEW_KEY),
            key=_NEW_KEY,
            replaced=frozenset({"api_server"}),
        ),
        Step(
            "API server: the old key goes",
            _keys(_NEW_KEY),
            replaced=frozenset({"api_server"}),
            in_small=False,
        ),
        Step(
            "a model gets a second name",
            _of("tiny-hen", model_names=["tiny-hen", "hen"]),
            offer="hen",
        ),
        Step("its first name goes", _of("tiny-hen", model_names=["hen"]), withdraw="tiny-hen"),
        Step(
            "roll 2 replicas, one after the other",
            _of(_FOX, limit_worker_concurrency=5, rollout="recreate"),
            replaced=frozenset({"tiny-fox-0", "tiny-fox-1"}),
            in_small=False,
        ),
        Step(
            "roll one without another, and again meanwhile",
            _of(_OWL, seed=1),
            soon_after=_of(_OWL, seed=2),
            replaced=frozenset({"tiny-owl-0"}),
            in_small=False,
        ),
    ]


def _first(place: Path) -> Change:
    """The cluster before the first edit. Its models are in ``place``."""

    def first(content: Content) -> None:
        workers: dict[str, Content] = {
            model: {"model_path": str(_talkative(model, place))} for model in _MODELS
        }
        workers[_FOX]["replicas"] = 2
        content["workers"] = workers
        content["api_server"]["api_keys"] = [_OLD_KEY]
        content.pop("services", None)

    return first


def _talkative(model: str, place: Path) -> Path:
    """A copy of a demo model that ends no answer by itself; they know only short ones."""
    copy = shutil.copytree(ROOT / "models" / model, place / model)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**content, "eos_token": content["pad_token"]}))
    return copy


def _add_hen(content: Content) -> None:
    content["workers"]["tiny-hen"] = {"model_path": content["workers"][_OWL]["model_path"]}


def _remove_cat(content: Content) -> None:
    del content["workers"][_CAT]


def _of(service: str, **fields: Any) -> Change:
    return lambda content: content["workers"][service].update(fields)


def _dispatch(content: Content) -> None:
    content["controller"]["dispatch_method"] = "lottery"


def _describe(content: Content) -> None:
    content["workers"][_FOX]["description"] = "quick and brown"


def _nothing(_: Content) -> None:
    pass


def _keys(*keys: str) -> Change:
    return lambda content: content["api_server"].update(api_keys=list(keys))


# ---------------------------------------------------------------- what comes of it


@dataclass
class Phase:
    """From a save to the next. Times are of the monotonic clock."""

    title: str
    began: float
    applied: float | None = None
    """Seconds from the save until the supervisor says that it has acted on it."""
    in_service: float | None = None
    farewell: float = 0.0
    """Seconds that the slowest of those that were told to stop took: it finished its requests."""
    ended: float = 0.0
    surprises: list[str] = field(default_factory=list)
    changed: int = 0
    expected: int = 0
    """Slots that have another process than before, one that is new, or none any more."""
    kept: int = 0
    answers: list[Answer] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        failed = [one for one in self.answers if one.fault]
        return {
            "edit": self.title,
            "applied_s": self.applied,
            "in_service_s": self.in_service,
            "farewell_s": self.farewell,
            "requests": len(self.answers),
            "streamed": sum(one.stream for one in self.answers),
            "during_the_change": self.during,
            "failed": len(failed),
            "cut": sum(one.cut for one in failed),
            "worst_s": self.worst(long=None),
            "worst_short_s": self.worst(long=False),
            "pids_changed": self.changed,
            "pids_to_change": self.expected,
            "pids_kept": self.kept,
            "surprises": self.surprises,
        }

    @property
    def during(self) -> int:
        """Requests that were under way at some moment between the save and its being in service."""
        if self.in_service is None:
            return 0
        end = self.began + self.in_service
        return sum(one.began < end for one in self.answers)

    def worst(self, *, long: bool | None) -> float:
        of = [one.seconds for one in self.answers if long is None or one.long is long]
        return max(of, default=0.0)


@dataclass
class Report:
    phases: list[Phase]
    answers: list[Answer]
    begin: float

    @property
    def failed(self) -> list[Answer]:
        return [one for one in self.answers if one.fault]

    @property
    def surprises(self) -> list[str]:
        return [f"{one.title}: {what}" for one in self.phases for what in one.surprises]

    def attribute(self) -> None:
        """Each request belongs to the phase in which it ended."""
        for phase in self.phases:
            phase.answers = [one for one in self.answers if phase.began <= one.ended < phase.ended]

    def failures(self) -> list[dict[str, Any]]:
        found = []
        for phase in self.phases:
            for one in phase.answers:
                if one.fault:
                    after = {"phase": phase.title, "after_save_s": one.ended - phase.began}
                    found.append({**asdict(one), **after, "seconds": one.seconds})
        return found


class _Play:
    """Plays the story to a cluster that runs under traffic."""

    def __init__(self, cluster: Supervised, traffic: Traffic) -> None:
        self.control = Control(cluster.folder / "run" / "control.sock")
        self.file = File(cluster.file, self.control)
        self.traffic = traffic
        self.models: tuple[str, ...] = _MODELS
        self.key = _OLD_KEY
        self.phases = [Phase("before the first edit", time.monotonic())]

    def quiet(self, seconds: float) -> None:
        time.sleep(seconds)

    def take(self, step: Step, *, in_place: bool) -> None:
        before = self.control.pids()
        if step.withdraw:
            self._offer(*(one for one in self.models if one != step.withdraw))
        saved = self._save(step, in_place=in_place)
        self.phases[-1].ended = saved.clock
        phase = Phase(step.title, saved.clock)
        self.phases.append(phase)
        phase.applied = self.control.await_event(saved, step.said)
        if step.soon_after is not None:
            self.quiet(1.0)
            again = self.file.edit(step.soon_after, in_place=not in_place)
            self.control.await_event(again, APPLIED)
        phase.in_service = self.control.await_settled(saved)
        if step.said == REFUSED:
            phase.in_service = None
        phase.farewell = longest_farewell(self.control.events(saved.event))
        self._compare(phase, step, before, self.control.pids())
        self.key = step.key or self.key
        self._offer(*self.models, *filter(None, [step.offer]))
        print(f"  {step.title}: {phase.in_service or 0:.1f} s", file=sys.stderr, flush=True)

    def finish(self) -> Report:
        self.phases[-1].ended = float("inf")
        return Report(self.phases, [], self.phases[0].began)

    def _offer(self, *models: str) -> None:
        self.models = models
        self.traffic.offer(models, self.key)

    def _save(self, step: Step, *, in_place: bool) -> Saved:
        if step.change is None:
            broken = self.file.text.replace("replicas:", "replicsa:", 1)
            return self.file.save(broken, in_place=in_place)
        return self.file.edit(step.change, in_place=in_place)

    def _compare(
        self, phase: Phase, step: Step, before: dict[str, int], after: dict[str, int]
    ) -> None:
        """Hold what has become of each process against what the edit asks for."""
        phase.expected = len(step.new | step.gone | step.replaced)
        for slot in sorted(before.keys() | after.keys()):
            became = _became(before.get(slot), after.get(slot))
            phase.changed += became != "kept"
            phase.kept += became == "kept"
            asked = next(
                (n for n in ("new", "gone", "replaced") if slot in getattr(step, n)), "kept"
            )
            if became != asked:
                phase.surprises.append(f"{slot} is {became}, not {asked}")


def _became(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "gone"
    return "kept" if before == after else "replaced"


def play(requests: int, clients: int, place: Path, *, small: bool = False) -> Report:
    """The whole story, and traffic until there were that many requests."""
    steps = [step for step in _story() if step.in_small or not small]
    cluster = Supervised(place, demo(_first(place)))
    try:
        cluster.up_and_ready()
        traffic = Traffic(cluster.url, _MODELS, _OLD_KEY)
        with traffic.running(clients):
            report = _played(_Play(cluster, traffic), steps, requests)
    finally:
        cluster.down()
    report.answers = traffic.answers
    report.attribute()
    return report


def _played(story: _Play, steps: Sequence[Step], requests: int) -> Report:
    story.quiet(_QUIET)
    for i, step in enumerate(steps):
        story.take(step, in_place=i % 2 == 0)
        # What is left to ask is spread evenly over what is left of the story.
        share = (i + 1) / len(steps) * requests
        end = time.monotonic() + _QUIET
        while time.monotonic() < end or len(story.traffic.answers) < share:
            story.quiet(0.1)
    return story.finish()


# ---------------------------------------------------------------- showing it


def table(report: Report) -> str:
    lines = [
        "| edit | applied after | in service after | last farewell took | requests (streamed) "
        "| under way meanwhile | failed | cut | worst, short | worst, long "
        "| pids: changed/to change/kept |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in report.phases:
        row = one.as_json()
        cells = [
            one.title,
            "" if one.applied is None else f"{one.applied * 1000:.0f} ms",
            "" if one.in_service is None else f"{one.in_service:.1f} s",
            f"{one.farewell:.1f} s" if one.farewell else "",
            f"{row['requests']} ({row['streamed']})",
            str(one.during or ""),
            str(row["failed"]),
            str(row["cut"]),
            f"{one.worst(long=False):.2f} s",
            f"{one.worst(long=True):.2f} s",
            f"{one.changed}/{one.expected}/{one.kept}" if one.applied is not None else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    answers = report.answers
    streamed = sum(one.stream for one in answers)
    cut = sum(one.cut for one in report.failed)
    total = max(one.ended for one in answers) - report.begin
    lines += [
        "",
        f"{len(answers)} requests ({streamed} streamed) in {total:.0f} s: "
        f"{len(report.failed)} failed, {cut} streams cut; "
        f"{sum(one.kept for one in report.phases)} times an instance was to keep its process, "
        f"{len(report.surprises)} surprises.",
    ]
    return "\n".join(lines)


def _tell_what_went_wrong(report: Report) -> None:
    for one in report.failures():
        print(f"FAILED {json.dumps(one, ensure_ascii=False)}", file=sys.stderr)
    for what in report.surprises:
        print(f"SURPRISE {what}", file=sys.stderr)


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    about, load_before = machine.describe(), load_average()
    with _place(arguments.keep) as place:
        report = play(arguments.requests, arguments.clients, place, small=arguments.small)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"load average {load_before} before, {load_average()} after", end="\n\n")
    print(table(report))
    _tell_what_went_wrong(report)
    if arguments.json:
        content = {
            "machine": about,
            "phases": [one.as_json() for one in report.phases],
            "requests": len(report.answers),
            "streamed": sum(one.stream for one in report.answers),
            "failed": len(report.failed),
            "cut": sum(one.cut for one in report.failed),
            "failures": report.failures(),
            "surprises": report.surprises,
        }
        arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 1 if report.failed or report.surprises else 0


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with folder() as place:
            yield place
    else:
        keep.mkdir(parents=True)
        yield keep


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=REQUESTS, metavar="N", help="at least")
    parser.add_argument("--clients", type=int, default=CLIENTS, metavar="N")
    parser.add_argument("--small", action="store_true", help="not all edits: what the test does")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave the logs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    return parser


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
