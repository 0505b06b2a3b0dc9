"""One value put into a text, or taken out of it, and the proof that nothing else has changed."""

from __future__ import annotations

import re
from collections import Counter

import yaml

from supervisor.spec.editing import nodes
from supervisor.spec.editing.nodes import (
    Alias,
    Node,
    Pair,
    hang,
    is_block,
    is_empty,
    is_literal,
    made,
    take_head,
    take_tail,
)
from supervisor.spec.editing.tree import (
    MERGE,
    EditError,
    Meaning,
    NotYaml,
    comments,
    comments_in,
    flattened,
    meaning_of,
    meaning_of_node,
    same,
)
from supervisor.spec.editing.values import from_python

Keys = tuple[str, ...]
"""Where a value stands: keys of mappings. Items of lists are not edited one by one."""
_BY_HAND = "edit the file by hand"
_OPTION = re.compile(r" *# *[\w.-]+:(\s|$)")


def put(text: str, keys: Keys, value: yaml.Node) -> str:
    """``value`` at ``keys``, with the mappings that are missing on the way. Raises EditError."""
    meaning, wanted = meaning_of(text), meaning_of_node(value)
    if _get(meaning, keys) == wanted:
        return text
    edit = _Edit(text, keys)
    edit.put(value)
    return edit.checked(_with(meaning, keys, wanted))


def drop(text: str, keys: Keys, keep: int) -> str:
    """Without ``keys``, and without the mappings below the first ``keep`` keys that are empty then.

    Raises EditError.
    """
    meaning = meaning_of(text)
    if _get(meaning, keys) is None:
        raise EditError(f"{'.'.join(keys)} is not set in the file")
    edit = _Edit(text, keys)
    edit.drop(keep)
    return edit.checked(_without(meaning, keys, keep))


class _Edit:
    def __init__(self, text: str, keys: Keys) -> None:
        self.text, self.keys, self.name = text, keys, ".".join(keys)
        self.crlf = text.partition("\n")[0].endswith("\r")
        self.old = text.replace("\r\n", "\n")
        if self.old and not self.old.endswith("\n"):
            self.old += "\n"
        self.root = nodes.parse(self.old)
        self.fresh = self.root is None or (self.root.id == "scalar" and is_empty(self.root))
        self.lost: Counter[str] = Counter()
        """Comments that belong to what is taken away."""
        self.anchor = ""
        """On the way to the keys; others may use it."""
        self.gone: list[Node] = []

    def checked(self, wanted: Meaning) -> str:
        """An edit that does what it should and nothing else, or none."""
        for node in nodes.walk(self.root):
            if isinstance(node, Alias) and any(node.target is one for one in self.gone):
                text = f"{self.name} holds &{node.target.anchor.value}, which others use too"
                raise EditError(f"{text}; {_BY_HAND}")
        new = nodes.write(self.root)
        if self.fresh:
            above = self.old.rstrip("\n")
            drafts = [f"{above}\n\n{new}" if above else new]
        else:
            drafts = [nodes.merged(self.old, nodes.write(nodes.parse(self.old)), new), new]
        why = f"cannot change {self.name} without changing more than that"
        if self.anchor:
            why = f"{self.name} is part of &{self.anchor}, which others use too"
        before = comments(self.old)
        for draft in drafts:
            if not self.old.endswith("\n\n"):
                draft = draft.rstrip("\n") + "\n"
            try:
                if not same(meaning_of(draft), wanted):
                    continue
            except NotYaml:
                continue
            after = comments(draft)
            if before - after - self.lost or after - before:
                why = f"cannot tell whose the comments beside {self.name} are"
                continue
            if self.text and not self.text.endswith("\n"):
                draft = draft.rstrip("\n")
            return draft.replace("\n", "\r\n") if self.crlf else draft
        raise EditError(f"{why}; {_BY_HAND}")

    def put(self, value: yaml.Node) -> None:
        if self.fresh:
            self.root = made(_nested(self.keys, value), 1 + _levels(self.keys[:1]))
            return
        around = self.root
        for depth, key in enumerate(self.keys):
            here, rest = self.keys[: depth + 1], self.keys[depth + 1 :]
            if around.id != "mapping":
                name = ".".join(here[:-1]) or "the file"
                raise EditError(f"{name} is no mapping, so it cannot hold {key!r}; {_BY_HAND}")
            node = flattened(around).get(key)
            if not rest or node is None or is_empty(node):
                levels = -1 if around.flow_style else _levels(here)
                self._set(around, key, made(_nested(rest, value), levels), levels)
                return
            around = self._own(around, key, node)

    def drop(self, keep: int) -> None:
        trail: list[Node] = []
        around = self.root
        for key in self.keys[:-1]:
            trail.append(around)
            around = self._own(around, key, flattened(around)[key])
        trail.append(around)
        if _find(around, self.keys[-1]) is None:
            text = f"{self.name} comes from an anchor (`<<`); set another, or {_BY_HAND}"
            raise EditError(text)
        while len(trail) - 1 > keep and len(trail[-1].value) == 1:
            trail.pop()
        around, key = trail[-1], self.keys[len(trail) - 1]
        self._remove(around, key)
        if len(trail) > 1 and is_block(around) and not around.value:
            self._set(trail[-2], self.keys[len(trail) - 2], nodes.nothing(), 0)

    def _own(self, around: Node, key: str, node: Node) -> Node:
        """What stands at the key. Those who share it through an alias keep what they have."""
        pair = _find(around, key)
        if pair is None or isinstance(pair[1], Alias):
            node = made(node, 0)
            self._set(around, key, node, 0)
        elif node.anchor:
            self.anchor = node.anchor.value
        return node

    def _set(self, around: Node, key: str, new: Node, levels: int) -> None:
        if pair := _find(around, key):
            self._replace(around, pair, new)
        else:
            self._insert(around, key, new, levels)

    # ------------------------------------------------------------ one pair of a mapping

    def _insert(self, around: Node, key: str, new: Node, levels: int) -> None:
        """Behind the last one and the comments that are its own."""
        if is_block(around) and around.value:
            before = around.value[-1]
            tail, column = take_tail(before[1])
            own, below = _parts(tail, before[0])
            if levels > 0 and self._are_apart(around):
                own += "\n"
            hang(before[1], own, column)
            hang(new, "\n" + below)
        around.value.append((nodes.scalar(key), new))

    def _are_apart(self, around: Node) -> bool:
        """Whether the file sets entries of this mapping apart by blank lines."""
        marks = [key.start_mark for key, _ in around.value[-2:]]
        if len(marks) < 2 or not all(marks):
            return bool(around is self.root)
        lines = self.old.splitlines()[marks[0].line : marks[1].line]
        return any(not line.strip() for line in lines)

    def _replace(self, around: Node, pair: Pair, new: Node) -> None:
        key, old = pair
        tail, column = take_tail(old)
        if is_block(old) or is_literal(old):
            beside, _, below = tail.partition("\n")
            self.lost += comments_in(beside)
            tail, column = take_head(old)
            if old.value:
                beside, _, inside = tail.partition("\n")
                self.lost += comments_in(inside)
                tail = f"{beside}\n{below}"
        self._lose(old)
        around.value[around.value.index(pair)] = (key, new)
        if is_block(new):
            beside, _, tail = tail.partition("\n")
            nodes.hang_head(new, beside + "\n", column)
            tail = "\n" + tail
        hang(new, tail, column)

    def _remove(self, around: Node, name: str) -> None:
        """With the comments that are its own: those below it that are indented deeper, and those
        right above it, unless somebody has commented out an entry there."""
        pair = _find(around, name)
        assert pair is not None
        place, (key, value) = around.value.index(pair), pair
        if not is_block(around):
            del around.value[place]
            self._lose(value)
            return
        own, below = _parts(take_tail(value)[0], key)
        self.lost += comments_in(own)
        self._lose(value)
        before = around.value[place - 1][1] if place else None
        above, column = take_tail(before) if place else take_head(around)
        above = above or "\n"
        lines = above.splitlines(keepends=True)
        start = len(lines)
        while start > 1 and lines[start - 1].startswith(" " * _column(key) + "#"):
            start -= 1
        is_head = around is self.root and not place
        if not is_head and not any(map(_OPTION.match, lines[start:])):
            self.lost += comments_in("".join(lines[start:]))
            above = "".join(lines[:start])
        if below.startswith("\n") and (above.endswith("\n\n") or not place):
            below = below[1:]
        del around.value[place]
        if place:
            hang(before, above + below, column)
        else:
            nodes.hang_head(around, above + below, column)

    def _lose(self, value: Node) -> None:
        for node in nodes.walk(value):
            self.gone.append(node)
            for part in node.comment or ():
                for one in part if isinstance(part, list) else [part]:
                    self.lost += comments_in(getattr(one, "value", one) or "")


def _parts(tail: str, key: Node) -> tuple[str, str]:
    """The comments that are an entry's own, beside and below it, indented deeper; and the rest."""
    lines = tail.splitlines(keepends=True) or ["\n"]
    count = 1
    while count < len(lines) and lines[count].startswith(" " * (_column(key) + 1)):
        count += 1
    return "".join(lines[:count]), "".join(lines[count:])


def _column(key: Node) -> int:
    return key.start_mark.column if key.start_mark else 0


def _levels(keys: Keys) -> int:
    """How many levels of a new value at ``keys`` are blocks: sections and entries are, options
    are written in one line, as ``gptq: {wbits: 4}``."""
    return max(0, (2 if keys[0] in ("workers", "services") else 1) - len(keys) + 1)


def _find(mapping: Node, name: str) -> Pair | None:
    """The last of two that are the same, as to PyYAML."""
    pairs = reversed(mapping.value)
    return next((pair for pair in pairs if pair[0].tag != MERGE and pair[0].value == name), None)


def _nested(keys: Keys, value: yaml.Node) -> yaml.Node:
    for key in reversed(keys):
        value = from_python({key: value})
    return value


def _get(meaning: Meaning, keys: Keys) -> Meaning:
    """None if there is nothing."""
    for key in keys:
        meaning = meaning.get(key) if isinstance(meaning, dict) else None
    return meaning


def _with(meaning: Meaning, keys: Keys, value: Meaning) -> Meaning:
    """A new one: what is shared in it must not change for others."""
    if not keys:
        return value
    below = dict(meaning) if isinstance(meaning, dict) else {}
    below[keys[0]] = _with(below.get(keys[0]), keys[1:], value)
    return below


def _without(meaning: Meaning, keys: Keys, keep: int) -> Meaning:
    left = dict(meaning)
    if len(keys) > 1:
        left[keys[0]] = _without(meaning[keys[0]], keys[1:], keep - 1)
    if len(keys) == 1 or (left[keys[0]] == {} and keep <= 0):
        del left[keys[0]]
    return left
