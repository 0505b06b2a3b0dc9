"""Who is measured: ourselves, other supervisors, the nohup script, and nothing at all."""

from __future__ import annotations

from contestants.bare import Bare
from contestants.circus import Circus
from contestants.contestant import Contestant, Work
from contestants.installing import Missing
from contestants.ours import Ours, OursCold, OursWarm, launched
from contestants.pm2 import Pm2
from contestants.runit import Runit
from contestants.s6 import S6
from contestants.script import Script
from contestants.supervisord import Supervisord

__all__ = [
    "PEERS",
    "TRIVIAL",
    "WORKERS",
    "Bare",
    "Contestant",
    "Missing",
    "Ours",
    "OursCold",
    "OursWarm",
    "Work",
    "everybody",
    "launched",
]

PEERS: tuple[type[Contestant], ...] = (Supervisord, Circus, Pm2, Runit, S6)

TRIVIAL: tuple[type[Contestant], ...] = (Ours, *PEERS, Bare)
"""Who runs trivial processes."""

WORKERS: tuple[type[Contestant], ...] = (
    OursWarm,
    OursCold,
    *PEERS,
    Bare,
    Script,
)
"""Who runs FastChat."""


def everybody() -> list[str]:
    """What `--contestants` accepts: ours are one there."""
    return list(dict.fromkeys(one.program for one in (*TRIVIAL, *WORKERS)))
