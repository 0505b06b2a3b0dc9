"""The difference between two texts of a file, as people know it."""

from __future__ import annotations

import sys

from supervisor.spec.masking import masked_diff

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def print_diff(old: str, new: str, name: str) -> None:
    """Coloured on a terminal, and without secrets: it may end up in the logs of who runs us."""
    lines = masked_diff(old, new, name)
    if not sys.stdout.isatty():
        print("\n".join(lines))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for text in lines:
        colour = "bold" if text.startswith(("---", "+++")) else _COLOURS.get(text[:1])
        console.print(text, style=colour, markup=False)
