"""supervisord (https://supervisord.org)."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from contestants.contestant import Contestant
from contestants.installing import python_package

_VERSION = "4.3.0"


class Supervisord(Contestant):
    program = name = "supervisord"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        folder = programs / cls.program
        return python_package(folder, "supervisor", _VERSION, offline=offline)

    def prepare(self) -> None:
        socket = self.folder / "supervisor.sock"
        factory = "supervisor.rpcinterface:make_main_rpcinterface"
        # minfds: by default 1024, which is not enough for a thousand processes.
        self._file.write_text(
            f"[supervisord]\nlogfile={self.folder}/supervisord.log\npidfile={self.folder}/pid\n"
            f"childlogdir={self.folder}\nminfds=8192\n"
            f"[unix_http_server]\nfile={socket}\n"
            f"[supervisorctl]\nserverurl=unix://{socket}\n"
            f"[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory={factory}\n"
            + "".join(_section(name, words) for name, words in self.work.commands.items())
        )

    def command(self) -> list[str]:
        return [self._program("supervisord"), "--nodaemon", "--configuration", str(self._file)]

    def status(self) -> list[str]:
        return self._ctl("status")

    def reload(self) -> list[str]:
        return self._ctl("update")

    def adding(self, name: str, command: list[str]) -> Callable[[], None]:
        with self._file.open("a") as file:
            file.write(_section(name, command))
        return lambda: self.run(*self._ctl("update"))

    @property
    def _file(self) -> Path:
        return self.folder / "supervisord.conf"

    def _ctl(self, verb: str) -> list[str]:
        return [self._program("supervisorctl"), "--configuration", str(self._file), verb]

    def _program(self, name: str) -> str:
        return str(self.programs / self.program / "bin" / name)


def _section(name: str, words: list[str]) -> str:
    return f"[program:{name}]\ncommand={shlex.join(words)}\nautorestart=true\n"
