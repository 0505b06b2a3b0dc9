"""What a text means to the loader's parser, PyYAML, and which comments it has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
MERGE, NULL, TEXT = TAG + "merge", TAG + "null", TAG + "str"
_MAX_VALUES = 50_000
"""Like the loader's: anchors can multiply a small file into gigabytes."""
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Meaning = Any
"""Mappings and lists of scalars, each its (type, text): ``0755`` and ``493`` are not the same."""


class EditError(Exception):
    """The edit cannot be made; one sentence says why and what to do."""


class NotYaml(EditError):
    """The text is no YAML, or not one document of it; the loader knows where."""

    def __init__(self) -> None:
        super().__init__("the file is not YAML; `llm-supervisor validate` says where")


def meaning_of(text: str) -> Meaning:
    try:
        return meaning_of_node(yaml.compose(text, Loader=_FastLoader))
    except yaml.YAMLError:
        raise NotYaml from None
    except RecursionError:
        raise EditError("the file is nested too deeply; flatten it") from None


def meaning_of_node(node: yaml.Node | None) -> Meaning:
    return (NULL, "") if node is None else _Reader().read(node)


class _Reader:
    """Follows aliases and merges as the loader does: own keys win, then the first source."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._done: dict[int, Meaning] = {}

    def read(self, node: yaml.Node) -> Meaning:
        if isinstance(node, yaml.ScalarNode):
            return (node.tag, node.value)
        if id(node) not in self._done:
            if id(node) in self._open or len(self._open) + len(self._done) > _MAX_VALUES:
                raise EditError("an anchor of the file contains itself; remove the alias by hand")
            self._open.add(id(node))
            if isinstance(node, yaml.MappingNode):
                made: Meaning = {key: self.read(value) for key, value in flattened(node).items()}
            else:
                made = [self.read(item) for item in node.value]
            self._open.discard(id(node))
            self._done[id(node)] = made
        return self._done[id(node)]


def flattened(mapping: Any) -> dict[str, Any]:
    """Values by key, those that `<<` brings included. Of PyYAML's nodes, and of ruamel's."""
    found: dict[str, Any] = {}
    waiting, seen = [mapping], set()
    while waiting:
        source = target(waiting.pop(0))
        if source.id == "sequence":
            waiting[:0] = source.value
        elif source.id == "mapping" and id(source) not in seen:
            seen.add(id(source))
            own = {key.value: target(value) for key, value in source.value if key.tag != MERGE}
            found |= {key: own[key] for key in own if key not in found}
            waiting[:0] = [value for key, value in source.value if key.tag == MERGE]
    return found


def target(node: Any) -> Any:
    """What ``*name`` stands for, of ruamel's nodes; PyYAML's are that already."""
    return getattr(node, "target", node)


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
    if one == {} or other == {}:
        rest = other if one == {} else one
        return type(rest) is tuple and rest[0] == NULL
    return bool(one == other)


def comments(text: str) -> Counter[str]:
    """Between two tokens there is nothing else but space."""
    found: Counter[str] = Counter()
    last = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        found += comments_in(text[last : token.start_mark.index])
        last = token.end_mark.index
    return found


def comments_in(gap: str) -> Counter[str]:
    return Counter(line[line.index("#") :].rstrip() for line in gap.splitlines() if "#" in line)
