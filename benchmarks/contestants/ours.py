"""llm-supervisor."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from clusters import Supervised
from processes import children, command_line, environment

import supervisor
from contestants.contestant import Contestant, Work


class Ours(Contestant):
    program = "ours"
    name = "llm-supervisor"
    launch: ClassVar[str | None] = None
    """Of all services of FastChat."""

    def __init__(self, folder: Path, programs: Path, work: Work) -> None:
        super().__init__(folder, programs, work)
        self._content = launched(work.content, self.launch)

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return supervisor.__version__

    def prepare(self) -> None:
        self._cluster = Supervised(self.folder, self._content)

    def start(self) -> None:
        self._cluster.up()
        self._process, self.log = self._cluster.process, self._cluster.output

    def await_ready(self) -> None:
        self._cluster.await_answering()
        self._cluster.await_ready()

    @property
    def pid(self) -> int:
        return self._cluster.pid

    def environment(self) -> dict[str, str]:
        return environment()

    def status(self) -> list[str]:
        return self._cluster.command_line("status")

    def reload(self) -> list[str]:
        return self._cluster.command_line("reload")

    def adding(self, name: str, command: list[str]) -> Callable[[], None]:
        self._content.setdefault("services", {})[name] = {"command": command}
        beside = self._cluster.file.with_suffix(".new")
        beside.write_text(yaml.safe_dump(self._content, sort_keys=False))
        return lambda: os.replace(beside, self._cluster.file)

    def pids(self) -> dict[str, int]:
        return self._cluster.pids()

    def own(self, instances: set[int]) -> set[int]:
        """The supervisor and its log writer. What else there is, such as a template that workers
        are forked from, is there for the workers, and counts as theirs.
        """
        pid = self._cluster.pid
        writers = {p for p in children(pid) if any("logwriter.py" in w for w in command_line(p))}
        return {pid, *writers}


class OursWarm(Ours):
    name = "llm-supervisor, warm"
    launch = "warm"


class OursCold(Ours):
    name = "llm-supervisor, cold"
    launch = "cold"


def launched(content: dict[str, Any], launch: str | None) -> dict[str, Any]:
    content = copy.deepcopy(content)
    if launch is not None:
        for service in (content["controller"], content["api_server"], *content["workers"].values()):
            service["launch"] = launch
    return content
