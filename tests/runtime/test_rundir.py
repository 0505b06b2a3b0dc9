"""The run directory: private, and one supervisor at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.runtime.rundir import AlreadyRunning, RunDir, RunDirError, default_run_dir


def test_it_is_private_even_if_it_was_not(tmp_path):
    (tmp_path / "run").mkdir(mode=0o777)
    os.chmod(tmp_path / "run", 0o777)
    place = RunDir(tmp_path / "run")
    place.claim()
    assert place.path.stat().st_mode & 0o777 == 0o700
    place.release()


def test_a_second_claim_is_refused_until_the_first_is_released(tmp_path):
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    first.claim()
    assert second.owner() == f"pid {os.getpid()}"
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        second.claim()
    first.release()
    assert second.owner() is None
    second.claim()
    second.release()


def test_a_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirError, match="no directory"):
        RunDir(tmp_path / "run").claim()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_somebody_elses_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(RunDirError, match="belongs to user 12345"):
        RunDir(tmp_path / "run").claim()


def test_a_path_too_long_for_a_socket_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(RunDirError, match="give a shorter --run-dir"):
        RunDir(tmp_path / ("x" * 120)).claim()


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[1, 2]", b'{"a": "x"}', b'{"a": 1'])
def test_damaged_ports_are_no_ports(tmp_path, content):
    place = RunDir(tmp_path)
    (tmp_path / "ports.json").write_bytes(content)
    assert place.remembered_ports() == {}


def test_ports_are_remembered(tmp_path):
    place = RunDir(tmp_path)
    place.remember_ports({"a-0": 21002})
    assert place.remembered_ports() == {"a-0": 21002}


def test_one_run_directory_per_file_whatever_the_way_to_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    environ = {"XDG_RUNTIME_DIR": "/somewhere"}
    direct = default_run_dir(tmp_path / "real" / "cluster.yaml", environ)
    assert direct == default_run_dir(tmp_path / "link" / "cluster.yaml", environ)
    assert direct != default_run_dir(tmp_path / "real" / "other.yaml", environ)
    assert direct.is_relative_to(Path("/somewhere/llm-supervisor"))
