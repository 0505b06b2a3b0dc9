"""``systemd``: a unit that keeps the cluster up, printed or installed."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shutil
import stat
import sys
from pathlib import Path

from supervisor.cli.failure import DONE, FAILED, USAGE, Failure
from supervisor.cli.locations import chosen, config_path, load_config
from supervisor.cli.unit import Unit, text_of
from supervisor.runtime.rundir import default_run_dirs
from supervisor.spec.load import ClusterFile, load
from supervisor.spec.problems import SpecError

_HOMES = ("/home", "/root", "/run/user")


def run_systemd(arguments: argparse.Namespace) -> int:
    file = load_config(arguments)
    if arguments.user and arguments.run_as:
        raise Failure("a unit of your own service manager (--user) runs as you: no --run-as", USAGE)
    account = _account(arguments)
    unit = _unit(arguments, file, account)
    _check_as_service(file, unit, account)
    for needed in (sys.executable, str(unit.file)):
        if folder := _closed_to(account, needed):
            print(
                f"{account.pw_name} may not look into {folder}, and so not use {needed}; "
                "open it, or put that elsewhere",
                file=sys.stderr,
            )
    if not arguments.install:
        sys.stdout.write(text_of(unit))
        return DONE
    path = _folder(arguments, account) / unit.name
    _write(path, unit)
    scope = "systemctl --user" if arguments.user else "systemctl"
    print(f"{path} is written. Now:")
    print(f"  {scope} daemon-reload")
    print(f"  {scope} enable --now {unit.name}")
    if arguments.user:
        print("  loginctl enable-linger    # or it runs only while you are logged in")
    return DONE


def _unit(arguments: argparse.Namespace, file: ClusterFile, account: pwd.struct_passwd) -> Unit:
    path = Path(os.path.abspath(config_path(arguments)))
    # Where the commands look for it by themselves.
    place = default_run_dirs(path, {})[0].name
    return Unit(
        name=f"llm-supervisor-{re.sub(r'[^A-Za-z0-9_.-]', '-', path.stem)}.service",
        python=sys.executable,
        file=path,
        run_dir=chosen(arguments, file.cluster.run_dir, "run_dir"),
        log_dir=chosen(arguments, file.cluster.log_dir, "log_dir"),
        place=f"llm-supervisor/{place}",
        user=None if arguments.user else account.pw_name,
        modprobe=None if arguments.user else shutil.which("nvidia-modprobe"),
        needs_home=_needs_home(file, account),
    )


def _account(arguments: argparse.Namespace) -> pwd.struct_passwd:
    """Who it runs as: who is named, else who runs this, also through sudo."""
    behind_sudo = os.environ.get("SUDO_USER") if os.geteuid() == 0 and not arguments.user else None
    name = arguments.run_as or behind_sudo
    try:
        return pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        who = f"named {name}" if name else f"with the number {os.geteuid()}"
        raise Failure(f"there is no user {who}; create one, or name another", USAGE) from None


def _closed_to(account: pwd.struct_passwd, path: str) -> Path | None:
    """A folder that keeps somebody from a file, as far as its mode says."""
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    for one in {path, os.path.realpath(path)} if account.pw_uid else ():
        for folder in reversed(Path(one).parents):
            found = folder.stat()
            if found.st_uid == account.pw_uid:
                bit = stat.S_IXUSR
            else:
                bit = stat.S_IXGRP if found.st_gid in groups else stat.S_IXOTH
            if not found.st_mode & bit:
                return folder
    return None


def _needs_home(file: ClusterFile, account: pwd.struct_passwd) -> bool:
    """Whether what it runs, reads or writes may be in somebody's home."""
    folders = [sys.prefix, sys.base_prefix, str(file.base), account.pw_dir]
    within = any(Path(one).is_relative_to(home) for one in folders for home in _HOMES)
    return within or any(word in file.text for word in ("~", "/home", "/root"))


def _check_as_service(file: ClusterFile, unit: Unit, account: pwd.struct_passwd) -> None:
    """A service has not the environment of a shell. Raises Failure if the file needs it."""
    environ = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    environ |= {"PATH": os.defpath, "LANG": "C.UTF-8", "SHELL": account.pw_shell}
    try:
        environ |= _variables(unit.environment)
        load(file.path, environ)
    except SpecError as error:
        raise Failure(
            f"{error}\nA service does not have your shell's variables: write those that the file "
            f"expands into {unit.environment}, a line NAME=value each (mode 0600)",
            USAGE,
            prefix=False,
        ) from None
    except OSError as error:
        text = f"cannot read {unit.environment}: {error.strerror}; run it as a user who may"
        raise Failure(text, USAGE) from None


def _variables(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as stream:
        found = dotenv_values(stream=stream, interpolate=False)
    return {name: value or "" for name, value in found.items()}


def _folder(arguments: argparse.Namespace, account: pwd.struct_passwd) -> Path:
    if not arguments.user:
        return Path("/etc/systemd/system")
    config = os.environ.get("XDG_CONFIG_HOME") or Path(account.pw_dir, ".config")
    return Path(config, "systemd", "user")


def _write(path: Path, unit: Unit) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and f" {unit.file};" not in path.read_text("utf-8", errors="replace"):
            text = f"{path} is the unit of another cluster file; give one of the two another name"
            raise Failure(text, FAILED)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text_of(unit), "utf-8")
        os.replace(new, path)
    except OSError as error:
        raise Failure(
            f"cannot write {path}: {error.strerror}; run it with sudo, "
            "or make a unit of your own with --user",
            FAILED,
        ) from None
