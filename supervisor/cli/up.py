"""``up``: run the cluster, in the foreground or detached."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from supervisor.cli.client import Client
from supervisor.cli.failure import Failure
from supervisor.cli.locations import USAGE, config_path, load_config, log_dir, run_dir
from supervisor.cli.progress import reporter
from supervisor.daemon.journal import Entry
from supervisor.daemon.main import Options, run
from supervisor.runtime.rundir import AlreadyRunning, RunDir, RunDirError
from supervisor.spec.problems import SpecError

_FAILED = 1


def run_up(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    options = Options(
        file=config_path(arguments),
        run_dir=run_dir(arguments, file.cluster.run_dir),
        log_dir=log_dir(arguments, file.cluster.log_dir),
    )
    return _detach(arguments, options) if arguments.detach else _foreground(arguments, options)


# ---------------------------------------------------------------- in the foreground


def _foreground(arguments: argparse.Namespace, options: Options) -> int:
    as_json = arguments.log_format == "json"
    _set_up_logging(as_json=as_json)
    try:
        run(options, os.environ, _print_json if as_json else reporter())
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None
    except AlreadyRunning as error:
        raise Failure(str(error), _FAILED) from None
    except RunDirError as error:
        raise Failure(str(error), USAGE) from None
    return 0


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


def _set_up_logging(*, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    plain = logging.Formatter("%(asctime)s  %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(_JsonLines() if as_json else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


# ---------------------------------------------------------------- detached


def _detach(arguments: argparse.Namespace, options: Options) -> int:
    place = RunDir(options.run_dir)
    owner = place.owner()
    if owner:
        raise Failure(str(AlreadyRunning(place.path, owner)), _FAILED)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    own_log = options.log_dir / "supervisor.log"
    start = own_log.stat().st_size if own_log.exists() else 0
    process = _spawn(arguments, options, own_log)
    arguments.run_dir = str(options.run_dir)
    end = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    if not _answers(arguments, process, end):
        sys.stderr.write(own_log.read_text("utf-8", errors="replace")[start:])
        return process.returncode or _FAILED
    from supervisor.cli.wait import wait_until_ready

    left = None if end is None else max(0.0, end - time.monotonic())
    status = wait_until_ready(Client(arguments), (), left)
    if status == 0:
        print(f"the cluster is ready (supervisor pid {process.pid}, its log is {own_log})")
    process.returncode = status  # it goes on without us; Popen must not mind
    return status


def _spawn(
    arguments: argparse.Namespace, options: Options, own_log: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "supervisor", "up", "--config", str(options.file)]
    command += ["--run-dir", str(options.run_dir), "--log-dir", str(options.log_dir)]
    command += ["--log-format", arguments.log_format]
    with own_log.open("ab") as output:
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
    """Wait until the supervisor answers; False if it has ended, or time is up."""
    while process.poll() is None and (end is None or time.monotonic() < end):
        try:
            Client(arguments).get("/v1/status")
            return True
        except Failure:
            time.sleep(0.05)
    return False
