"""What must not fail when no file descriptor is free."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

import pytest

from supervisor.runtime import descriptors, tree
from supervisor.runtime.descriptors import hold_reserve, with_reserve


@pytest.fixture
def no_reserve() -> Iterator[None]:
    """As in a process that has never held one; another test of this process may have."""
    _release()
    yield
    _release()


def _release() -> None:
    while descriptors._held:
        os.close(descriptors._held.pop())


@contextlib.contextmanager
def none_free() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_tree_is_found_without_a_free_descriptor(no_reserve: None) -> None:
    hold_reserve()
    with none_free():
        for _ in range(20):
            tree.children(os.getpid())
            assert "python" in tree.command_line(os.getpid())
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)


def test_without_a_reserve_it_fails_as_ever(no_reserve: None) -> None:
    with none_free(), pytest.raises(OSError, match="Too many open files"):
        tree.children(os.getpid())


def test_what_fails_for_another_reason_is_not_tried_again(no_reserve: None) -> None:
    hold_reserve()
    tries = []

    def fail() -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        with_reserve(fail)
    assert len(tries) == 1
