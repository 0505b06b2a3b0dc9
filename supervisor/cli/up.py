"""``up``: run the cluster, in the foreground or detached."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TextIO

from supervisor.cli import journald
from supervisor.cli.failure import DONE, FAILED, USAGE, Failure
from supervisor.cli.locations import (
    client_log_dir,
    client_run_dir,
    config_path,
    load_config,
    log_dir,
    print_warnings,
    run_dir,
)
from supervisor.cli.progress import reporter
from supervisor.daemon import upgrade
from supervisor.daemon.beginning import begins_with_something
from supervisor.daemon.journal import Entry
from supervisor.daemon.main import Options, run
from supervisor.runtime.rundir import AlreadyRunning, RunDir, RunDirError
from supervisor.spec.problems import SpecError


def run_up(arguments: argparse.Namespace) -> int:
    try:
        options = _options(arguments)
        return _detach(arguments, options) if arguments.detach else _foreground(arguments, options)
    except Failure as failure:
        if not journald.is_our_output(os.environ):
            raise
        text = journald.lines(journald.ERROR, str(failure))
        raise Failure(text, failure.status, prefix=False) from None


def _options(arguments: argparse.Namespace) -> Options:
    path = config_path(arguments)
    try:
        file = load_config(arguments)
    except Failure:
        # A supervisor that was killed may have left something running, which must not be left
        # alone because the file is being edited. Where that is can be read all the same.
        place = client_run_dir(arguments)
        if not (upgrade.is_under_way(os.environ) or begins_with_something(RunDir(place))):
            raise
        return Options(path, place, client_log_dir(arguments))
    print_warnings(file)
    return Options(
        file=path,
        run_dir=run_dir(arguments, file.cluster.run_dir),
        log_dir=log_dir(arguments, file.cluster.log_dir),
    )


# ---------------------------------------------------------------- in the foreground


def _foreground(arguments: argparse.Namespace, options: Options) -> int:
    listener = _set_up_output(arguments.log_format)
    try:
        run(options, os.environ, listener)
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None
    except AlreadyRunning as error:
        raise Failure(str(error), FAILED) from None
    except RunDirError as error:
        raise Failure(str(error), USAGE) from None
    return DONE


def _set_up_output(log_format: str) -> Callable[[Entry], None]:
    """Who is told of each entry of the journal."""
    if log_format == "json":
        _set_up_logging(sys.stdout, _JsonLines())
        return _print_json
    if journald.is_our_output(os.environ):
        _set_up_logging(sys.stdout, journald.Formatter())
        faulthandler.enable()  # the watchdog's SIGABRT shows where we hang
        return journald.print_entry
    plain = logging.Formatter("%(asctime)s  %(levelname)s %(message)s", "%H:%M:%S")
    _set_up_logging(sys.stderr, plain)
    return reporter()


def _print_json(entry: Entry) -> None:
    moment = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
    record = {
        "time": moment,
        "level": "info",
        "instance": entry.instance,
        "state": entry.state,
        "reason": entry.reason,
        "pid": entry.pid,
    }
    print(json.dumps(record, ensure_ascii=False), flush=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _set_up_logging(stream: TextIO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.raiseExceptions = False  # a full disk behind our output is no reason for a traceback
    logging.basicConfig(level=logging.INFO, handlers=[handler])


# ---------------------------------------------------------------- detached


def _detach(arguments: argparse.Namespace, options: Options) -> int:
    place = RunDir(options.run_dir)
    owner = place.owner()
    if owner:
        raise Failure(str(AlreadyRunning(place.path, owner)), FAILED)
    own_log = options.log_dir / "supervisor.log"
    try:
        options.log_dir.mkdir(parents=True, exist_ok=True)
        output = own_log.open("ab")
    except OSError as error:
        text = f"cannot write logs: {error.strerror}: {error.filename}"
        raise Failure(f"{text}; name a folder with --log-dir", USAGE) from None
    with output:
        start = output.tell()
        process = _spawn(arguments, options, output)
    arguments.run_dir = str(options.run_dir)
    end = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    try:
        return _await_ready(arguments, process, own_log, start, end)
    finally:
        process.returncode = process.returncode or 0  # it goes on without us; Popen must not mind


def _await_ready(
    arguments: argparse.Namespace,
    process: subprocess.Popen[bytes],
    own_log: Path,
    start: int,
    end: float | None,
) -> int:
    """``start`` is where the supervisor's own words begin in its log."""
    ready = False
    if _answers(arguments, process, end):
        from supervisor.cli.client import Client
        from supervisor.cli.wait import wait_until_ready

        left = None if end is None else max(0.0, end - time.monotonic())
        ready = wait_until_ready(Client(arguments), (), left) == DONE
    elif process.poll() is not None:
        words = own_log.read_bytes()[start:].decode(errors="replace")
        sys.stderr.write(words)
        return process.returncode if process.returncode > 0 else FAILED
    if not ready:
        over = end is not None and time.monotonic() >= end
        raise Failure(
            f"not ready{f' after {arguments.timeout:g} s' if over else ''}; the supervisor "
            f"(pid {process.pid}) goes on: see `llm-supervisor status`, "
            "or stop it with `llm-supervisor down`",
            FAILED,
        )
    print(f"the cluster is ready (supervisor pid {process.pid}, its log is {own_log})")
    return DONE


def _spawn(
    arguments: argparse.Namespace, options: Options, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "supervisor", "up", "--config", str(options.file)]
    command += ["--run-dir", str(options.run_dir), "--log-dir", str(options.log_dir)]
    command += ["--log-format", arguments.log_format]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _answers(
    arguments: argparse.Namespace, process: subprocess.Popen[bytes], end: float | None
) -> bool:
    """Wait until this supervisor answers; False if it has ended, or time is up.

    Another one that was started at the same moment may answer in its place: that is not ours, which
    is about to end and to say so.
    """
    from supervisor.cli.client import Client

    while process.poll() is None and (end is None or time.monotonic() < end):
        try:
            if Client(arguments).get("/v1/status")["cluster"]["pid"] == process.pid:
                return True
        except Failure:
            pass
        time.sleep(0.05)
    return False
