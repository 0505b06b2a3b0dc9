"""``add``, ``remove``, ``scale``, ``set``, ``unset``: change the file, and what runs with it.

The new text is validated before it is written, so that the file is never left broken.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from supervisor.cli.client import Client
from supervisor.cli.diff import print_diff
from supervisor.cli.edit_flags import FIELDS
from supervisor.cli.failure import DONE, FAILED, USAGE, Failure
from supervisor.cli.locations import client_run_dir, config_path
from supervisor.cli.settle import wait_until_settled
from supervisor.runtime.rundir import RunDir
from supervisor.runtime.safewrite import WriteError, replace
from supervisor.spec.editing import edit
from supervisor.spec.editing.tree import EditError, NotYaml
from supervisor.spec.editing.values import from_command_line
from supervisor.spec.load import load_text, read_text
from supervisor.spec.paths import looks_local
from supervisor.spec.problems import SpecError

Edit = Callable[[str], str]
_LISTS = ("gpus", "model_names")


def run_add(arguments: argparse.Namespace) -> int:
    base = Path(os.path.abspath(config_path(arguments))).parent

    def add(text: str) -> str:
        return edit.add_worker(text, arguments.name, _fields(arguments, base))

    return _change(arguments, add)


def run_remove(arguments: argparse.Namespace) -> int:
    return _change(arguments, lambda text: edit.remove_service(text, arguments.name))


def run_scale(arguments: argparse.Namespace) -> int:
    def scale(text: str) -> str:
        place = edit.services(text).get(arguments.name)
        if place and place[0] != "workers":
            raise EditError(f"{arguments.name!r} is no worker, and only workers have replicas")
        return edit.set_fields(text, arguments.name, {"replicas": arguments.replicas})

    return _change(arguments, scale)


def run_set(arguments: argparse.Namespace) -> int:
    def set_them(text: str) -> str:
        return edit.set_fields(text, arguments.name, _assignments(arguments.assignments))

    return _change(arguments, set_them)


def run_unset(arguments: argparse.Namespace) -> int:
    return _change(arguments, lambda text: edit.unset_fields(text, arguments.name, arguments.keys))


# ---------------------------------------------------------------- from the command line


def _fields(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Options of a new worker by their names in the file, whose folder is ``base``."""
    fields: dict[str, Any] = {}
    for flag, key in FIELDS.items():
        value = getattr(arguments, flag)
        if value is None or value is False:
            continue
        if key == "model_path":
            value = _from_file(base, value)
        elif key.endswith(".ckpt") and os.path.exists(value):
            value = os.path.abspath(value)  # FastChat reads it, and knows no folder of the file
        elif key in _LISTS:
            parts = [part.strip() for part in value.split(",") if part.strip()]
            value = [int(p) if key == "gpus" and p.isdecimal() else p for p in parts]
        fields[key] = value
    return fields | _assignments(arguments.set or ())


def _from_file(base: Path, text: str) -> str:
    """A folder that is named from here, as it is named from the file's folder."""
    if os.path.isabs(text) or text.startswith("~") or not looks_local(Path.cwd(), text):
        return text
    path = os.path.relpath(text, base)
    return path if path.startswith("..") else os.path.join(".", path)


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise EditError(f"{text!r} has no value; write it as {text}=VALUE")
        found[key.strip()] = from_command_line(value)
    return found


# ---------------------------------------------------------------- the steps of every edit


def _change(arguments: argparse.Namespace, change: Edit) -> int:
    path = config_path(arguments)
    old, new = _texts(path, change)
    if new == old:
        print(f"nothing to change: {path} says so already")
        return DONE
    print_diff(old, new, str(path))
    place = RunDir(client_run_dir(arguments))  # of the file as it was: a supervisor runs that
    client = Client(arguments) if place.owner() else None
    if arguments.dry_run:
        if client:
            _print_plan(client, new)
        return DONE
    if not (arguments.yes or _agreed()):
        print("nothing is written")
        return FAILED
    # Asked before it is written: a supervisor that watches the file may be faster than we are.
    number, services = _prospect(client, new) if client else (0, [])
    try:
        replace(path, old.encode(), new.encode())
    except WriteError as error:
        raise Failure(str(error), FAILED) from None
    if client is None:
        print(f"{path} is written; it takes effect at the next `llm-supervisor up`")
        return DONE
    try:
        client.post("/v1/reload")
    except Failure as failure:
        raise Failure(f"{path} is written, but: {failure}", failure.status) from None
    if arguments.no_wait:
        print(f"{path} is written and taken over; see `llm-supervisor events`")
        return DONE
    return wait_until_settled(client, number, arguments.timeout, services) if services else DONE


def _texts(path: Path, change: Edit) -> tuple[str, str]:
    """The file's text, byte order mark and ends of lines included, and the new one: it is valid."""
    try:
        read_text(path)  # it says better than we could why a file is none
        old = path.read_bytes().decode()
        try:
            new = change(old)
            new.encode()
        except NotYaml:
            load_text(old.removeprefix("\ufeff"), path, os.environ)  # it says in which line
            raise
        if new != old:
            load_text(new.removeprefix("\ufeff"), path, os.environ)
    except SpecError as error:
        raise Failure(str(error), USAGE, prefix=False) from None
    except EditError as error:
        raise Failure(f"{path}: {error}", USAGE) from None
    except UnicodeEncodeError:
        raise Failure("what is to be written is not UTF-8 text", USAGE) from None
    return old, new


def _prospect(client: Client, text: str) -> tuple[int, list[str]]:
    """The number of the last event, and the services that the new text will change."""
    number = client.get("/v1/status")["cluster"]["last_event"]
    changes = client.post("/v1/plan", {"text": text.removeprefix("\ufeff")})["changes"]
    return number, sorted({one["service"] for one in changes if one["action"] != "keep"})


def _print_plan(client: Client, text: str) -> None:
    from supervisor.cli.check import print_plan

    print_plan(client.post("/v1/plan", {"text": text.removeprefix("\ufeff")})["changes"])


def _agreed() -> bool:
    """Only a person is asked; a program that runs this has decided already."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input("Apply? [Y/n] ").strip().lower() in ("", "y", "yes")
    except EOFError:
        print()
        return False
