"""Keeps the state file up to date, and the run directory in place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from supervisor.daemon.state import Notes, State
from supervisor.runtime.rundir import RunDir, RunDirError

log = logging.getLogger(__name__)

_PAUSE = 0.05
"""Seconds between a change and its note: what happens at once is written once. A supervisor that is
killed meanwhile loses nothing that is not found again by looking at what runs."""
_RETRY = 5.0
_LOOK = 5.0
"""Seconds between two looks whether the run directory is still there: two calls of stat(2)."""


class Keeper:
    """To be used from the event loop."""

    def __init__(self, run_dir: RunDir, known: Callable[[], State]) -> None:
        self._run_dir = run_dir
        self._known = known
        self._notes = Notes()
        self._due: asyncio.TimerHandle | None = None
        self._complaint = ""
        self.restored: Callable[[], None] = lambda: None
        """Called when the run directory had to be made anew: it is empty then."""

    def noted(self) -> None:
        """There is something new; it is written in a moment, also if the last try has failed."""
        loop = asyncio.get_running_loop()
        if self._due is not None and self._due.when() > loop.time() + _PAUSE:
            self._due.cancel()
            self._due = None
        if self._due is None:
            self._due = loop.call_later(_PAUSE, self._write)

    def write_now(self) -> None:
        self._write()

    async def watch(self) -> None:
        """Look after the run directory, without end."""
        while True:
            await asyncio.sleep(_LOOK)
            if not self._run_dir.is_in_place():
                self._restore()

    def close(self, *, forget: bool) -> None:
        """``forget``: all has stopped, so that a successor has nothing to go on with."""
        if self._due is not None:
            self._due.cancel()
        if forget:
            self._run_dir.forget_state()

    def _write(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        try:
            self._run_dir.write_state(self._notes.write(self._known()))
        except OSError as error:
            self._complain(
                f"cannot write the state file in {self._run_dir.path}: {error.strerror}; "
                "supervision goes on, and it is tried again"
            )
            self._due = asyncio.get_running_loop().call_later(_RETRY, self._write)
        else:
            if self._complaint:
                log.info("the state file can be written again")
            self._complaint = ""

    def _restore(self) -> None:
        try:
            self._run_dir.restore()
        except RunDirError as error:
            self._complain(f"the run directory has been removed, and cannot be made anew: {error}")
            return
        self._complaint = ""
        log.warning(
            "the run directory %s has been removed, and was made anew; keep it from cleaners of "
            "temporary files, or name another one with --run-dir",
            self._run_dir.path,
        )
        self.restored()
        self._write()

    def _complain(self, text: str) -> None:
        """Once, not every few seconds."""
        if text != self._complaint:
            log.warning("%s", text)
        self._complaint = text
