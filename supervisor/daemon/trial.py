"""Run as a program, by the one that it is to follow: could it go on from the handover on its stdin?

All that a supervisor needs is imported for that, so that an installation that is broken, or half
copied, is noticed while there still is a program that works.
"""

from __future__ import annotations

import sys

import supervisor.daemon.api
import supervisor.daemon.main  # noqa: F401
from supervisor.daemon.upgrade import can_go_on_from


def main() -> None:
    if not can_go_on_from(sys.stdin.buffer.read()):
        sys.exit("it cannot read the state of the program that runs; stop and start it instead")


if __name__ == "__main__":
    main()
