"""How large a model is on disk: the files that a worker will read, without opening one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
"""A folder may have the same weights in several formats; loaders prefer them in this order."""


def weight_files(model: str, environ: Mapping[str, str], revision: str | None = None) -> list[Path]:
    """The weights of a local folder or file, or of a repository in Hugging Face's cache.

    ``model`` is an absolute path or ``owner/name``; ``environ`` is the worker's. Empty if they are
    not on this disk (yet), or cannot be looked at.
    """
    place = Path(model)
    if not place.is_absolute():
        found = _snapshot(model, environ, revision)
        if found is None:
            return []
        place = found
    try:
        if place.is_file():
            return [place]
        files = sorted(one for one in place.iterdir() if one.suffix in _SUFFIXES)
    except OSError:
        return []
    kinds = {one.suffix for one in files}
    best = next((suffix for suffix in _SUFFIXES if suffix in kinds), "")
    return [one for one in files if one.suffix == best]


def size(model: str, environ: Mapping[str, str], revision: str | None = None) -> int:
    """Bytes of all of them together; see ``weight_files``."""
    found = 0
    for one in weight_files(model, environ, revision):
        try:
            found += one.stat().st_size  # of what a link of the cache leads to
        except OSError:
            continue  # a link of a download that was broken off
    return found


def _snapshot(model: str, environ: Mapping[str, str], revision: str | None) -> Path | None:
    """The folder of a repository's revision: ``models--owner--name/snapshots/<commit>``, where
    ``refs/<name>`` holds the commit of a branch or tag (huggingface_hub, file_download.py)."""
    repository = _cache(environ) / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    try:
        commit = (repository / "refs" / name).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = name
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps its downloads (its constants.py)."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(os.path.expanduser(environ[name]))
    home = environ.get("HF_HOME")
    if home:
        return Path(os.path.expanduser(home)) / "hub"
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(caches)) / "huggingface" / "hub"
