"""s6 (https://skarnet.org/software/s6)."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from contestants.installing import Missing, debian_packages
from contestants.runit import OfFolders

_SUPERVISE = Path("/usr/bin/s6-supervise")
"""Where s6-svscan looks for it: compiled in."""
_UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
_PACKAGES = ["s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9"]


class S6(OfFolders):
    program = name = "s6"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        version = debian_packages(programs / cls.program, _PACKAGES, offline=offline)
        if not _SUPERVISE.exists() and subprocess.run([*_UNSHARE, "true"], check=False).returncode:
            raise Missing(
                f"no {_SUPERVISE}, and nothing can be mounted here; install the package s6"
            )
        return version

    def command(self) -> list[str]:
        # -c: by default it takes 500 services.
        scan = [self._program("s6-svscan"), "-c", "4000", str(self._here)]
        if _SUPERVISE.exists():
            return scan
        # For it alone, and for what it starts, its programs are in /usr/bin.
        lower = f"lowerdir={self.programs / self.program}/usr/bin:/usr/bin"
        mount = f"mount -t overlay -o {shlex.quote(lower)} overlay /usr/bin"
        return [*_UNSHARE, "sh", "-c", f"{mount} && exec {shlex.join(scan)}"]

    def environment(self) -> dict[str, str]:
        """It lies where neither its programs nor the loader would look."""
        inherited = super().environment()
        root = self.programs / self.program / "usr"
        library = next((root / "lib").glob("*/libs6.so.*")).parent
        path = f"{root / 'bin'}:{inherited['PATH']}"
        return {**inherited, "PATH": path, "LD_LIBRARY_PATH": str(library)}

    def status(self) -> list[str]:
        each = f'for one in {self._here}/*; do {self._program("s6-svstat")} "$one"; done'
        return ["sh", "-c", each]

    def adding(self, name: str, command: list[str]) -> Callable[[], None] | None:
        link = super().adding(name, command)
        assert link is not None

        def act() -> None:
            link()
            self.run(self._program("s6-svscanctl"), "-a", self._here)

        return act
