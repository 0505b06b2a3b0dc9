"""What people do without a supervisor: Langchain-Chatchat's `llm_api_stale.py`, as a shell script.

Each process is started with nohup; its log is looked through every 5 s until it says that it
serves, and then it is the next one's turn. Nobody starts anything again.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from contestants.contestant import Contestant


class Script(Contestant):
    program = "script"
    name = "nohup and grep"
    restarts = False

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return "as in llm_api_stale.py"

    def prepare(self) -> None:
        self._file.write_text("".join(self._start(name) for name in self._in_order()))

    def command(self) -> list[str]:
        return ["sh", str(self._file)]

    def _in_order(self) -> list[str]:
        """The API server is the last."""
        return sorted(self.work.commands, key=lambda name: name == "api_server")

    def _start(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return (
            f"nohup {shlex.join(self.work.commands[name])} >> {log} 2>&1 &\n"
            f"while [ $(grep -c 'Uvicorn running on' {log}) -eq 0 ]; do sleep 5; done\n"
        )

    @property
    def _file(self) -> Path:
        return self.folder / "start.sh"
