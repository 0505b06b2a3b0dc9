"""The difference between two texts of a file, as people know it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator

from supervisor.spec.masking import masked

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def print_diff(old: str, new: str, name: str) -> None:
    """Coloured on a terminal."""
    lines = list(_lines(old, new, name))
    if not sys.stdout.isatty():
        print("\n".join(lines))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for text in lines:
        colour = "bold" if text.startswith(("---", "+++")) else _COLOURS.get(text[:1])
        console.print(text, style=colour, markup=False)


def _lines(old: str, new: str, name: str) -> Iterator[str]:
    """Lines end at a line feed only; what else ends one to Python is shown as it is. Secrets are
    not: diffs end up in the logs of whoever runs us."""
    shown = (masked(old), masked(new))
    before, after = (text.removesuffix("\n").split("\n") if text else [] for text in shown)
    for line in difflib.unified_diff(before, after, name, f"{name} (new)", lineterm=""):
        yield line.rstrip("\r")
