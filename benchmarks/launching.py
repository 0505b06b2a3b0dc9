"""From a save of the file to the exec of the process that it asks for, in an idle cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from clusters import ROOT, Supervised
from saving import APPLIED, Change, Content, Control, File

_PATIENCE = 60.0
_TELL = 'echo "$EPOCHREALTIME" > "$0"; '
"""What a process does first, by bash itself: it takes a millisecond or two from the exec."""


def save_to_exec(saves: int, place: Path) -> dict[str, list[float]]:
    """Seconds from just before the last write of each save, by what is added."""
    cluster = Supervised(place, _controller_alone)
    try:
        cluster.up_and_ready()
        control = Control(place / "run" / "control.sock")
        file = File(cluster.file, control)
        found: dict[str, list[float]] = {"written in place": [], "renamed": []}
        for i in range(saves):
            in_place = i % 2 == 0
            took = _one(
                file, control, _add_command(place, f"told-{i}"), place / f"told-{i}", in_place
            )
            found["written in place" if in_place else "renamed"].append(took)
        told = place / "told-worker"
        found["a worker"] = [_one(file, control, _add_worker(place, told), told, False)]
    finally:
        cluster.down()
    return {f"save to exec, {what}": values for what, values in found.items()}


def _one(file: File, control: Control, change: Change, told: Path, in_place: bool) -> float:
    saved = file.edit(change, in_place=in_place)
    end = time.monotonic() + _PATIENCE
    while not (told.exists() and (text := told.read_text().strip())):
        if time.monotonic() > end:
            raise TimeoutError(f"nobody has written {told}")
        time.sleep(0.005)
    control.await_event(saved, APPLIED)
    control.await_settled(saved)
    return float(text) - saved.wall


def _controller_alone(content: Content) -> None:
    content["workers"] = {}
    for name in ("api_server", "services"):
        content.pop(name, None)


def _add_command(place: Path, name: str) -> Change:
    command = ["bash", "-c", _TELL + "exec sleep 3600", str(place / name)]
    return lambda content: content.setdefault("services", {}).update({name: {"command": command}})


def _add_worker(place: Path, told: Path) -> Change:
    """A real one, by an interpreter that says when it begins."""
    python = place / "python"
    python.write_text(f'#!/bin/bash\necho "$EPOCHREALTIME" > {told}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    owl = {"model_path": str(ROOT / "models" / "tiny-owl"), "python": str(python)}
    return lambda content: content.setdefault("workers", {}).update({"tiny-owl": owl})
