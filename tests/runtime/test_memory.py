"""How much memory is free, of the machine and of the control groups that we are in."""

from __future__ import annotations

from pathlib import Path

from supervisor.runtime.memory import available

GIB = 2**30


def meminfo(path: Path, gib: int) -> Path:
    path.write_text(f"MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable:  {gib * 2**20} kB\n")
    return path


def group(path: Path, most: str, used: int = 0, cache: int = 0) -> Path:
    path.mkdir(parents=True)
    (path / "memory.max").write_text(f"{most}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")
    return path


def test_it_is_what_the_machine_can_give(tmp_path: Path) -> None:
    unlimited = group(tmp_path / "group", "max", 50 * GIB)
    assert available(meminfo(tmp_path / "meminfo", 64), unlimited) == 64 * GIB


def test_a_control_group_that_allows_less_counts_and_so_does_one_above_it(tmp_path: Path) -> None:
    """What it holds of files that nobody has used lately can be had as well."""
    outer = group(tmp_path / "outer", str(10 * GIB), 8 * GIB, cache=3 * GIB)
    inner = group(outer / "inner", "max")
    assert available(meminfo(tmp_path / "meminfo", 64), inner) == 5 * GIB
    small = group(outer / "small", str(2 * GIB), 1 * GIB)
    assert available(tmp_path / "meminfo", small) == 1 * GIB
    full = group(outer / "full", str(GIB), 2 * GIB)
    assert available(tmp_path / "meminfo", full) == 0


def test_where_nobody_tells_it_is_not_known(tmp_path: Path) -> None:
    assert available(tmp_path / "none", tmp_path / "nowhere") is None
    (tmp_path / "odd").write_text("MemAvailable:\n\nMemAvailable: much\n")
    assert available(tmp_path / "odd", tmp_path / "nowhere") is None


def test_this_machine_tells() -> None:
    assert (available() or 0) > 0
