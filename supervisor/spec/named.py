"""Files that a cluster file names and that are read with it: API keys, environment variables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from supervisor.spec.document import Document
from supervisor.spec.model import Cluster
from supervisor.spec.paths import resolve
from supervisor.spec.problems import Path as Place
from supervisor.spec.problems import Problem, SpecError
from supervisor.spec.token import BadToken, read_token

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Read = Callable[[Path], str]


class _Unusable(Exception):
    """What is wrong with a named file, and what to do."""


def named_files(cluster: Cluster, base: Path) -> list[Path]:
    """Every file that ``with_named_files`` reads, and those that workers read when they start."""
    names = [getattr(one, "env_file", None) for _, one in _entries(cluster)]
    names += [cluster.api_server.api_keys_file] if cluster.api_server else []
    names += [cluster.control.token_file] if cluster.control else []
    names += [getattr(one, "model_info_file", None) for one in cluster.workers.values()]
    return list(dict.fromkeys(resolve(base, name) for name in names if name is not None))


def with_named_files(
    cluster: Cluster, document: Document, base: Path, read: Read
) -> tuple[Cluster, list[Problem]]:
    """The cluster with what those files hold: ``env`` over ``env_file``, keys of both."""
    problems = []
    updates: dict[Place, dict[str, Any]] = {}
    for place, entry in _entries(cluster):
        if entry.env_file is None:
            continue
        try:
            path = resolve(base, entry.env_file)
            variables = _variables(_text(path, read, "variable"), path)
        except _Unusable as error:
            problems.append(document.problem((*place, "env_file"), str(error)))
        else:
            updates.setdefault(place, {})["env"] = {**variables, **entry.env}
    server = cluster.api_server
    if server is not None and server.api_keys_file is not None:
        try:
            path = resolve(base, server.api_keys_file)
            keys = _keys(_text(path, read, "key"), path)
        except _Unusable as error:
            problems.append(document.problem(("api_server", "api_keys_file"), str(error)))
        else:
            updates.setdefault(("api_server",), {})["api_keys"] = (*server.api_keys, *keys)
    if (control := cluster.control) is not None:
        try:
            read_token(resolve(base, control.token_file))
        except BadToken as error:
            problems.append(document.problem(("control", "token_file"), str(error)))
    return _updated(cluster, updates), problems


def _entries(cluster: Cluster) -> Iterator[tuple[Place, Any]]:
    """All that has an environment, with its place."""
    yield (), cluster
    for name in ("controller", "api_server", "web_server"):
        if (entry := getattr(cluster, name)) is not None:
            yield (name,), entry
    for group in ("workers", "services"):
        for name, entry in getattr(cluster, group).items():
            yield (group, name), entry


def _updated(cluster: Cluster, updates: dict[Place, dict[str, Any]]) -> Cluster:
    whole = dict(updates.pop((), {}))
    for place, update in updates.items():
        if len(place) == 1:
            only = str(place[0])
            whole[only] = getattr(cluster, only).model_copy(update=update)
        else:
            group, name = map(str, place)
            entries = whole.setdefault(group, dict(getattr(cluster, group)))
            entries[name] = entries[name].model_copy(update=update)
    return cluster.model_copy(update=whole)


def _text(path: Path, read: Read, what: str) -> str:
    try:
        return read(path)
    except SpecError as error:
        why = error.problems[0].message.partition(";")[0]
        text = f"cannot read the {what}s in {path}: {why}; name a text file with one {what} a line"
        raise _Unusable(text) from None


def _variables(text: str, path: Path) -> dict[str, str]:
    """``NAME=value`` lines as python-dotenv reads them; nothing is expanded in them."""
    from dotenv.parser import parse_stream

    found = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and not _NAME.fullmatch(binding.key)):
            line = binding.original.line
            raise _Unusable(f"line {line} of {path} is no variable; write it as NAME=value")
        if binding.key:
            found[binding.key] = binding.value or ""
    return found


def _keys(text: str, path: Path) -> list[SecretStr]:
    lines = [line.strip() for line in text.splitlines()]
    keys = [SecretStr(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        text = f"{path} holds no key, which would open the server to all; add one or remove this"
        raise _Unusable(text)
    return keys
