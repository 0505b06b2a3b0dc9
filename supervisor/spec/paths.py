"""Paths of the file: relative ones start from the folder that the file is in."""

from __future__ import annotations

import os
from pathlib import Path


def resolve(base: Path, text: str) -> Path:
    """``~`` expanded, relative to ``base``; links are kept, so that a swapped link is followed."""
    return Path(os.path.normpath(base / os.path.expanduser(text)))


def looks_local(base: Path, text: str) -> bool:
    """Whether a model path means a folder. A Hugging Face name is ``name`` or ``owner/name``."""
    owner, slash, name = text.partition("/")
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or "/" in name
        or (bool(slash) and (not name or os.path.isdir(resolve(base, owner))))
        or os.path.exists(resolve(base, text))
    )
