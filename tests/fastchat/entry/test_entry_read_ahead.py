"""Large weights are in the page cache before anybody asks for them."""

from __future__ import annotations

import errno
import importlib.util
import os
import threading

import pytest
from harness import NOT_POSSIBLE

MIB = 1 << 20


@pytest.fixture
def read_ahead(entry_folder):
    """The module, without the folder of the entry modules on the path."""
    spec = importlib.util.spec_from_file_location("read_ahead", entry_folder / "read_ahead.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uncached(path, size):
    """A file that is on the disk only, where the file system forgets what it is told to."""
    path.write_bytes(os.urandom(MIB) * (size // MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def is_cached(path):
    with path.open("rb", buffering=0) as file:
        for offset in range(0, path.stat().st_size, MIB):
            try:
                os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    pytest.skip(f"{NOT_POSSIBLE}a file system that tells what it has cached")
                raise
    return True


def test_all_of_every_file_is_read_to_its_end(read_ahead, tmp_path):
    files = [uncached(tmp_path / "one", 150 * MIB), uncached(tmp_path / "two", 3 * MIB)]
    read_ahead.read([str(one) for one in files])
    assert all(map(is_cached, files))


def test_what_is_cached_is_not_read_again(read_ahead, tmp_path, monkeypatch):
    file = uncached(tmp_path / "one", 150 * MIB)
    read_ahead.read([str(file)])
    if not is_cached(file):
        pytest.skip(f"{NOT_POSSIBLE}a file system that keeps what it has read")
    sizes = []
    read = os.preadv

    def noted(descriptor, buffers, *rest):
        sizes.append(len(buffers[0]))
        return read(descriptor, buffers, *rest)

    monkeypatch.setattr(os, "preadv", noted)
    read_ahead.read([str(file)])
    assert set(sizes) == {1}, "it only looks"


@pytest.fixture
def begun(monkeypatch):
    """Threads that were started."""
    found = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: found.append(self))
    return found


def test_it_is_done_in_the_background_and_no_child_inherits_the_wish(
    read_ahead, tmp_path, monkeypatch, begun
):
    monkeypatch.setenv("LLM_SUPERVISOR_READ_AHEAD", str(uncached(tmp_path / "one", MIB)))
    read_ahead.begin()
    assert [thread.daemon for thread in begun] == [True]
    assert "LLM_SUPERVISOR_READ_AHEAD" not in os.environ


@pytest.mark.parametrize("size", [MIB, 2 * MIB - 1])
def test_what_takes_more_than_half_of_the_free_memory_is_left_alone(
    read_ahead, tmp_path, monkeypatch, begun, size
):
    monkeypatch.setenv("LLM_SUPERVISOR_READ_AHEAD", str(uncached(tmp_path / "one", MIB)))
    monkeypatch.setattr(read_ahead, "available", lambda: size)
    read_ahead.begin()
    assert begun == []


def test_without_files_or_where_they_are_gone_nothing_happens(
    read_ahead, tmp_path, monkeypatch, begun
):
    monkeypatch.delenv("LLM_SUPERVISOR_READ_AHEAD", raising=False)
    read_ahead.begin()
    monkeypatch.setenv("LLM_SUPERVISOR_READ_AHEAD", str(tmp_path / "gone"))
    read_ahead.begin()
    assert begun == []
    read_ahead.read([str(tmp_path / "gone")])


def test_a_real_worker_reads_ahead(start_worker, models, tmp_path):
    """A file that it has no other reason to touch."""
    file = uncached(tmp_path / "weights", 80 * MIB)
    flags = ["--model-path", str(models / "tiny-owl"), "--device", "cpu", "--no-register"]
    env = {"LLM_SUPERVISOR_READ_AHEAD": str(file)}
    worker = start_worker("model_worker", *flags, "--conv-template", "vicuna_v1.1", env=env)
    worker.wait_until_served("POST", "/worker_get_status")
    assert is_cached(file)
