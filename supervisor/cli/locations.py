"""Where the file, the run directory and the logs are: flag, environment, file, default.

Client verbs import no model of the file: that takes longer than all the rest of a `status`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.cli.failure import Failure
from supervisor.runtime.rundir import default_run_dir
from supervisor.spec.paths import resolve

if TYPE_CHECKING:
    from supervisor.spec.load import ClusterFile

USAGE = 2


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


def run_dir(arguments: argparse.Namespace, in_file: str | None) -> Path:
    """``in_file`` is the file's own ``run_dir``."""
    chosen = _chosen(arguments, in_file, "run_dir")
    return chosen or default_run_dir(config_path(arguments), os.environ)


def log_dir(arguments: argparse.Namespace, in_file: str | None) -> Path:
    """``in_file`` is the file's own ``log_dir``."""
    return _chosen(arguments, in_file, "log_dir") or Path("logs").absolute()


def client_run_dir(arguments: argparse.Namespace) -> Path:
    """The run directory of a running supervisor; a file that is broken by now is no obstacle."""
    if arguments.run_dir or os.environ.get("LLM_SUPERVISOR_RUN_DIR"):
        return run_dir(arguments, None)
    return run_dir(arguments, _run_dir_in_file(config_path(arguments)))


def _chosen(arguments: argparse.Namespace, in_file: str | None, name: str) -> Path | None:
    chosen = getattr(arguments, name) or os.environ.get(f"LLM_SUPERVISOR_{name.upper()}")
    if chosen:
        return Path(chosen).absolute()
    return resolve(config_path(arguments).absolute().parent, in_file) if in_file else None


def _run_dir_in_file(path: Path) -> str | None:
    """Just enough of the file to find ``run_dir``, whatever else is wrong with it."""
    from supervisor.spec.document import parse

    try:
        values = parse(path.read_text("utf-8-sig"), str(path), os.environ).values
    except (OSError, UnicodeDecodeError):
        return None
    chosen = values.get("run_dir") if isinstance(values, dict) else None
    return chosen if isinstance(chosen, str) else None
