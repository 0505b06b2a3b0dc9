"""Whether the kernel has just killed something for want of memory, from its own count."""

from __future__ import annotations

from pathlib import Path

from supervisor.runtime.oom import OomKills


def vmstat(path: Path, kills: int) -> Path:
    path.write_text(f"nr_free_pages 12345\noom_kill_x 99\noom_kill {kills}\nswap_ra 0\n")
    return path


def test_a_kill_is_evidence_until_it_is_no_news_any_more(tmp_path: Path) -> None:
    file = vmstat(tmp_path / "vmstat", 7)
    kills = OomKills(file)
    assert not kills.recent(), "seven, before anybody looked"
    vmstat(file, 8)
    assert kills.recent()
    assert kills.recent(), "two processes may have been killed at once"
    kills.look()
    assert kills.recent(), "the look may have come between the kill and the end of the process"
    kills.look()
    assert not kills.recent(), "that was long ago"


def test_a_kernel_that_does_not_count_is_no_evidence(tmp_path: Path) -> None:
    kills = OomKills(tmp_path / "none")
    assert not kills.recent()
    (tmp_path / "none").write_text("nr_free_pages 1\n")
    assert not kills.recent()


def test_this_kernel_counts() -> None:
    assert "\noom_kill " in Path("/proc/vmstat").read_text()
