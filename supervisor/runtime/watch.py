"""Notices that a file has changed, once the change is complete.

One thread waits for events of the folders that matter, and after each batch it looks at the files
themselves: an event only says when to look, what counts is whether a file is another one than
before. So it does not matter how an editor saves, which events a kernel sends or leaves out, what
else happens in the folder, and whether two names are one. All that may block (a file system that
hangs) blocks that thread, not the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from signal import SIGURG

log = logging.getLogger(__name__)

Signature = tuple[int, ...]
"""Two that differ are two contents, or two reasons why there is none."""
Signatures = Mapping[Path, Signature]

_STEP_MS, _SLOW_STEP_MS = 25, 100
"""watchfiles looks for events this often and returns when a step brings no other: an event is told
after one to two steps. Each idle step costs a wakeup, and a hundredth of a percent of a core for
each that comes in a second; so the slow ones are taken where nothing has happened for long."""
_ALERT_S = 300.0
"""Who has edited a file edits it again."""
_GATHER_MS = 50
"""The longest that watchfiles gathers, so that a busy log folder does not delay us."""
_QUIET_S = 0.02
"""A file is settled when it did not change for so long. Not less than the clock of a file system
ticks (10 ms): within one tick a file can change twice and look the same."""
_UNSURE_QUIET_S = 0.2
"""The same where we are not told who has the file open: a pause of its writer is no end."""
_BUSY_S = 1.0
"""A file that never comes to rest is reported this often."""
_WRITER_S = 60.0
"""How long we wait for those who have a changed file open for writing: some editors never close
it, but what others have written so far may be half of it."""
_WRITER_WARNING_S = 5.0
"""After so long we say whom we wait for."""
_LOOK_S = 5.0
"""We look this often without any event: network file systems send none for what others write, and
nobody tells us that a folder further up was renamed (see `_on_the_way`)."""
_BLIND_LOOK_S = 1.0
"""The same while there are no events to be had,"""
_RETRY_S = 60.0
"""and when we try again to have them."""
_LINKS_MAX = 40
"""The kernel's limit for one path."""


class FileWatch:
    """Calls ``changed`` in the event loop when the content of a file may be another one.

    It is not said which, and several changes may be one call; but what a file contains after the
    last call is the last that was saved.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._reported: Signatures = {}
        """The files, as they were told last. Replaced, never altered: the thread reads it."""
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake = threading.Event()
        """There is something else to do than to wait."""
        self._alert_until = 0.0
        self._blind = False
        self._blind_until = 0.0

    def watch(self, paths: Collection[Path]) -> None:
        """Watch these files from now on, and no others; they need not exist.

        To miss nothing, call this before reading them.
        """
        files = {path.absolute() for path in paths}
        if self._closed or files == self._reported.keys():
            return
        self._reported = {path: self._reported.get(path) or _signature(path) for path in files}
        self._wake.set()
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="file watch", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Nothing is called any more from the moment of the call."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:  # It takes a step, unless a file system hangs.
            await asyncio.to_thread(self._thread.join, 1.0)

    def _report(self, seen: Signatures) -> None:
        """In the event loop, which may have been busy: tells only what it has not told yet."""
        known = self._reported
        news = {path: seen[path] for path in known if seen.get(path, known[path]) != known[path]}
        if news and not self._closed:
            self._reported = {**known, **news}
            self._alert_until = time.monotonic() + _ALERT_S
            self._changed()

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        """Never ends before it is told to: a defect costs promptness, not the function."""
        while True:
            if self._blind:
                self._wake.wait(_BLIND_LOOK_S)
            self._wake.clear()  # First: what it stands for is looked at below.
            if self._closed:
                return
            files = list(self._reported)
            places = _places(files)
            try:
                if time.monotonic() < self._blind_until:
                    self._look(files)
                else:
                    self._follow(files, places)
            except Exception as error:
                if places == _places(files):  # Else it vanished while we turned to it.
                    self._be_blind(error)

    def _follow(self, files: Collection[Path], places: frozenset[str]) -> None:
        """Look after each batch of events, until something else is to be watched."""
        # Takes 50 ms, and is not needed by those who watch nothing.
        from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

        # Not its `watch()`: we have to look after the watches are set and before we wait, since
        # what changed in between has sent no event.
        with RustNotify(list(places), False, False, 0, False, False) as events:
            if self._blind:
                log.info("changes of %s are noticed at once again", _listed(files))
                self._blind = False
            while True:
                self._look(files)
                if self._wake.is_set() or places != _places(files):
                    return
                try:
                    batch = events.watch(
                        _GATHER_MS, self._step(), round(_LOOK_S * 1000), self._wake
                    )
                except WatchfilesRustInternalError:
                    return  # As good as an event: a name in the folder that is no text, say.
                # Set the watches anew if nothing came for long, in case one was lost unnoticed, and
                # if a place itself has changed: it may be another one of that name, with the same
                # inode even, while our watch has ended with the old one.
                if isinstance(batch, str) or not places.isdisjoint(path for _, path in batch):
                    return

    def _step(self) -> int:
        """Milliseconds."""
        return _STEP_MS if time.monotonic() < self._alert_until else _SLOW_STEP_MS

    def _be_blind(self, error: Exception) -> None:
        if not self._blind:
            log.warning(
                "changes of %s are noticed late, because the kernel cannot tell us of them (%s): "
                "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances with sysctl "
                "if they are used up, and use `llm-supervisor reload` if a change is not noticed",
                _listed(files=self._reported),
                error,
            )
        self._blind = True
        self._blind_until = time.monotonic() + _RETRY_S

    def _look(self, files: Collection[Path]) -> None:
        """Report what has changed, when it has settled."""
        reported = self._reported
        began = quiet_since = time.monotonic()
        warned = False
        now = _signatures(files)
        while any(now[path] != reported.get(path) for path in files):
            if self._wake.wait(_QUIET_S):
                return  # We come back at once, and see it again.
            before, now = now, _signatures(files)
            # After looking: who writes between the two is seen here or sends another event.
            answers = {path: _is_written(path) for path in files if now[path] != reported.get(path)}
            written = [path for path, answer in answers.items() if answer]
            moment = time.monotonic()
            waited = moment - began
            if now != before:
                quiet_since = moment
            unsure = None in answers.values() and moment - quiet_since < _UNSURE_QUIET_S
            settled = (now == before and not unsure) or waited >= _BUSY_S
            if waited >= _WRITER_S or (settled and not written):
                with contextlib.suppress(RuntimeError):  # The loop has ended without close().
                    self._loop.call_soon_threadsafe(self._report, now)
                return
            if written and waited >= _WRITER_WARNING_S and not warned:
                warned = True
                log.warning(
                    "%s is open for writing by another process; it is read when that closes it, "
                    "after %g s at the latest",
                    _listed(written),
                    _WRITER_S,
                )


def _signatures(paths: Iterable[Path]) -> Signatures:
    return {path: _signature(path) for path in paths}


def _signature(path: Path) -> Signature:
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    except ValueError:  # A path that no file can have.
        return (errno.EINVAL,)
    same = (found.st_dev, found.st_ino, found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        return same  # A folder's times change with whatever happens in it.
    # The times of a change cannot be set by a program, those of a write can (cp -p, rsync, tar).
    return (*same, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_written(path: Path) -> bool | None:
    """Whether somebody has the file open for writing; None if we are not told.

    We are not where the file belongs to another user, nor by file systems that know no leases.

    The kernel grants a read lease only while nobody does. It is given back at once: who opens the
    file for writing meanwhile has to wait, and the holder gets a signal, which would be SIGIO and
    end us. We choose one that nobody uses and that is ignored by default.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False  # To open a pipe or a device may do anything.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(file)
    return False


def _places(files: Iterable[Path]) -> frozenset[str]:
    """The folders and files whose events matter, of those that inotify would let us watch."""
    places = {place for file in files for place in _on_the_way(file)}
    return frozenset(place for place in places if os.access(place, os.R_OK))


def _on_the_way(file: Path) -> Iterator[str]:
    """The folder of every link on the way to the file, the file's own, and the file itself.

    The file itself, because a write through another name (a file that is mounted into a container,
    a hard link) sends its events to that name's folder and to the file, not to our folder. Folders
    further up that are no links are not watched for being renamed or locked: that would bring us
    all events of /tmp.
    """
    here, todo, links = "/", _names(str(file)), 0
    while todo:
        name = todo.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        path = os.path.join(here, name)
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
            target = os.readlink(path) if is_link else ""
        except (OSError, ValueError):
            # Not there, or not to be seen: the folder where it will be, and in case we must not
            # watch that, the one that tells us when we may.
            yield here
            while not os.access(here, os.R_OK) and here != "/":
                here = os.path.dirname(here)
                yield here
            return
        if is_link or not todo:
            yield here
        if not is_link:
            here = path
            continue
        links += 1
        if links > _LINKS_MAX:
            return
        todo += _names(target)
        here = "/" if os.path.isabs(target) else here
    yield here


def _names(path: str) -> list[str]:
    """The parts of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _listed(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))
