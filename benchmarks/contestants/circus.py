"""circus (https://circus.readthedocs.io)."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from contestants.contestant import Contestant
from contestants.installing import python_package

_VERSION = "0.19.0"


class Circus(Contestant):
    program = name = "circus"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return python_package(programs / cls.program, "circus", _VERSION, offline=offline)

    def prepare(self) -> None:
        self._file.write_text(
            f"[circus]\nendpoint = {self._endpoint}\n"
            f"pubsub_endpoint = ipc://{self.folder}/pubsub.sock\n"
            + "".join(_section(name, words) for name, words in self.work.commands.items())
        )

    def command(self) -> list[str]:
        return [self._program("circusd"), str(self._file)]

    def status(self) -> list[str]:
        return self._ctl("status")

    def reload(self) -> list[str]:
        return self._ctl("reloadconfig")

    def adding(self, name: str, command: list[str]) -> Callable[[], None]:
        with self._file.open("a") as file:
            file.write(_section(name, command))
        return lambda: self.run(*self._ctl("reloadconfig"))

    @property
    def _file(self) -> Path:
        return self.folder / "circus.ini"

    @property
    def _endpoint(self) -> str:
        return f"ipc://{self.folder}/circus.sock"

    def _ctl(self, verb: str) -> list[str]:
        # By default it gives up after 5 s, before a thousand processes have answered.
        return [self._program("circusctl"), "--timeout", "60", "--endpoint", self._endpoint, verb]

    def _program(self, name: str) -> str:
        return str(self.programs / self.program / "bin" / name)


def _section(name: str, words: list[str]) -> str:
    # copy_env: else they have no environment at all, not even a PATH.
    return f"[watcher:{name}]\ncmd = {shlex.join(words)}\ncopy_env = True\n"
