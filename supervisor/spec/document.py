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

_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^$}]|\$(?!\{))*))?\}|\{)")
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_OUR_TYPES = {_TAG + name for name in ("null", "bool", "int", "float", "str")}
_MAX_VALUES = 50_000
"""Anchors can multiply a small file into gigabytes; no real cluster comes near this."""
_LONGEST_NUMBER = 1000
"""Characters of what is no text: to read `1:59:59:...` takes the square of its length."""
_ENOUGH = 1000
"""Nobody reads more errors than these."""
_MAX_DEPTH = 50
"""PyYAML composes by recursion in C, which ends the process when the stack is full."""
_HINTS = {
    "mapping values are not allowed": "check the indentation; a value with `: ` needs quotes",
    "scanning a quoted scalar": "close the quotation mark",
    "expected a single document": "one file is one cluster; remove the `---` between them",
    "undefined alias": "name an anchor (`&name`) that stands above",
    "cannot start any token": "put the value in quotes",
    "did not find expected": "check the indentation and the quotes, here and above",
    "could not find expected": "check the indentation and the quotes, here and above",
}
"""What to do about libyaml's messages."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Document:
    """The values of a file (``values``), and where each stands."""

    file: str
    values: Any = field(default=None, repr=False)  # holds secrets
    problems: list[Problem] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    """Places whose value could not be read; each has its problem already."""
    written: dict[Path, str] = field(default_factory=dict, repr=False)
    """What stands in the file where YAML makes something else of it: ``1.10``, ``0755``, ``on``."""
    _marks: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)
    _key_marks: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """A problem at ``path`` (at its key if ``key``), or at the nearest place around it."""
        return Problem(self.file, *self._position(path, key=key), dotted(path), message)

    def line(self, path: Path) -> int:
        """The line of ``path``, or of the nearest place that encloses it; 0 for no place at all."""
        return self._position(path, key=True)[0]

    def position(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of the value at ``path``; (0, 0) if it has no place."""
        return self._marks.get(path, (0, 0))

    def _position(self, path: Path, *, key: bool) -> tuple[int, int]:
        """A worker's option that is not there comes from ``defaults``: it is looked for there."""
        places = [path]
        if len(path) > 2 and path[0] == "workers":
            places.append(("defaults", *path[2:]))
        for place in places:
            mark = (self._key_marks if key else self._marks).get(place) or self._marks.get(place)
            if mark:
                return mark
        for end in range(len(path) - 1, -1, -1):
            mark = self._key_marks.get(path[:end]) or self._marks.get(path[:end])
            if mark:
                return mark
        return 0, 0


def parse(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """Parse YAML. Never raises: what is wrong is in ``problems`` (secrets are never in them)."""
    document = Document(file)
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control:
        place = _line_and_column(text, control.start())
        message = f"holds a control character (U+{ord(control.group()):04X}); remove it"
        document.problems.append(Problem(file, *place, "", message))
        return document
    try:
        deep = _too_deep(text)
        node = None if deep else yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(file, text, error))
        return document
    if deep:
        message = f"nested deeper than {_MAX_DEPTH} levels; flatten the file"
        document.problems.append(Problem(file, *deep, "", message))
    elif node is None:
        message = "the file is empty; describe a cluster in it (see configs/)"
        document.problems.append(Problem(file, 1, 1, "", message))
    else:
        document.values = _Builder(document, environ).build(node, ())
    return document


def _too_deep(text: str) -> tuple[int, int] | None:
    """Where the file first passes ``_MAX_DEPTH``. Events, unlike nodes, come without recursion."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                return _position(event)
    except yaml.YAMLError as error:
        # libyaml (0.2.6 and later) has a limit of its own, and meets it while it looks ahead.
        mark = getattr(error, "problem_mark", None)
        if mark is not None and "nesting depth" in str(error) and mark.index < len(text):
            return _too_deep(text[: mark.index]) or (mark.line + 1, mark.column + 1)
        raise
    return None


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _syntax_problem(file: str, text: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = getattr(error, "problem", None) or "syntax error"
    if context := getattr(error, "context", None):
        begin = getattr(error, "context_mark", None)
        what += f" ({context}{f' that begins in line {begin.line + 1}' if begin else ''})"
    here = "".join(text.splitlines()[line - 1 : line])
    if "\t" in here[: len(here) - len(here.lstrip())]:
        hint = "indent with spaces, YAML forbids tabs"
    elif "flow" in what and "${" in here:
        hint = "inside { } and [ ], put a ${VARIABLE} in quotes"
    else:
        hint = next((hint for words, hint in _HINTS.items() if words in what), "mend the syntax")
    return Problem(file, line, column, "", f"not YAML: {what}; {hint}")


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
        if self._too_many(node, path):
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

    def _too_many(self, node: yaml.Node, path: Path) -> bool:
        self._count += 1
        if self._count == _MAX_VALUES + 1:
            text = f"more than {_MAX_VALUES} values; do the anchors multiply? write it without them"
            self._problem(node, path, text)
        return self._count > _MAX_VALUES

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                if merged:
                    text = "'<<' stands here a second time; write one, `<<: [*a, *b]`"
                    self._problem(key_node, path, text, readable=True)
                merged.append(value_node)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in values:
                first = self._document._key_marks[here][0]
                text = f"key {key!r} stands here a second time (first in line {first}); remove one"
                self._problem(key_node, here, text, readable=True)
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
                self._problem(item, path, "'<<' takes a mapping, `*anchor`, or a list of them")
                continue
            if id(item) in self._open:
                self._problem(item, path, "an anchor contains itself; remove the alias")
                continue
            if self._too_many(item, path):
                return
            self._open.add(id(item))
            for key_node, value_node in sorted(item.value, key=lambda pair: pair[0].tag == _MERGE):
                if key_node.tag == _MERGE:  # after its own keys, which win
                    self._merge(value_node, path, values)
                    continue
                key = self._key(key_node, path)
                if key is not None and key not in values:
                    self._document._key_marks[(*path, key)] = _position(key_node)
                    values[key] = self.build(value_node, (*path, key))
            self._open.discard(id(item))

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "a key must be a plain text; put it in quotes")
            return None
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        value, tag = node.value, node.tag
        if "$" in value:
            value = self._expand(node, path)
            if node.style is None:  # unquoted: its type is that of the expanded text
                tag = self._scalars.resolve(yaml.ScalarNode, value, (True, False))
        if "\0" in value:
            self._problem(node, path, "holds a NUL character; remove it")
            return None
        if tag == _TAG + "timestamp":
            return value  # dates are no type of ours: what was written is what was meant
        if tag not in _OUR_TYPES:
            self._problem(node, path, "has a YAML tag that has no meaning here; remove it")
            return None
        if tag != _TAG + "str" and len(value) > _LONGEST_NUMBER:
            self._problem(node, path, f"cannot read this as {tag.removeprefix(_TAG)}; quote it")
            return None
        try:
            made = self._scalars.construct_object(yaml.ScalarNode(tag, value), deep=True)
        except (yaml.YAMLError, ValueError, LookupError):
            self._problem(node, path, f"cannot read this as {tag.removeprefix(_TAG)}; quote it")
            return None
        if made is not None and not isinstance(made, str):
            self._document.written[path] = value
        return made

    def _expand(self, node: yaml.ScalarNode, path: Path) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(2)
            if match.group() == "${":
                text = "write a variable as ${NAME} or ${NAME:-default}, and a dollar sign as $$"
                self._problem(node, path, text)
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

    def _problem(
        self, node: yaml.Node, path: Path, message: str, *, readable: bool = False
    ) -> None:
        """Unless ``readable``, the value at ``path`` is not checked any further."""
        if len(self._document.problems) >= _ENOUGH:
            return
        line, column = _position(node)
        problem = Problem(self._document.file, line, column, dotted(path), message)
        self._document.problems.append(problem)
        if path and not readable:
            self._document.broken.append(path)


def _position(node: Any) -> tuple[int, int]:
    """Line and column, from 1, of a node or an event."""
    return node.start_mark.line + 1, node.start_mark.column + 1
