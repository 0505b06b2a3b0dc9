"""The command line: a table of verbs. Each verb lives in a module that is imported when used."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor import __version__
from supervisor.cli.edit_flags import ADD_OPTIONS, EDIT_OPTIONS
from supervisor.cli.failure import FAILED, USAGE, Failure
from supervisor.cli.init_flags import INIT_OPTIONS

_LONGEST = 1e9
"""Seconds, some 30 years: what the kernel's own timeouts can hold."""

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **details: Any) -> Option:
    return names, details


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _LONGEST:  # nor NaN
        what = f"must be a number of seconds, at most {_LONGEST:g}, not {text!r}"
        raise argparse.ArgumentTypeError(what)
    return value


_SERVICES = option("services", nargs="*", metavar="SERVICE", help="services or instances")
_NAME = option("name", metavar="NAME", help="a service or an instance")
_NAMES = option("names", metavar="NAME", nargs="+", help="services or instances")
_JSON = option("--json", action="store_true", help="machine-readable output")
_TIMEOUT = option(
    "--timeout", type=_seconds, default=None, metavar="S", help="give up after S seconds"
)
_NO_WAIT = option("--no-wait", action="store_true", help="do not wait until it is done")
_EDIT = (*EDIT_OPTIONS, _NO_WAIT, _TIMEOUT)
_EDITED = option(
    "name", metavar="NAME", help="a service; `defaults` for that section, `.` for the file's top"
)
_FOLLOW = option("-f", "--follow", action="store_true", help="go on with what comes")


@dataclass(frozen=True)
class Verb:
    """``supervisor.cli.<module>`` has a function ``run_<name>(arguments) -> exit status``."""

    name: str
    module: str
    help: str
    options: Sequence[Option] = field(default=())


VERBS = (
    Verb("init", "init", "write a first cluster file, from flags or questions", INIT_OPTIONS),
    Verb(
        "up",
        "up",
        "start the cluster and keep it up; Ctrl-C stops it",
        (
            option(
                "-d",
                "--detach",
                action="store_true",
                help="run in the background; return once ready",
            ),
            _TIMEOUT,
            option(
                "--log-format",
                choices=("text", "json"),
                default="text",
                help="form of the supervisor's own log",
            ),
        ),
    ),
    Verb("down", "control", "stop everything in order, and the supervisor", (_TIMEOUT, _NO_WAIT)),
    Verb(
        "upgrade",
        "upgrade",
        "have a newly installed version take over, without touching what runs",
        (_TIMEOUT,),
    ),
    Verb("status", "status", "what runs, and how it is", (_JSON,)),
    Verb("wait", "wait", "return when the services (or all) are ready", (_SERVICES, _TIMEOUT)),
    Verb("validate", "check", "check the file; nothing is started", ()),
    Verb("plan", "check", "what a start, or the file as it is now, would do", (_JSON,)),
    Verb(
        "add",
        "edit",
        "add a model worker to the file and start it",
        (option("name", metavar="NAME", help="name of the new worker"), *ADD_OPTIONS, *_EDIT),
    ),
    Verb(
        "remove",
        "edit",
        "remove a service from the file and stop it",
        (option("name", metavar="NAME", help="a service of the file"), *_EDIT),
    ),
    Verb(
        "scale",
        "edit",
        "change a worker's replicas, in the file and in what runs",
        (
            option("name", metavar="NAME", help="a worker of the file"),
            option("replicas", type=int, metavar="N", help="how many"),
            *_EDIT,
        ),
    ),
    Verb(
        "set",
        "edit",
        "set options of a service, in the file and in what runs",
        (
            _EDITED,
            option(
                "assignments",
                metavar="KEY=VALUE",
                nargs="+",
                help="as replicas=2, gpus=[0,1], gptq.wbits=4, env.FOO=bar",
            ),
            *_EDIT,
        ),
    ),
    Verb(
        "unset",
        "edit",
        "take options of a service out of the file",
        (
            _EDITED,
            option("keys", metavar="KEY", nargs="+", help="as replicas, gptq, env.FOO"),
            *_EDIT,
        ),
    ),
    Verb(
        "reload",
        "reload",
        "apply the file as it is now; try again what could not be started",
        (_TIMEOUT, _NO_WAIT),
    ),
    Verb("start", "control", "start what was stopped or has failed", (_NAMES, _TIMEOUT, _NO_WAIT)),
    Verb("stop", "control", "stop, until started again", (_NAMES, _TIMEOUT, _NO_WAIT)),
    Verb("restart", "control", "stop and start again", (_NAMES, _TIMEOUT, _NO_WAIT)),
    Verb(
        "logs",
        "logs",
        "what an instance has written",
        (
            _NAME,
            _FOLLOW,
            option("-n", "--lines", type=int, default=100, metavar="N", help="last N lines"),
        ),
    ),
    Verb("events", "events", "what has happened", (_FOLLOW, _JSON)),
    Verb("why", "why", "explain the state of a service or instance", (_NAME, _JSON)),
    Verb(
        "systemd",
        "systemd",
        "print a systemd unit that keeps this cluster up, or install it",
        (
            option("--install", action="store_true", help="write it where systemd looks for it"),
            option("--user", action="store_true", help="for your own service manager"),
            option("--run-as", metavar="USER", help="who it runs as; default: you"),
        ),
    ),
    Verb("schema", "check", "print the JSON schema of the cluster file", ()),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status. Whatever happens outside of us becomes a sentence."""
    _mend_streams()
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except Failure as failure:
        _say(f"llm-supervisor: {failure}" if failure.prefix else str(failure))
        return failure.status
    except BrokenPipeError:  # the reader has seen enough (`| head`)
        return FAILED
    except OSError as error:
        _say(f"llm-supervisor: {_explain(error)}")
        return FAILED
    except KeyboardInterrupt:
        return 130
    finally:
        _let_go_of_output()


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as ended:  # help, version, wrong usage
        return ended.code if isinstance(ended.code, int) else USAGE
    verb = next(verb for verb in VERBS if verb.name == arguments.verb)
    if verb.name == "up":
        # They would end a supervisor that does not handle them yet (`daemon/main.py` does, when it
        # can): to be told too early to read its file again is no reason to die.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR2))
        gc.disable()  # imports make no garbage, and looking for some takes a tenth of their time
    module = importlib.import_module(f"supervisor.cli.{verb.module}")
    return int(getattr(module, f"run_{verb.name}")(arguments))


def _mend_streams() -> None:
    """Open those that were closed (`>&-`): the next file opened would become our output. And rather
    escape what they cannot show than fail."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_output() -> None:
    """Python must not complain when it flushes, at exit, what could not be written."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _explain(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.filename is not None:
        return f"{what}: {error.filename}"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current folder has been removed; go to another one"
    return what


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-supervisor",
        description="One YAML file to an answering FastChat cluster.",
        epilog="exit status: 0 done, 1 it failed, 2 wrong usage or invalid file, "
        "3 no supervisor is running",
    )
    parser.add_argument("--version", action="version", version=f"llm-supervisor {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    places = _places()
    for verb in VERBS:
        one = verbs.add_parser(
            verb.name, help=verb.help, description=verb.help, parents=[places], allow_abbrev=False
        )
        for names, details in verb.options:
            one.add_argument(*names, **details)
    return parser


def _places() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("where things are")
    group.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="cluster file (LLM_SUPERVISOR_CONFIG; default configs/cluster.yaml)",
    )
    group.add_argument(
        "--run-dir", metavar="DIR", help="control socket and state (LLM_SUPERVISOR_RUN_DIR)"
    )
    group.add_argument("--log-dir", metavar="DIR", help="log files (LLM_SUPERVISOR_LOG_DIR)")
    return parser
