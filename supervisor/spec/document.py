"""YAML text -> plain values, with the position of every one, variables expanded.

PyYAML composes the tree of nodes; building the values from it ourselves is what gives each value
its line and column, finds duplicate keys, and expands ``${VAR}`` before types are decided, so that
``port: ${PORT}`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from supervisor.spec.problems import Path, Problem, dotted

_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")
_MERGE = "tag:yaml.org,2002:merge"
_MAX_VALUES = 200_000
"""Anchors can multiply a small file into gigabytes; no real cluster comes near this."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Document:
    """The values of a file (``values``), and where each stands."""

    file: str
    values: Any = None
    problems: list[Problem] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    """Places whose value could not be read; each has its problem already."""
    _marks: dict[Path, tuple[int, int]] = field(default_factory=dict)
    _key_marks: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """A problem at ``path`` (at its key if ``key``), or at the nearest place that encloses it.

        A worker's option that is not there comes from ``defaults``, so it is looked for there.
        """
        places = [path]
        if len(path) > 2 and path[0] == "workers":
            places.append(("defaults", *path[2:]))
        for place in places:
            mark = (self._key_marks if key else self._marks).get(place) or self._marks.get(place)
            if mark:
                return Problem(self.file, *mark, dotted(path), message)
        for end in range(len(path) - 1, -1, -1):
            mark = self._key_marks.get(path[:end]) or self._marks.get(path[:end])
            if mark:
                return Problem(self.file, *mark, dotted(path), message)
        return Problem(self.file, 0, 0, dotted(path), message)


def parse(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """Parse YAML. Never raises: what is wrong is in ``problems`` (secrets are never in them)."""
    document = Document(file)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(file, error))
        return document
    except RecursionError:
        document.problems.append(Problem(file, 0, 0, "", "nested too deeply; flatten the file"))
        return document
    if node is None:
        document.problems.append(
            Problem(file, 0, 0, "", "the file is empty; describe a cluster in it (see configs/)")
        )
        return document
    builder = _Builder(document, environ)
    try:
        document.values = builder.build(node, ())
    except RecursionError:
        document.problems.append(Problem(file, 0, 0, "", "nested too deeply; flatten the file"))
    return document


def _syntax_problem(file: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        # A reader error (control characters, broken encoding) knows an offset at best.
        return Problem(file, 0, 0, "", f"not YAML: {_one_line(str(error))}")
    what = _one_line(getattr(error, "problem", None) or "syntax error")
    if "'\\t'" in what:
        what += "; indent with spaces, YAML forbids tabs"
    context = getattr(error, "context", None)
    where = f" ({_one_line(context)})" if context else ""
    return Problem(file, mark.line + 1, mark.column + 1, "", f"not YAML: {what}{where}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Builder:
    """Turns nodes into values; one per file."""

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self._document = document
        self._environ = environ
        self._scalars = _Loader("")
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._document._marks.setdefault(path, _position(node))
        self._count += 1
        if self._count > _MAX_VALUES:
            if self._count == _MAX_VALUES + 1:
                self._problem(node, path, "too many values; the anchors multiply without end")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(node, path, "an anchor contains itself; remove the alias")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged.append(value_node)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in values:
                first = self._document._key_marks[here][0]
                text = f"key {key!r} stands here a second time (first in line {first}); remove one"
                self._problem(key_node, here, text)
                continue
            self._document._key_marks[here] = _position(key_node)
            values[key] = self.build(value_node, here)
        for source in merged:
            self._merge(source, path, values)
        return values

    def _merge(self, source: yaml.Node, path: Path, values: dict[str, Any]) -> None:
        """``<<: *anchor`` or ``<<: [*a, *b]``: own keys win, then the first source."""
        sources = source.value if isinstance(source, yaml.SequenceNode) else [source]
        for item in sources:
            if not isinstance(item, yaml.MappingNode):
                self._problem(item, path, "'<<' takes a mapping or a list of them")
                continue
            if id(item) in self._open:
                self._problem(item, path, "an anchor contains itself; remove the alias")
                continue
            self._open.add(id(item))
            for key_node, value_node in item.value:
                if key_node.tag == _MERGE:
                    self._merge(value_node, path, values)
                    continue
                key = self._key(key_node, path)
                if key is not None and key not in values:
                    self._document._key_marks[(*path, key)] = _position(key_node)
                    values[key] = self.build(value_node, (*path, key))
            self._open.discard(id(item))

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "a key must be a plain text")
            return None
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        value, tag = node.value, node.tag
        if "$" in value:
            value = self._expand(node, path)
            if node.style is None:  # unquoted: its type is that of the expanded text
                tag = self._scalars.resolve(yaml.ScalarNode, value, (True, False))
        try:
            made = self._scalars.construct_object(yaml.ScalarNode(tag, value), deep=True)
        except (yaml.YAMLError, ValueError):
            self._problem(node, path, f"cannot read this as {tag.rsplit(':', 1)[-1]}; quote it")
            return None
        # A date, or 0o17, is no type of ours: what was written is what was meant.
        return made if isinstance(made, str | int | float | bool | None) else value

    def _expand(self, node: yaml.ScalarNode, path: Path) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if name is None:
                return "$"
            value = self._environ.get(name)
            if value:
                return value
            if default is not None:
                return default
            if value is None:
                text = (
                    f"environment variable {name} is not set; set it, or write ${{{name}:-default}}"
                )
                self._problem(node, path, text)
            return ""

        return _VARIABLE.sub(replace, node.value)

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        line, column = _position(node)
        problem = Problem(self._document.file, line, column, dotted(path), message)
        self._document.problems.append(problem)
        if path and "second time" not in message:
            self._document.broken.append(path)


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
