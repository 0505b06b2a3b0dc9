"""How a process ended that is no child of ours."""

from __future__ import annotations

import fcntl
import struct

from supervisor.runtime import tree

_INFO = struct.Struct("QQ11Ii")
"""struct pidfd_info of its first size, 64 bytes (linux/pidfd.h): mask, ..., exit_code."""
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
"""PIDFD_GET_INFO, _IOWR(0xFF, 11, struct pidfd_info)."""
_INFO_EXIT = 1 << 3
"""PIDFD_INFO_EXIT: since Linux 6.15, and once its parent has reaped it."""


def exit_status(descriptor: int, pid: int) -> int | None:
    """As of waitpid(2), of the process of a pidfd that tells of its end; None if nobody knows."""
    stat = tree.stat_of(pid)
    if stat is not None and stat.state == "Z":
        return stat.exit_status
    question = _INFO.pack(_INFO_EXIT, *[0] * 13)
    try:
        mask, *_, status = _INFO.unpack(fcntl.ioctl(descriptor, _GET_INFO, question))
    except OSError:
        return None
    return int(status) if mask & _INFO_EXIT else None
