"""The floor: a loop that starts all at once, and again what ends. It does nothing else.

Each process has a session of its own, as ours have: a kernel that groups processes by session would
else give all of these together no more time than one of somebody else's.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from contestants.contestant import Contestant

_LOOP = """
import json, os, sys
commands = json.load(open(sys.argv[1]))
def start(words):
    return os.posix_spawn(words[0], words, os.environ, setsid=True)
running = {start(words): words for words in commands}
while True:
    words = running.pop(os.wait()[0])
    running[start(words)] = words
"""


class Bare(Contestant):
    program = "bare"
    name = "bare fork+exec"

    @classmethod
    def install(cls, programs: Path, *, offline: bool) -> str:
        return f"Python {platform.python_version()}"

    def prepare(self) -> None:
        self._file.write_text(json.dumps(list(self.work.commands.values())))

    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", _LOOP, str(self._file)]

    @property
    def _file(self) -> Path:
        return self.folder / "commands.json"
