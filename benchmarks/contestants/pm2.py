"""PM2 (https://pm2.keymetrics.io)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestants.contestant import Contestant
from contestants.installing import npm_package

_VERSION = "7.0.4"


class Pm2(Contestant):
    program = "pm2"
    name = "PM2"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return npm_package(programs / cls.program, "pm2", _VERSION, offline=offline)

    def prepare(self) -> None:
        apps = [_app(name, words) for name, words in self.work.commands.items()]
        self._write("ecosystem.config.json", apps)

    def command(self) -> list[str]:
        return self._pm2("start", str(self.folder / "ecosystem.config.json"))

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PM2_HOME": str(self.folder / "home")}

    def status(self) -> list[str]:
        return self._pm2("list")

    def adding(self, name: str, command: list[str]) -> Callable[[], None]:
        file = self._write(f"{name}.config.json", [_app(name, command)])
        return lambda: self.run(*self._pm2("start", str(file)))

    def _write(self, name: str, apps: list[dict[str, Any]]) -> Path:
        file = self.folder / name
        file.write_text(json.dumps({"apps": apps}))
        return file

    def _pm2(self, *words: str) -> list[str]:
        return [str(self.programs / self.program / "node_modules" / ".bin" / "pm2"), *words]


def _app(name: str, words: list[str]) -> dict[str, Any]:
    return {"name": name, "script": words[0], "args": words[1:], "interpreter": "none"}
