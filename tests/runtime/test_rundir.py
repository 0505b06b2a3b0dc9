"""The run directory: private, and one supervisor at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.runtime import rundir
from supervisor.runtime.rundir import AlreadyRunning, RunDir, RunDirError, default_run_dirs


def test_a_new_one_is_private(tmp_path):
    place = RunDir(tmp_path / "run")
    place.claim()
    assert place.path.stat().st_mode & 0o777 == 0o700
    place.release()


def test_an_existing_one_that_others_can_read_is_used_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    os.chmod(tmp_path / "run", 0o755)
    place = RunDir(tmp_path / "run")
    place.claim()
    assert place.path.stat().st_mode & 0o777 == 0o755
    place.release()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_one_that_others_can_write_in_is_refused_and_left_alone(tmp_path, mode):
    (tmp_path / "run").mkdir()
    os.chmod(tmp_path / "run", mode)
    with pytest.raises(RunDirError, match="chmod go-w"):
        RunDir(tmp_path / "run").claim()
    assert (tmp_path / "run").stat().st_mode & 0o7777 == mode


def test_the_default_folder_in_tmp_may_not_be_one_that_others_can_write_in(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "_TMP", tmp_path)
    parent = tmp_path / f"llm-supervisor-{os.geteuid()}"
    parent.mkdir()
    os.chmod(parent, 0o777)
    with pytest.raises(RunDirError, match="chmod go-w"):
        RunDir(parent / "run").claim()
    os.chmod(parent, 0o700)
    place = RunDir(parent / "run")
    place.claim()
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


def test_a_client_that_looks_does_not_keep_a_supervisor_out(tmp_path, monkeypatch):
    """`status` asks who runs here at the very moment when `up` claims the directory."""
    place = RunDir(tmp_path / "run")
    place.claim()
    place.release()
    looked = []
    query = fcntl.fcntl

    def claim_meanwhile(fd, command, *argument):
        answer = query(fd, command, *argument)
        if command == fcntl.F_OFD_GETLK and not looked:
            looked.append(command)
            place.claim()
        return answer

    monkeypatch.setattr(fcntl, "fcntl", claim_meanwhile)
    assert RunDir(tmp_path / "run").owner() is None
    assert looked
    assert RunDir(tmp_path / "run").owner() == f"pid {os.getpid()}"
    place.release()


def test_looking_at_a_free_one_takes_no_lock(tmp_path, monkeypatch):
    place = RunDir(tmp_path / "run")
    place.claim()
    place.release()
    kept = []
    monkeypatch.setattr(os, "close", kept.append)  # as if it were still looking
    assert RunDir(tmp_path / "run").owner() is None
    monkeypatch.undo()
    place.claim()
    place.release()
    for fd in kept:
        os.close(fd)


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    code = f"""
from pathlib import Path
from supervisor.runtime.rundir import RunDir
RunDir(Path({str(tmp_path / "run")!r})).claim()
print("claimed", flush=True)
input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"claimed\n"
    assert RunDir(tmp_path / "run").owner() == f"pid {other.pid}"
    other.kill()
    other.communicate()
    assert RunDir(tmp_path / "run").owner() is None
    place = RunDir(tmp_path / "run")
    place.claim()
    place.release()


@pytest.mark.parametrize("name", ["lock", "control.sock"])
def test_what_cannot_be_used_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(RunDirError, match=f"{name}.*name another one with --run-dir"):
        RunDir(tmp_path / "run").claim()


def test_ports_that_cannot_be_written_are_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "ports.json").mkdir()
    with pytest.raises(RunDirError, match="name another one with --run-dir"):
        RunDir(tmp_path).remember_ports({"a-0": 1})


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
    direct = default_run_dirs(tmp_path / "real" / "cluster.yaml", environ)
    assert direct == default_run_dirs(tmp_path / "link" / "cluster.yaml", environ)
    assert not set(direct) & set(default_run_dirs(tmp_path / "real" / "other.yaml", environ))
    assert direct[0].is_relative_to(Path("/somewhere/llm-supervisor"))


def test_without_a_runtime_folder_one_that_runs_with_it_is_looked_for(tmp_path):
    file, runtime = tmp_path / "cluster.yaml", f"/run/user/{os.geteuid()}"
    with_it, without = (
        default_run_dirs(file, {"XDG_RUNTIME_DIR": runtime}),
        default_run_dirs(file, {}),
    )
    assert with_it[0] != without[0]
    assert set(with_it) == set(without)


# ---------------------------------------------------------------- with the eyes of an attacker

STRANGER = 12345


def test_a_folder_that_everybody_may_rename_in_is_no_place(tmp_path):
    """Between the check and the socket somebody puts another directory in its place."""
    (tmp_path / "shared").mkdir()
    os.chmod(tmp_path / "shared", 0o777)
    with pytest.raises(RunDirError, match=r"everybody may rename what is in .*/shared"):
        RunDir(tmp_path / "shared" / "deep" / "run").claim()
    os.chmod(tmp_path / "shared", 0o1777)  # as /tmp
    place = RunDir(tmp_path / "shared" / "deep" / "run")
    place.claim()
    place.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_in_tmp_that_somebody_else_has_made_is_no_place(tmp_path):
    """XDG_RUNTIME_DIR=/tmp, and somebody was there first."""
    (tmp_path / "tmp" / "llm-supervisor").mkdir(parents=True)
    os.chmod(tmp_path / "tmp", 0o1777)
    os.chown(tmp_path / "tmp" / "llm-supervisor", STRANGER, STRANGER)
    with pytest.raises(RunDirError, match="llm-supervisor on the way there is user 12345's"):
        RunDir(tmp_path / "tmp" / "llm-supervisor" / "run").claim()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to somebody else")
def test_a_link_in_tmp_that_somebody_else_has_made_is_no_way(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "good").mkdir()
    os.chmod(tmp_path / "tmp", 0o1777)
    (tmp_path / "tmp" / "link").symlink_to(tmp_path / "good")
    os.lchown(tmp_path / "tmp" / "link", STRANGER, STRANGER)
    with pytest.raises(RunDirError, match="link on the way there is user 12345's"):
        RunDir(tmp_path / "tmp" / "link" / "run").claim()


def test_a_link_of_ours_may_not_lead_into_the_open(tmp_path):
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(RunDirError, match=r"everybody may rename what is in .*/link"):
        RunDir(tmp_path / "link" / "run").claim()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize("name", ["out", "state.json", "ports.json", "control.sock", "anything"])
def test_what_somebody_else_has_put_there_is_not_used(tmp_path, name):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / name).touch()
    os.lchown(tmp_path / "run" / name, STRANGER, STRANGER)
    with pytest.raises(RunDirError, match=f"{name} belongs to user 12345.*remove it"):
        RunDir(tmp_path / "run").claim()


def test_a_link_is_never_written_through(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("precious")
    for name in ("lock", "ports.json.new", "state.json.new"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(RunDirError, match=r"lock.*name another one with --run-dir"):
        RunDir(tmp_path / "run").claim()
    (tmp_path / "run" / "lock").unlink()
    place = RunDir(tmp_path / "run")
    place.claim()
    place.remember_ports({"a-0": 21002})
    place.write_state(b"{}")
    place.release()
    assert (tmp_path / "precious").read_text() == "precious"
    assert place.remembered_ports() == {"a-0": 21002}
    assert place.read_state() == b"{}"
