"""Other programs, each from its package into a folder of its own; the machine stays as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_INSTALLED = ".installed"
"""In the folder of a program: what was installed, and its version."""


class Missing(Exception):
    """A program that cannot be had here, with the reason."""


def python_package(folder: Path, package: str, version: str, *, offline: bool) -> str:
    """Into a virtual environment."""

    def install() -> str:
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", f"{package}=={version}"])
        return version

    return _once(folder, f"{package}=={version}", install, offline=offline)


def npm_package(folder: Path, package: str, version: str, *, offline: bool) -> str:
    def install() -> str:
        _need("npm", "install Node.js")
        (folder / "package.json").write_text(json.dumps({"private": True}))
        _run(["npm", "install", "--no-fund", "--no-audit", f"{package}@{version}"], folder)
        return version

    return _once(folder, f"{package}@{version}", install, offline=offline)


def debian_packages(folder: Path, packages: Sequence[str], *, offline: bool) -> str:
    """Unpacked, not installed. The version is that of the first."""

    def install() -> str:
        for program in ("apt-get", "dpkg-deb"):
            _need(program, f"this is for Debian; elsewhere unpack {packages[0]} into {folder}")
        _run(["apt-get", "download", *packages], folder)
        files = {package: next(folder.glob(f"{package}_*.deb")) for package in packages}
        for file in files.values():
            _run(["dpkg-deb", "-x", str(file), str(folder)])
        return files[packages[0]].name.split("_")[1]

    return _once(folder, " ".join(packages), install, offline=offline)


def _once(folder: Path, what: str, install: Callable[[], str], *, offline: bool) -> str:
    """The version that was installed, now or before."""
    done = folder / _INSTALLED
    if done.exists() and (said := json.loads(done.read_text()))["what"] == what:
        return str(said["version"])
    if offline:
        raise Missing("it is not installed; `make bench` does that")
    print(f"installing {what} into {folder} …", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    version = install()
    done.write_text(json.dumps({"what": what, "version": version}))
    return version


def _need(program: str, remedy: str) -> None:
    if not shutil.which(program):
        raise Missing(f"there is no {program} here: {remedy}")


def _run(words: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["without a word"]
        raise Missing(f"`{' '.join(words[:4])} …` ended with {done.returncode}: {said[-1]}")
