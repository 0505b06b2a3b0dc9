"""A cluster file that is saved as editors save it, and what the supervisor says of it."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

_POLL = 0.02
_PATIENCE = 300.0
"""Seconds after which an edit counts as never done. Not a measure of speed."""

APPLIED = "is applied"
REFUSED = "the file is not applied"
MENDED = "the file is valid again"

Content = dict[str, Any]
Change = Callable[[Content], None]


@dataclass(frozen=True)
class Saved:
    """When the last write of a save began: seconds since the epoch, and of the monotonic clock."""

    wall: float
    clock: float
    event: int
    """The last event before it."""


class Control:
    """The supervisor's control API."""

    def __init__(self, socket_file: Path) -> None:
        transport = httpx.HTTPTransport(uds=str(socket_file))
        self._session = httpx.Client(transport=transport, base_url="http://supervisor", timeout=60)

    def get(self, path: str, **query: Any) -> Any:
        answer = self._session.get(path, params=query)
        answer.raise_for_status()
        return answer.json()

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/v1/events", after=after)["events"]
        return found

    def pids(self) -> dict[str, int]:
        """The pid in each slot: the second instance of a slot, and the first, have its name."""
        instances = self.get("/v1/status")["instances"]
        return {one["name"].removesuffix(".b"): one["pid"] for one in instances if one["pid"]}

    def await_event(self, saved: Saved, text: str) -> float:
        """Seconds from the save until the supervisor has said ``text`` of its file."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            for event in self.events(saved.event):
                if event["state"] == "file" and text in event["reason"]:
                    return moment(event) - saved.wall
            time.sleep(_POLL)
        raise TimeoutError(f"the supervisor has never said {text!r}")

    def await_settled(self, saved: Saved) -> float:
        """Seconds from the save until all is in service; raises RuntimeError if it cannot be."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            answer = self.get("/v1/settled", timeout=30)
            if answer["failed"]:
                raise RuntimeError("; ".join(answer["failed"]))
            if answer["settled"]:
                return time.monotonic() - saved.clock
        raise TimeoutError("; ".join(answer["under_way"]))


def moment(event: dict[str, Any]) -> float:
    """When it happened, in seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


def longest_farewell(events: list[dict[str, Any]]) -> float:
    """Of all instances that were told to stop: the seconds until the slowest had."""
    told: dict[str, float] = {}
    took = [0.0]
    for event in events:
        name = event["instance"]
        if event["state"] == "stopping":
            told.setdefault(name, moment(event))
        elif event["state"] == "stopped" and name in told:
            took.append(moment(event) - told.pop(name))
    return max(took)


class File:
    """A cluster file that is edited and saved; the last text of it that is valid is kept."""

    def __init__(self, path: Path, control: Control) -> None:
        self._path = path
        self._control = control
        self.content: Content = yaml.safe_load(path.read_text())

    def edit(self, change: Change, *, in_place: bool) -> Saved:
        content = copy.deepcopy(self.content)
        change(content)
        self.content = content
        return self.save(yaml.safe_dump(content, sort_keys=False), in_place=in_place)

    def save(self, text: str, *, in_place: bool) -> Saved:
        """Write it in place, as some editors do, or beside it and rename, as others do."""
        event = self._control.events()[-1]["number"]
        beside = self._path.with_suffix(".new")
        if not in_place:
            beside.write_text(text)
        saved = Saved(time.time(), time.monotonic(), event)
        if in_place:
            self._path.write_text(text)
        else:
            os.replace(beside, self._path)
        return saved

    @property
    def text(self) -> str:
        return self._path.read_text()
