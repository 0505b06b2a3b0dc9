"""The token of the control API: a secret in a file of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

SHORTEST = 16
"""Characters; 16 random ones cannot be guessed through a door that counts requests."""
_LARGEST = 4096
"""Bytes of the file."""


class BadToken(Exception):
    """The file holds no token that protects anything; one sentence says why and what to do."""


def read_token(path: Path) -> str:
    """The token in ``path``, without the line break at its end. Raises BadToken.

    What is checked is what is read: the open file, not whatever bears its name a moment later.
    """
    try:
        # Without blocking, since a pipe would keep us waiting for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check(path, os.fstat(descriptor))
            raw = os.read(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        text = f"cannot read the token in {path}: {error.strerror}"
        raise BadToken(f"{text}; make one with {_recipe(path)}") from None
    return _token(path, raw)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        text = f"{path} is no regular file; make one with {_recipe(path)}"
        raise BadToken(text)
    if found.st_mode & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        text = f"others may read or write the token in {path} (mode {mode})"
        raise BadToken(f"{text}; `chmod 600 {path}`, and make a new one if somebody has")
    if found.st_uid not in (os.geteuid(), 0):
        text = f"the token in {path} belongs to user {found.st_uid}, who can change it"
        raise BadToken(f"{text}; make one of your own with {_recipe(path)}")


def _token(path: Path, raw: bytes) -> str:
    token = raw.decode(errors="replace").strip()
    if len(raw) > _LARGEST or not (token.isascii() and token.isprintable()) or " " in token:
        text = f"{path} holds no token: it is one word of printable ASCII"
        raise BadToken(f"{text}; make one with {_recipe(path)}")
    if len(token) < SHORTEST:
        text = f"the token in {path} has fewer than {SHORTEST} characters and can be guessed"
        raise BadToken(f"{text}; make one with {_recipe(path)}")
    return token


def _recipe(path: Path) -> str:
    return f"`(umask 077; openssl rand -hex 32 > {path})`"
