"""Make docs/lifecycle.md: the diagram and the table of an instance's states, from the code itself.

How
    Nothing is drawn by hand. From the first status on, every event that can happen is given to
    ``step()`` in every status that can be reached, for a worker and a command under each restart
    policy. What comes out is what the page shows, so the page cannot disagree with the code.

Usage
    python scripts/make_lifecycle.py            write the page
    python scripts/make_lifecycle.py --check    exit with 1 if it is out of date
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from supervisor.core.diagnosis import CauseClass  # noqa: E402
from supervisor.core.instance import (  # noqa: E402
    Ask,
    InstanceSpec,
    Probe,
    Progress,
    Question,
    RestartPolicy,
    Role,
    Startup,
)
from supervisor.core.lifecycle import (  # noqa: E402
    Adjusted,
    BlockersFound,
    Check,
    DependenciesReady,
    DependentsStopped,
    Diagnosed,
    Drained,
    EnteredRotation,
    Event,
    Exited,
    Hurried,
    Outcome,
    Probed,
    RestartRequested,
    Spawned,
    SpawnFailed,
    Stage,
    StartRequested,
    State,
    Status,
    StopRequested,
    TimerFired,
    step,
)

PAGE = ROOT / "docs" / "lifecycle.md"
Moves = dict[tuple[State, str], set[State]]
"""(state, event) -> the states that it may move to; its own if that means another process."""

_ASK = Question(Ask.STATUS)
_PROBE = Probe(_ASK, interval=1.0, timeout=1.0)
_WORKER = InstanceSpec(
    name="worker",
    service="worker",
    slot="worker",
    role=Role.WORKER,
    kind="model_worker",
    argv=("worker",),
    env=(),
    cwd="/",
    address="http://127.0.0.1:21002",
    port=21002,
    models=("model",),
    gpus=(),
    depends_on=(),
    startup=Startup((_ASK,), interval=1.0, timeout=1.0, deadline=60.0),
    readiness=_PROBE,
    liveness=_PROBE,
    progress=Progress(),
    restart=RestartPolicy(),
    stop_grace=10.0,
    in_rotation=True,
    launch="as at first",
    drain_timeout=60.0,
)
SPECS = (
    *(replace(_WORKER, restart=RestartPolicy(policy)) for policy in ("on_failure", "never")),
    *(replace(_WORKER, restart=RestartPolicy(limit=limit)) for limit in (None, 1)),
    replace(_WORKER, in_rotation=False),
    replace(_WORKER, readiness=None, drain_timeout=0.0),
    replace(_WORKER, in_rotation=False, startup=None, restart=RestartPolicy("on_failure")),
)


def events(status: Status) -> dict[str, Event]:
    """Every event that can happen to an instance in this status, by name."""
    run = status.run
    found: dict[str, Event] = {
        "start requested": StartRequested("asked to start"),
        "stop requested": StopRequested("asked to stop"),
        "restart requested": RestartRequested("asked to restart"),
        "dependencies ready": DependenciesReady(),
        "dependents stopped": DependentsStopped(),
        "hurried": Hurried(),
        "adjusted": Adjusted(replace(_WORKER, readiness=replace(_PROBE, interval=2.0))),
        "diagnosed": Diagnosed(run, "boom", CauseClass.UNKNOWN),
        "diagnosed: hopeless": Diagnosed(run, "no such file", CauseClass.WRONG_CONFIG),
    }
    if status.pid is not None:
        found["exited: 0"] = Exited(run, 0, None)
        found["exited: 1"] = Exited(run, 1, None)
        found["exited: by a signal"] = Exited(run, None, "SIGKILL")
        for check in Check:
            for outcome in Outcome:
                if outcome is Outcome.CONDEMNED and check is not Check.PROGRESS:
                    continue
                found[f"{check} {outcome}"] = Probed(run, check, outcome, "its answer")
    elif status.state in (State.STARTING, State.STOPPING):
        found["spawned"] = Spawned(run, 100 + run)
        found["spawn failed"] = SpawnFailed(run, "no such program", CauseClass.WRONG_CONFIG)
    if status.in_rotation:
        found["entered rotation"] = EnteredRotation(run)
    if status.stage is Stage.DRAIN:
        found["drained"] = Drained(run)
    if status.stage is Stage.KILL:
        found["blockers found"] = BlockersFound(run, "pid 100")
    if status.timer is not None:
        found["timer fired"] = TimerFired(status.timer.epoch)
    return found


def explore(spec: InstanceSpec) -> Iterator[tuple[Status, str, Status]]:
    """Every step from every kind of status that can be reached: (before, event, after)."""
    seen = {_kind(Status())}
    left = [Status()]
    while left:
        before = left.pop()
        for name, event in events(before).items():
            after, _ = step(before, event, spec, now=1.0)
            yield before, name, after
            if _kind(after) not in seen:
                seen.add(_kind(after))
                left.append(after)


def _kind(status: Status) -> object:
    """Two statuses of one kind differ in numbers and words only, which no decision looks at."""
    return replace(
        status,
        reason="",
        stop_reason="",
        detail="",
        last_exit="",
        last_exit_class=None,
        fault="a fault" if status.fault else None,
        run=0,
        epoch=0,
        timer=status.timer and replace(status.timer, epoch=0, at=0.0),
        pid=status.pid and 1,
        restarts=0,
        streak=min(status.streak, 2),
        hopeless=min(status.hopeless, 3),
        misses=min(status.misses, 1),
        dead_misses=min(status.dead_misses, 1),
        fruitless=min(status.fruitless, 1),
    )


def moves() -> Moves:
    found: Moves = defaultdict(set)
    for spec in SPECS:
        for before, name, after in explore(spec):
            moved = after.state is not before.state or after.run != before.run
            found[before.state, name] |= {after.state} if moved else set()
    return found


# ---------------------------------------------------------------- the page


def page(found: Moves) -> str:
    return f"""# The life of an instance

<!-- Made by scripts/make_lifecycle.py from supervisor/core/lifecycle.py. Do not edit. -->

`core.lifecycle.step(status, event, spec, now=…, jitter=…)` is the whole of supervision: it says
what the next status is and what to do about it. Both pictures below are taken from it, by giving
it every event that can happen in every status that can be reached.

## Diagram

```mermaid
{_diagram(found)}
```

## Table

Where each event may move an instance from each state; a dot where it never does. Several states
mean that it depends: on whether the instance is wanted, its restart policy, the failures in a row.
A state that leads to itself means another process. One failure of a probe is shown as enough.
`stopping` has stages: a worker in rotation drains first, until `drained` or its timer; then come
SIGTERM, SIGINT and SIGKILL, each when the timer of the one before has fired.

{_table(found)}

What is late changes nothing: an event of an older process (by its run number), or a timer of an
older epoch.
"""


def _diagram(found: Moves) -> str:
    labels: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, name), after in found.items():
        for other in after:
            labels[state, other].append(name.partition(":")[0])
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED}"]
    for state in State:
        for other in State:
            if (state, other) in labels:
                names = ", ".join(dict.fromkeys(labels[state, other]))
                lines.append(f"    {state} --> {other}: {names}")
    return "\n".join(lines)


def _table(found: Moves) -> str:
    order = [State.STOPPED, State.STARTING, State.READY, State.STOPPING]
    names = dict.fromkeys(name for state in order for at, name in found if at is state)
    rows = [["event", *State], ["---"] * (len(State) + 1)]
    for name in names:
        rows.append([name, *(_cell(found.get((state, name), set())) for state in State)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(after: set[State]) -> str:
    return ", ".join(other for other in State if other in after) or "·"


def main() -> int:
    text = page(moves())
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == text:
        return 0
    print(f"{PAGE} is out of date; run: python scripts/make_lifecycle.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
