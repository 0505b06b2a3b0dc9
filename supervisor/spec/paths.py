"""Paths of the file: relative ones start from the folder that the file is in."""

from __future__ import annotations

import os
from pathlib import Path


def resolve(base: Path, text: str) -> Path:
    """``~`` expanded, relative to ``base``; links are kept, so that a swapped link is followed."""
    return Path(os.path.normpath(base / Path(text).expanduser()))


def looks_local(base: Path, text: str) -> bool:
    """Whether a model path means a folder. A Hugging Face name is ``name`` or ``owner/name``."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or text.count("/") > 1
        or resolve(base, text).exists()
    )
