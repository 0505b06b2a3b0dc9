"""Durations as people read them. Pure, and light enough for every client verb."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """``0.2s``, ``45s``, ``3m 20s``, ``2h 5m``, ``3d 4h``."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
