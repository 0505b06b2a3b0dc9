"""A file gets new content at once or not at all, and only if nobody has changed it meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


class WriteError(Exception):
    """The file has not been written; one sentence says why and what to do."""


def replace(path: Path, old: bytes, new: bytes) -> None:
    """``new`` in place of ``old``. Raises WriteError, and then the file is as it was.

    A link stays; what it leads to is replaced. Mode, owner and extended attributes (access lists)
    stay too.
    """
    real = Path(os.path.realpath(path))
    try:
        before = os.stat(real)
        if not os.access(real, os.W_OK):
            text = f"may not write {real}; do it as a user who may, or `chmod u+w` it"
            raise WriteError(text)
        # Its name is hidden and ends unlike the file's, so that nobody takes it for one.
        descriptor, name = tempfile.mkstemp(".new", f".{real.name}.", real.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(new)
                stream.flush()
                _make_like(stream.fileno(), real, before)
                os.fsync(stream.fileno())
            if os.path.realpath(path) != str(real) or real.read_bytes() != old:
                raise WriteError(f"{path} has changed underneath; look at it and try again")
            os.replace(name, real)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _sync(real.parent)
    except OSError as error:
        where = real.parent if isinstance(error, PermissionError) else real
        why = error.strerror or str(error)
        raise WriteError(f"cannot write {where}: {why}; mend that, or edit it by hand") from None


def _make_like(new: int, old: Path, before: os.stat_result) -> None:
    mine = os.fstat(new)
    if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
        try:
            # Only what differs: a member of a group may give a file to it, but not its own away.
            owner = before.st_uid if mine.st_uid != before.st_uid else -1
            os.fchown(new, owner, before.st_gid)
        except PermissionError:
            raise WriteError(
                f"{old} belongs to user {before.st_uid} and group {before.st_gid}, and would not "
                "any more if you wrote it; do it as that user"
            ) from None
    os.fchmod(new, stat.S_IMODE(before.st_mode))
    with contextlib.suppress(OSError):  # a file system without them, or those of the system
        for name in os.listxattr(old):
            with contextlib.suppress(OSError):
                os.setxattr(new, name, os.getxattr(old, name))


def _sync(folder: Path) -> None:
    """That the new name outlives a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
