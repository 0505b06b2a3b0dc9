"""What is wrong with a file, where, and what to do: ``file:line:column: path: message``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath

Path = tuple[str | int, ...]
"""Where a value stands in the file: ``("workers", "vicuna", "gpus", 0)``."""


@dataclass(frozen=True, order=True)
class Problem:
    """One error of a file. Lines and columns count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{place}: {_printable(text)}"


class SpecError(Exception):
    """The file is not usable; ``problems`` holds every reason, in the order of the file.

    ``named`` are files that it names: mending one of them may be what makes it usable.
    """

    def __init__(self, problems: Iterable[Problem], named: Iterable[FilePath] = ()) -> None:
        self.named = tuple(named)
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


def _printable(text: str) -> str:
    """A key or value of the file must not speak to the terminal, nor begin a line of its own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def dotted(path: Path) -> str:
    """``("workers", "a", "gpus", 0)`` -> ``workers.a.gpus[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
