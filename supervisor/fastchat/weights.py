"""How large a model is on disk: the files that a worker will read, without opening one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
"""A folder may have the same weights in several formats; loaders prefer them in this order."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a worker's models, and how many bytes they have together."""

    files: tuple[str, ...] = ()
    size: int = 0


def weights_of(
    models: Iterable[str], environ: Mapping[str, str], revision: str | None = None
) -> Weights:
    """What is on this disk of models, each of which is an absolute path (a folder or a file) or a
    repository, ``owner/name``, that may be in Hugging Face's cache; ``environ`` is the worker's.
    What is not there (yet), or cannot be looked at, is left out.
    """
    sizes: dict[str, int] = {}
    for model in models:
        for one in _files(model, environ, revision):
            with contextlib.suppress(OSError):  # a link of a download that was broken off
                sizes[str(one)] = one.stat().st_size
    return Weights(tuple(sizes), sum(sizes.values()))


def _files(model: str, environ: Mapping[str, str], revision: str | None) -> list[Path]:
    place: Path | None = Path(model)
    if not os.path.isabs(model):
        place = _snapshot(model, environ, revision)
    if place is None:
        return []
    try:
        if place.is_file():
            return [place]
        files = sorted(one for one in place.iterdir() if one.suffix in _SUFFIXES)
    except OSError:
        return []
    kinds = {one.suffix for one in files}
    best = next((suffix for suffix in _SUFFIXES if suffix in kinds), "")
    return [one for one in files if one.suffix == best]


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
