"""What a supervisor begins with: the file, and what an earlier one has left running."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.core.instance import InstanceSpec
from supervisor.core.order import StartLimit
from supervisor.daemon import state
from supervisor.daemon.adoption import Adoption, survey
from supervisor.daemon.prepare import prepare, start_limit
from supervisor.runtime import leftovers, tree
from supervisor.runtime.leftovers import Leftover
from supervisor.runtime.rundir import RunDir
from supervisor.runtime.templates import is_template
from supervisor.spec.load import ClusterFile, load
from supervisor.spec.problems import Problem, SpecError


@dataclass(frozen=True)
class Beginning:
    file: ClusterFile
    wanted: dict[str, InstanceSpec]
    """By slot."""
    limit: StartLimit
    adoption: Adoption | None
    """None: nothing is there, this is a first start."""
    problems: tuple[Problem, ...] = ()
    """Why the file is not in force: then what runs goes on as it is until the file is mended."""
    notes: tuple[str, ...] = ()
    """What people should know of it."""

    @property
    def has_processes(self) -> bool:
        """Whether anything runs to go on with."""
        adopted = self.adoption.adopted if self.adoption else []
        return any(tree.born(one.status.pid or 0) == one.status.born for one in adopted)


def begins_with_something(run_dir: RunDir) -> bool:
    """Whether an earlier supervisor has left anything running there."""
    return run_dir.is_ours() and bool(leftovers.find(run_dir.mark))


def begin(
    file: Path, run_dir: RunDir, environ: Mapping[str, str], handed_over: bytes | None
) -> Beginning:
    """``handed_over``: the state, by the program that we were before (``state.write``).

    Raises SpecError if the file, or a port, is no good, unless something runs that goes on all the
    same: a supervisor that comes back must not leave it alone, nor may an upgrade end one.
    """
    found = leftovers.find(run_dir.mark)
    known, notes = _known(run_dir, handed_over, found)
    held = {one.instance: one.port for one in found if one.port is not None}
    for member in known.members:
        if member.status.pid is not None and member.spec.port is not None:
            held[member.name] = member.spec.port
    try:
        read = load(file, environ)
        wanted = prepare(read, run_dir.remembered_ports(), environ, running=held)
    except SpecError as error:
        beginning = _without_file(file, known, found, error, notes)
        if handed_over is None and not beginning.has_processes:
            raise
        return beginning
    known = state.rejoined(known, wanted)
    adoption = _survey(known, found, wanted)
    # Templates end, too, but are no riddle: those of the program before may not have noticed yet.
    riddles = [one for one in adoption.unknown if not is_template(one.instance)]
    if riddles:
        pids = ", ".join(f"{one.instance} (pid {one.pid})" for one in riddles)
        notes.append(f"nobody can say how these were started, so they are ended first: {pids}")
    is_first = not known.members and not found
    limit = start_limit(read.cluster)
    return Beginning(read, wanted, limit, None if is_first else adoption, notes=tuple(notes))


def _without_file(
    path: Path,
    known: state.State,
    found: Sequence[Leftover],
    error: SpecError,
    notes: Sequence[str],
) -> Beginning:
    # The note may be older than what runs; by launch and port it tells all the same what that is.
    noted = {one.spec.slot: one.spec for one in known.members if not one.leaving}
    adoption = _survey(known, found, noted)
    # Who is not known now may be known once the file is mended, by the next supervisor.
    adoption = replace(adoption, unknown=())
    file = ClusterFile.none(path)
    limit = start_limit(file.cluster)
    return Beginning(file, noted, limit, adoption, error.problems, tuple(notes))


def _survey(
    known: state.State, found: Sequence[Leftover], wanted: Mapping[str, InstanceSpec]
) -> Adoption:
    return survey(known, found, wanted, tree.born, now=time.monotonic())


def _known(
    run_dir: RunDir, handed_over: bytes | None, found: Sequence[Leftover]
) -> tuple[state.State, list[str]]:
    """What is known of earlier, and what people should know of that."""
    where = "the state file"
    try:
        if handed_over is not None:
            where = "the state of the program before"
            return state.read(handed_over), []
        content = run_dir.read_state()
        if content is not None:
            return state.read(content), []
        problem = "it is missing"
    except state.Unusable as unusable:
        problem = str(unusable)
    except OSError as error:
        problem = error.strerror or str(error)
    if handed_over is None and problem == "it is missing" and not found:
        return state.State(), []  # a first start, or one after a clean end
    rest = "what still runs is told by its processes themselves" if found else "nothing runs"
    return state.State(), [f"{where} in {run_dir.path} cannot be used: {problem}; {rest}"]
