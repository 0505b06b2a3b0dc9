"""Where the file, the run directory and the logs are: flag, environment, file, default.

Client verbs import no model of the file: that takes longer than all the rest of a `status`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.cli.failure import USAGE, Failure
from supervisor.runtime.rundir import RunDir, default_run_dirs
from supervisor.spec.paths import resolve

if TYPE_CHECKING:
    from supervisor.spec.load import ClusterFile

_LINES = {
    name: re.compile(rf"""^(["']?){name}\1[ \t]*:.*$""", re.MULTILINE)
    for name in ("run_dir", "log_dir")
}


def config_path(arguments: argparse.Namespace) -> Path:
    chosen = arguments.config or os.environ.get("LLM_SUPERVISOR_CONFIG")
    return Path(chosen or "configs/cluster.yaml")


def load_config(arguments: argparse.Namespace) -> ClusterFile:
    """The validated file. Raises Failure with every error of it."""
    from supervisor.spec.load import load
    from supervisor.spec.problems import SpecError

    try:
        return load(config_path(arguments), os.environ)
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None


def print_warnings(file: ClusterFile) -> None:
    for warning in file.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def run_dir(arguments: argparse.Namespace, in_file: str | None) -> Path:
    """``in_file`` is the file's own ``run_dir``.

    If nobody has chosen: the one in which a supervisor of this file runs already, or in which one
    that was killed has left something to go on with, else the first.
    """
    if named := chosen(arguments, in_file, "run_dir"):
        return named
    places = [RunDir(path) for path in default_run_dirs(config_path(arguments), os.environ)]
    ours = [place for place in places if place.is_ours()]
    running = (place for place in ours if place.owner() is not None)
    left = (place for place in ours if place.has_state())
    return next(chain(running, left), places[0]).path


def log_dir(arguments: argparse.Namespace, in_file: str | None) -> Path:
    """``in_file`` is the file's own ``log_dir``."""
    return chosen(arguments, in_file, "log_dir") or Path("logs").absolute()


def client_run_dir(arguments: argparse.Namespace) -> Path:
    """The run directory of a running supervisor; a file that is broken by now is no obstacle."""
    if arguments.run_dir or os.environ.get("LLM_SUPERVISOR_RUN_DIR"):
        return run_dir(arguments, None)
    return run_dir(arguments, _place_in_file(config_path(arguments), "run_dir"))


def client_log_dir(arguments: argparse.Namespace) -> Path:
    """The folder of the logs, likewise."""
    return log_dir(arguments, _place_in_file(config_path(arguments), "log_dir"))


def chosen(arguments: argparse.Namespace, in_file: str | None, name: str) -> Path | None:
    """What flag, environment or file say; None if nobody has chosen."""
    named = getattr(arguments, name) or os.environ.get(f"LLM_SUPERVISOR_{name.upper()}")
    if named:
        return Path(named).absolute()
    return resolve(config_path(arguments).absolute().parent, in_file) if in_file else None


def _place_in_file(path: Path, name: str) -> str | None:
    """Just enough of the file to find one of its places, whatever else is wrong with it."""
    from supervisor.spec.document import parse

    if not path.is_file():  # nor a pipe, which would keep us waiting
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError:
        return None
    values = parse(text, str(path), os.environ).values
    if not isinstance(values, dict):  # not YAML: that line alone may be
        line = _LINES[name].search(text)
        values = parse(line.group(), str(path), os.environ).values if line else None
    chosen = values.get(name) if isinstance(values, dict) else None
    return chosen if isinstance(chosen, str) else None
