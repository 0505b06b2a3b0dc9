"""What ``up`` prints: a line for everything that happens, and on a terminal what it waits for."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

from supervisor.daemon.journal import Entry

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def reporter() -> Lines:
    return Lines() if not sys.stdout.isatty() else Live()


class Lines:
    """Plain lines, for files and pipes."""

    def __call__(self, entry: Entry) -> None:
        print(_line(entry), flush=True)


class Live(Lines):
    """Besides the lines, one with a clock for each instance that is still starting."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, entry: Entry) -> None:
        if entry.instance:
            self._track(entry.instance, starting=entry.state == "starting")
        if self._progress is None:
            super().__call__(entry)
        else:
            self._progress.console.print(_line(entry), markup=False, highlight=False)

    def _track(self, instance: str, *, starting: bool) -> None:
        if starting and instance not in self._tasks:
            progress = self._progress or self._open()
            self._tasks[instance] = progress.add_task(instance, total=None)
        elif not starting and instance in self._tasks and self._progress is not None:
            self._progress.remove_task(self._tasks.pop(instance))
            if not self._tasks:
                # Its thread draws four times a second: no reason to, once all is quiet.
                self._progress.stop()
                self._progress = None

    def _open(self) -> Progress:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description} is starting"))
        self._progress = Progress(*columns, TimeElapsedColumn(), transient=True)
        self._progress.start()
        return self._progress


def _line(entry: Entry) -> str:
    moment = datetime.fromtimestamp(entry.time).strftime("%T")
    return f"{moment}  {entry.instance or 'cluster':<20} {entry.state:<9} {entry.reason}"
