"""Plain values -> ``Cluster``, with every error of the file at once and in our own words.

Pydantic reports all errors of types and keys in one go; the checks that span several fields
(``checks.py``) need a whole model. So what is wrong is reported, left out, and the rest validated
again: one save shows every mistake.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from supervisor.spec.checks import check, services
from supervisor.spec.document import Document
from supervisor.spec.model import WORKER_KINDS, Cluster, Model
from supervisor.spec.problems import Path, Problem

_ROUNDS = 20
"""Leaving one wrong value out can uncover another; but not without end."""

_ENOUGH = 1000
"""Nobody reads more errors than these."""

_TEXTS = {"env", "args", "command", "api_keys"}
"""Options whose items are texts, whatever YAML takes them for."""

_STAND_INS = {"model_path": "owner/name", "wbits": 16, "command": ["true"]}
"""What is required is not left out but replaced, so that the rest can be checked."""

_SAY = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping, `key: value`",
    "model_type": "must be a mapping, `key: value`",
    "model_attributes_type": "must be a mapping, `key: value`",
    "list_type": "must be a list, `[a, b]`",
    "tuple_type": "must be a list, `[a, b]`",
    "string_type": "must be a text; put it in quotes",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "too_short": "must not be empty; add an item or remove it",
    "string_too_short": "must not be empty",
}

_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}

_FORMS = {
    "[key]": "a name has letters, digits and . _ - only, at most 63, and begins with a letter or "
    "digit; put other names for clients into model_names",
    "max_gpu_memory": "must be an amount such as 20GiB",
    "http": "must be a URL such as http://127.0.0.1:7860/",
    "tcp": "must be host:port",
    "model_names": "a model name has no comma and is not empty; mend or remove it",
    "gpus": "a GPU is an index such as 0 or a UUID such as GPU-8f6e...",
    "env": "a variable's name has letters, digits and _ only; rename it",
    "mode": "a mode is one word; write a list of them",
}


def validate(document: Document, base: FilePath) -> tuple[Cluster | None, list[Problem]]:
    """``base`` is the folder that relative paths of the file start from."""
    values = copy.deepcopy(document.values)
    for path in document.broken:
        _leave_out(values, path)
    values = with_defaults(_with_texts_as_written(values, document.written))
    problems: list[Problem] = []
    left_out = _LeftOut()
    for path in document.broken:
        left_out.add(path)
    cluster = None
    for _ in range(_ROUNDS):
        try:
            cluster = Cluster.model_validate(values)
            break
        except ValidationError as error:
            new = list(_report(error, document, values, left_out, problems))
            if not [path for path in new if _leave_out(values, path)]:
                break
            for path in new:
                left_out.add(path)
    if cluster is not None:
        problems += [
            document.problem(path, message)
            for path, message in check(cluster, base, unusable=left_out.names())
            if not left_out.concerns(path)
        ]
        if not problems and not document.problems and not any(services(cluster)):
            text = "nothing to run; list a model under `workers`, or enable one (see configs/)"
            problems.append(document.problem((), text))
    return cluster, _once(problems)


class _LeftOut:
    """Places whose values were wrong, and have been reported."""

    def __init__(self) -> None:
        self._places: set[Path] = set()
        self._around: set[Path] = set()

    def add(self, place: Path) -> None:
        self._places.add(place)
        self._around.update(place[:end] for end in range(len(place)))

    def concerns(self, path: Path) -> bool:
        """Whether a problem at ``path`` may only come from what is gone, above it or inside it."""
        above = (path[:end] for end in range(len(path) + 1))
        return path in self._around or any(place in self._places for place in above)

    def names(self) -> set[str]:
        """Services that stand in the file but may be missing from the model."""
        return {str(path[1] if len(path) > 1 else path[0]) for path in self._places if path}


def _with_texts_as_written(values: Any, written: Mapping[Path, str]) -> Any:
    """``env: {VERSION: 1.10}`` means the text 1.10, not the number 1.1; likewise 0755, on, no."""
    for path, text in written.items():
        inside = not (len(path) == 3 and path[0] in ("workers", "services"))
        if len(path) > 1 and path[-2] in _TEXTS and inside:
            _container(values, path)[path[-1]] = text
    return values


def _container(values: Any, path: Path) -> Any:
    """The mapping or list that holds the value at ``path``; an empty one if it is gone."""
    for part in path[:-1]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return {}
    return values


def _once(problems: list[Problem]) -> list[Problem]:
    """A wrong value in ``defaults`` is wrong in every worker: say it once."""
    seen: dict[tuple[int, int, str, str], Problem] = {}
    for problem in sorted(problems, key=lambda p: not p.path.startswith("defaults")):
        last = problem.path.rpartition(".")[2]
        seen.setdefault((problem.line, problem.column, last, problem.message), problem)
    return list(seen.values())


def with_defaults(values: Any) -> Any:
    """Every worker with the options of ``defaults`` that its kind has; its own values win."""
    if not isinstance(values, dict):
        return values
    defaults, workers = values.get("defaults"), values.get("workers")
    if not isinstance(defaults, dict) or not isinstance(workers, dict):
        return values
    for name, worker in workers.items():
        if not isinstance(worker, dict):
            continue
        kind = str(worker.get("kind", defaults.get("kind") or "model_worker"))
        known = set(WORKER_KINDS[kind].model_fields) if kind in WORKER_KINDS else {"kind"}
        applicable = {key: value for key, value in defaults.items() if key in known}
        workers[name] = _merged(applicable, worker)
    return values


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _report(
    error: ValidationError,
    document: Document,
    values: Any,
    left_out: _LeftOut,
    problems: list[Problem],
) -> Iterator[Path]:
    """Add a problem for each place that is wrong; yield the places."""
    seen: set[Path] = set()
    details = error.errors(include_url=False, include_input=False)
    places = [_real_path(detail["loc"], values) for detail in details]
    for detail, path in zip(details, places, strict=True):
        kind = detail["type"]
        if kind == "too_short" and any(p[: len(path)] == path != p for p in places):
            continue  # the list is only empty because its items are wrong
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, "kind")
        if path in seen:
            continue  # the members of a union complain one by one; the first says enough
        seen.add(path)
        if not left_out.concerns(path) and len(problems) < _ENOUGH:
            is_key = kind == "extra_forbidden" or detail["loc"][-1:] == ("[key]",)
            problems.append(document.problem(path, _say(detail, path), key=is_key))
        yield path[:-1] if kind == "missing" and path[-1] not in _STAND_INS else path


def _real_path(location: tuple[str | int, ...], values: Any) -> Path:
    """Pydantic's location without the names of union members, which are not in the file."""
    path: list[str | int] = []
    here: Any = values
    for i, part in enumerate(location):
        if part == "[key]":
            break
        if (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]  # type: ignore[index]
        elif i < len(location) - 1 or not isinstance(here, dict):
            continue
        path.append(part)
    return tuple(path)


def _say(detail: Any, path: Path) -> str:
    return _what(detail, path) if path else f"the file {_what(detail, path)}"


def _what(detail: Any, path: Path) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    name = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    if kind == "extra_forbidden":
        return _unknown_key(name, detail["loc"])
    if kind == "missing":
        return "is required; add it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        close = _close(str(context.get("tag", "")), WORKER_KINDS, cutoff=0.4)
        meant = f"; did you mean {close!r}?" if close else ""
        return f"must be one of {', '.join(WORKER_KINDS)}{meant}"
    if kind in ("literal_error", "enum"):
        return f"must be one of {context['expected'].replace(chr(39), '')}"
    if kind == "string_pattern_mismatch":
        if detail["loc"][-1] == "[key]":
            name = "env" if path[-2:-1] == ("env",) else "[key]"
        return _FORMS.get(name, f"must match {context['pattern']}")
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"must be {word} {context[key]}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _SAY:
        return _SAY[kind]
    return str(detail["msg"]).replace("Input should", "must")


def _close(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """What was probably meant."""
    import difflib  # a file without mistakes does not need it

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def _unknown_key(name: str, location: tuple[str | int, ...]) -> str:
    model = _model_at(location[:-1])
    known = list(model.model_fields) if model else []
    close = _close(name.replace("-", "_"), known)
    if close:
        return f"unknown key {name!r}; did you mean {close!r}?"
    owners = [kind for kind, worker in WORKER_KINDS.items() if name in worker.model_fields]
    if owners and location[0] == "workers":
        return f"this kind of worker has no option {name!r}, only {', '.join(owners)}; remove it"
    return f"unknown key {name!r}; remove it or use one of: {', '.join(known)}"


def _model_at(location: tuple[str | int, ...]) -> type[Model] | None:
    """The model that stands at pydantic's location."""
    model: type[Model] | None = Cluster
    parts = iter(location)
    for part in parts:
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            return None
        models = list(_models_in(field.annotation))
        if typing.get_origin(field.annotation) in (dict, tuple):
            next(parts, None)
        if len(models) > 1:
            tag = next(parts, None)
            model = WORKER_KINDS.get(str(tag))
        else:
            model = models[0] if models else None
    return model


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _leave_out(values: Any, path: Path) -> bool:
    """Remove what stands at ``path``, an item of a list with its whole list; false if nothing."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    around = _container(values, path)
    if not path or not isinstance(around, dict):
        return False
    if len(path) > 2 and path[-1] in _STAND_INS:
        around[path[-1]] = copy.copy(_STAND_INS[str(path[-1])])
    elif path[-1] in around:
        del around[path[-1]]
    else:
        return False
    return True
