"""A file's text as a tree that knows where everything stands, and what it all means."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
MERGE, NULL, TEXT = _TAG + "merge", _TAG + "null", _TAG + "str"
_MAX_VALUES = 50_000
"""Like the loader's: anchors can multiply a small file into gigabytes."""
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Meaning = Any
"""Mappings and lists of scalars, each its (type, text): ``0755`` and ``493`` are not the same."""


class EditError(Exception):
    """The edit cannot be made; one sentence says why and what to do."""


class NotYaml(EditError):
    """The text is no YAML, or not one document of it; the loader knows where."""


class Alias(yaml.Node):
    """``*name`` where it stands; PyYAML alone gives only the node that it stands for."""

    id = "alias"

    def __init__(self, target: yaml.Node, event: Any) -> None:
        super().__init__("", None, event.start_mark, event.end_mark)
        self.target, self.name = target, str(event.anchor)


class _Composer(yaml.SafeLoader):
    """Keeps aliases and anchors. (Written in Python, unlike the loader's: it can be extended.)"""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            return Alias(node, event)
        node.anchor = event.anchor
        return node


class Tree:
    """The text, its nodes, and what it means."""

    def __init__(self, text: str) -> None:
        """Raises EditError if it is not YAML, or more than one document."""
        self.text = text
        self.eol = "\r\n" if text[: text.find("\n") + 1].endswith("\r\n") else "\n"
        try:
            self.root: yaml.Node | None = _Composer(text).get_single_node()
        except yaml.YAMLError:
            raise NotYaml("the file is not YAML; `llm-supervisor validate` says where") from None
        except RecursionError:
            raise EditError("the file is nested too deeply; flatten it") from None
        self.meaning = meaning_of(text)

    @cached_property
    def comments(self) -> list[int]:
        """Where comments begin."""
        return list(_comments(self.text))

    @property
    def step(self) -> int:
        """By how much the file indents: as its first nested block does."""
        if isinstance(self.root, yaml.MappingNode) and not self.root.flow_style:
            for _, value in self.root.value:
                if isinstance(value, yaml.MappingNode) and not value.flow_style:
                    return max(1, column_of(value))
        return 2

    def nodes(self) -> Iterator[yaml.Node]:
        """All of them; an alias, but not what it stands for."""
        waiting = [self.root] if self.root else []
        while waiting:
            node = waiting.pop()
            yield node
            if isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value

    def shared(self, start: int, end: int) -> str | None:
        """An anchor between ``start`` and ``end`` that is used outside of them."""
        within = [n for n in self.nodes() if start <= n.start_mark.index < end]
        inside = set(map(id, within))
        used = {n.name for n in self.nodes() if isinstance(n, Alias) and id(n) not in inside}
        names = (getattr(node, "anchor", None) for node in within)
        return next((name for name in names if name in used), None)

    def end(self, node: yaml.Node) -> int:
        """Where a node ends. To PyYAML a block ends only where the next thing begins."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self.end(last[1] if isinstance(last, tuple) else last)
        start, end = node.start_mark.index, int(node.end_mark.index)
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return int(start + len(self.text[start:end].rstrip()))
        return end

    def line(self, position: int) -> int:
        """The start of the line that holds ``position``."""
        return self.text.rfind("\n", 0, position) + 1

    def column(self, position: int) -> int:
        return position - self.line(position)

    def next_line(self, position: int) -> int:
        """The start of the line below, or the end of the text."""
        return self.text.find("\n", position) + 1 or len(self.text)

    def comment(self, start: int, end: int) -> int | None:
        """Where the first comment between ``start`` and ``end`` begins."""
        return next((place for place in self.comments if start <= place < end), None)


def column_of(mapping: yaml.MappingNode) -> int:
    """The column of a block's keys. (The node itself begins with its anchor.)"""
    return int(mapping.value[0][0].start_mark.column)


def _comments(text: str) -> Iterator[int]:
    """Where comments begin: between two tokens there is nothing else but space."""
    last = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        gap = text[last : token.start_mark.index]
        place = gap.find("#")
        while place >= 0:
            yield last + place
            place = gap.find("#", gap.find("\n", place) + 1 or len(gap))
        last = token.end_mark.index


# ---------------------------------------------------------------- what a text means


def meaning_of(text: str) -> Meaning:
    """Read by the parser that the loader uses, not by the one that edits: it checks the edit."""
    try:
        return meaning_of_node(yaml.compose(text, Loader=_FastLoader))
    except yaml.YAMLError:
        raise NotYaml("the file is not YAML; `llm-supervisor validate` says where") from None


def meaning_of_node(node: yaml.Node | None) -> Meaning:
    return (NULL, "") if node is None else _Reader().read(node)


class _Reader:
    """Follows aliases and merges as the loader does: own keys win, then the first source."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._done: dict[int, Meaning] = {}
        self._count = 0

    def read(self, node: yaml.Node) -> Meaning:
        if isinstance(node, Alias):
            node = node.target
        if isinstance(node, yaml.ScalarNode):
            return (node.tag, node.value)
        if id(node) not in self._done:
            self._count += 1
            if id(node) in self._open or self._count > _MAX_VALUES:
                raise EditError("an anchor of the file contains itself; remove the alias by hand")
            self._open.add(id(node))
            if isinstance(node, yaml.MappingNode):
                made: Meaning = {key: self.read(value) for key, value in flattened(node)}
            else:
                made = [self.read(item) for item in node.value]
            self._done[id(node)] = made
        return self._done[id(node)]


def flattened(node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
    """Keys and values, those that `<<` brings included."""
    found = {key.value: value for key, value in node.value if key.tag != MERGE}
    waiting = [value for key, value in node.value if key.tag == MERGE]
    seen = {id(node)}
    while waiting:
        source = waiting.pop(0)
        if isinstance(source, Alias):
            source = source.target
        if isinstance(source, yaml.SequenceNode):
            waiting[:0] = source.value
        elif isinstance(source, yaml.MappingNode) and id(source) not in seen:
            seen.add(id(source))
            for key, value in source.value:
                if key.tag != MERGE:
                    found.setdefault(key.value, value)
            waiting[:0] = [value for key, value in source.value if key.tag == MERGE]
    return list(found.items())


def same(one: Meaning, other: Meaning, _seen: set[tuple[int, int]] | None = None) -> bool:
    """Whether two texts mean the same. A section that holds nothing is null to YAML, or empty."""
    seen = set() if _seen is None else _seen
    if (id(one), id(other)) in seen:
        return True
    seen.add((id(one), id(other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], seen) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(lambda a, b: same(a, b, seen), one, other))
    if {} in (one, other):
        return {} in (one, other) and all(
            v == {} or (type(v) is tuple and v[0] == NULL) for v in (one, other)
        )
    return bool(one == other)
