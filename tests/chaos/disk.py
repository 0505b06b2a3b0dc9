"""A disk that can be filled without filling the machine's: a small one in memory, for us alone."""

from __future__ import annotations

import atexit
import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE, _MS_NOSUID = 0x4000, 1 << 18, 2
_MNT_DETACH = 2


def mount_small(folder: Path, megabytes: int) -> str:
    """Have a file system of that size in ``folder``; empty if that was done, else why not.

    It is in a mount namespace that ends with us and our children, so nothing can be left of it.
    """
    if os.geteuid() != 0:
        return "only root can mount a small disk to fill"
    folder.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    done = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0
        and libc.mount(
            b"tmpfs",
            os.fsencode(folder),
            b"tmpfs",
            _MS_NOSUID,
            f"size={megabytes}m,mode=700".encode(),
        )
        == 0
    )
    atexit.register(libc.umount2, os.fsencode(folder), _MNT_DETACH)
    return "" if done else f"cannot mount a small disk: {os.strerror(ctypes.get_errno())}"
