"""A soak: trivial children that end at once, started again and again. The supervisor must not grow.

``python -m chaos.soak --restarts 20000``; the exit status is 1 if memory, descriptors or threads
have grown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, mean

from harness import Cluster

from chaos import control

CHILDREN = 20
_PAUSE = 1.0
"""Seconds between two samples."""
_WARM_UP = 0.4
"""Share of the restarts until the journal is full (2,000 entries), and the heap has its shape."""
_ROOM = 1.0
"""MB that the last third may have more than the first: what a heap breathes."""
_UNDER_WAY = 5
"""Descriptors and threads that it may have more: those of what is just being started or diagnosed.
What leaks grows with every restart."""


@dataclass(frozen=True)
class Sample:
    """Of the supervisor's process, at a moment."""

    seconds: float
    restarts: int
    rss: float
    """MB (10^6 bytes)."""
    descriptors: int
    threads: int


def soak(cluster: Cluster, restarts: int) -> list[Sample]:
    """Samples until there were that many restarts. The cluster is not started yet, and stays up."""
    child = "{command: ['false'], restart: {backoff: 0.1s, backoff_max: 0.1s, jitter: 0}}"
    services = "".join(f"  child-{i}: {child}\n" for i in range(CHILDREN))
    cluster.write(f"logs: {{max_size: 1MiB, keep: 1}}\nservices:\n{services}").up()
    assert cluster.process is not None
    began = time.monotonic()
    samples: list[Sample] = []
    while not samples or samples[-1].restarts < restarts:
        time.sleep(_PAUSE)
        if cluster.process.poll() is not None:
            raise RuntimeError(f"the supervisor has ended: {cluster.output.read_text()[-2000:]}")
        status = control.ask(cluster.run_dir / "control.sock", "/v1/status")
        if status is not None:
            count = sum(one["restarts"] for one in status["instances"])
            samples.append(_sample(cluster.process.pid, time.monotonic() - began, count))
            _tell(samples[-1])
    return samples


def _sample(pid: int, seconds: float, restarts: int) -> Sample:
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    rss = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    descriptors = len(list((folder / "fd").iterdir()))
    return Sample(round(seconds, 1), restarts, rss, descriptors, int(status["Threads"]))


def _tell(sample: Sample) -> None:
    print(
        f"\r{sample.restarts} restarts, {sample.rss:.1f} MB, {sample.descriptors} descriptors",
        end="",
        file=sys.stderr,
        flush=True,
    )


def growth(samples: Sequence[Sample]) -> list[str]:
    """What has grown; nothing, if all is well."""
    first, last = _thirds(samples)
    found = []
    more = mean(one.rss for one in last) - mean(one.rss for one in first)
    if more > _ROOM:
        found.append(f"memory has grown by {more:.1f} MB")
    # Both go up and down with what is just being started: what leaks raises the least as well.
    for what in ("descriptors", "threads"):
        before = min(getattr(one, what) for one in first)
        after = min(getattr(one, what) for one in last)
        if after > before + _UNDER_WAY:
            found.append(f"{what} have grown from {before} to {after}")
    return found


def _thirds(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    warm = [one for one in samples if one.restarts >= samples[-1].restarts * _WARM_UP]
    return warm[: max(1, len(warm) // 3)], warm[-max(1, len(warm) // 3) :]


def table(samples: Sequence[Sample]) -> str:
    first, last = _thirds(samples)
    lines = ["| | first third | last third | slope |", "|---|--:|--:|--:|"]
    for what, unit in (("rss", "MB"), ("descriptors", ""), ("threads", "")):
        parts = [mean(getattr(one, what) for one in part) for part in (first, last)]
        warm = [one for one in samples if one.restarts >= first[0].restarts]
        slope = linear_regression([o.restarts for o in warm], [getattr(o, what) for o in warm])[0]
        shown = [f"{value:.2f} {unit}".strip() for value in parts]
        per = f"{slope * 1000:+.4f} {unit} per 1,000 restarts".replace("  ", " ")
        lines.append(f"| {what} | {' | '.join(shown)} | {per} |")
    end = samples[-1]
    lines += ["", f"{end.restarts} restarts of {CHILDREN} children in {end.seconds:.0f} s"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.soak", description=__doc__)
    parser.add_argument("--restarts", type=int, default=20_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        cluster = Cluster(Path(folder))
        try:
            samples = soak(cluster, arguments.restarts)
        finally:
            cluster.down()
    print(f"\n{table(samples)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in samples], indent=1) + "\n")
    found = growth(samples)
    for what in found:
        print(f"GROWN: {what}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
