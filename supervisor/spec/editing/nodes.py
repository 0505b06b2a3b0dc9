"""A file's text as ruamel.yaml's nodes, which carry its comments, and back.

Nodes, not ruamel's dicts: a node keeps the spelling of each scalar (``0755``, ``on``, ``1.10``).
ruamel hangs a comment, and all lines down to the next key, on the last value before it: its *tail*,
where the first line is the one beside the value.
"""

from __future__ import annotations

import difflib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.anchor import Anchor
from ruamel.yaml.composer import Composer
from ruamel.yaml.emitter import Emitter
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.tag import Tag
from ruamel.yaml.tokens import CommentToken

from supervisor.spec.editing.tree import NULL, TAG, TEXT, EditError, NotYaml, flattened

Node = Any
Pair = tuple[Node, Node]
"""A key and its value."""
_RUAMEL = YAML().resolver


class Alias(ScalarNode):
    """``*name`` where it stands; ruamel alone gives only what it stands for, without comments."""

    def __init__(self, target: Node) -> None:
        super().__init__(Tag(suffix=TEXT), _Reference(f"*{target.anchor}"))
        self.target = target


class _Reference(str):
    pass


class _Composer(Composer):
    warn_double_anchors = False

    def return_alias(self, a: Node) -> Alias:
        return Alias(a)


class _Emitter(Emitter):
    def choose_scalar_style(self) -> Any:
        return "" if isinstance(self.event.value, _Reference) else super().choose_scalar_style()

    def write_comment(self, comment: Any, pre: bool = False) -> None:
        if not pre and self.column and comment.value.startswith("#"):
            comment.column = max(comment.column, self.column + 2)
        super().write_comment(comment, pre)


def parse(text: str) -> Node:
    """None if the text holds nothing. Raises EditError."""
    reader = YAML()
    reader.Composer = _Composer
    try:
        root = reader.compose(text)
    except (YAMLError, ValueError):
        raise NotYaml from None
    except RecursionError:
        raise EditError("the file is nested too deeply; flatten it") from None
    for node in walk(root) if root else ():
        if node.id == "scalar" and node.style == ">":  # as ruamel's own representer wants it
            node.value = re.sub(r"\a(?! \S)|(?<=\s)\a", "", node.value)
        if node.anchor:
            name, node.anchor = node.anchor, Anchor()
            node.anchor.value, node.anchor.always_dump = name, True
    if root:
        _hang_on_values(root)
    return root


def _hang_on_values(node: Node) -> Node:
    """Comments that ruamel hangs elsewhere: behind anchors, aliases and empty values."""
    comment = [*(node.comment or ()), None, None, None][:3]
    node.comment = comment[:2]
    if node.anchor and comment[1] and comment[1][0].start_mark.line == node.start_mark.line:
        _move(comment[1], node)
    leaf = node
    if is_block(node):
        for number, item in enumerate(node.value):
            key, value = item if node.id == "mapping" else (item, item)
            if number and key.comment and key.comment[1] and not is_literal(key):
                _move(key.comment[1], leaf)
            value.start_mark = value.start_mark or key.start_mark
            leaf = _hang_on_values(value)
        if comment[2]:
            _move(comment[2], leaf)
    return leaf


def _move(tokens: list[Any], node: Node) -> None:
    mark = tokens[0].start_mark
    beside = node.start_mark and mark.line == node.start_mark.line
    text = tokens[0].value + text_of(tokens[1:]) if beside else "\n" + text_of(tokens)
    if node.comment[0]:
        text = node.comment[0].value.rstrip("\n") + text
    node.comment = [token(text, mark.column), None]
    tokens.clear()


def write(root: Node) -> str:
    if is_block(root) and not root.value:
        return text_of((root.comment or (None, None))[1] or [])
    writer, stream = YAML(), io.StringIO()
    writer.Emitter = _Emitter
    writer.width = 10**9
    writer.allow_unicode = True
    step, sequence = _indents(root)
    writer.indent(mapping=step, sequence=sequence, offset=sequence - 2)
    try:
        writer.serialize(root, stream)
    except YAMLError as error:
        raise EditError(f"ruamel.yaml cannot write it: {error}; edit the file by hand") from None
    return stream.getvalue()


def _indents(root: Node) -> tuple[int, int]:
    """By how much mappings and lists are indented: as most of them are."""
    found: dict[str, Counter[int]] = {"mapping": Counter({2: 0}), "sequence": Counter({2: 0})}
    for around in walk(root):
        for key, value in around.value if around.id == "mapping" else ():
            if is_block(value) and value.value and key.start_mark and value.start_mark:
                inner = value.value[0][0] if value.id == "mapping" else value.value[0]
                found[value.id][inner.start_mark.column - key.start_mark.column] += 1
    step, sequence = (one.most_common(1)[0][0] for one in found.values())
    return max(step, 1), max(sequence, 2)


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for item in node.value if node.id != "scalar" else ():
        for part in item if node.id == "mapping" else (item,):
            yield from walk(part)


def is_block(node: Node) -> bool:
    return node.id != "scalar" and not node.flow_style


def is_literal(node: Node) -> bool:
    return node.id == "scalar" and node.style in ("|", ">")


def is_empty(node: Node) -> bool:
    """``{}`` or null."""
    return not node.value if node.id == "mapping" else bool(node.tag == NULL)


# ---------------------------------------------------------------- new nodes


def made(node: Any, levels: int) -> Node:
    """From PyYAML's node, or a copy of ruamel's; ``levels`` of mappings are blocks, and below 0
    it stands in a flow collection."""
    if node.id == "mapping":
        pairs = [(scalar(key), made(item, levels - 1)) for key, item in flattened(node).items()]
        return MappingNode(Tag(suffix=TAG + "map"), pairs, flow_style=levels <= 0 or not pairs)
    if node.id == "sequence":
        items = [made(item, -1) for item in node.value]
        return SequenceNode(Tag(suffix=TAG + "seq"), items, flow_style=True)
    if isinstance(node, Alias):
        return made(node.target, levels)
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value, node.tag, node.style, in_flow=levels < 0)
    style = '"' if node.style in ("|", ">") else node.style
    return ScalarNode(node.ctag, node.value.replace("\a", ""), style=style)


def scalar(text: str, tag: str = TEXT, style: str | None = None, *, in_flow: bool = True) -> Node:
    """Plain only if PyYAML reads it there as what it is meant to be: ruamel reads YAML 1.2."""
    if any(character in text for character in "\n\r\x85\u2028\u2029"):
        style = '"'
    elif style not in ("'", '"'):
        style = None if _is_plain(text, tag, in_flow) else "'"
    kind = Tag(suffix=tag) if style else _RUAMEL.resolve(ScalarNode, text, (True, False))
    return ScalarNode(kind, text, style=style)


def nothing() -> Node:
    return ScalarNode(Tag(suffix=NULL), "")


def _is_plain(text: str, tag: str, in_flow: bool) -> bool:
    try:
        node: Any = yaml.compose(f"[{text}]" if in_flow else text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    read = node.value if in_flow and node.id == "sequence" else [node]
    found = [one.id == "scalar" and (one.tag, one.value, bool(one.style)) for one in read if one]
    return found == [(tag, text, False)]


# ---------------------------------------------------------------- comments


def take_tail(node: Node) -> tuple[str, int]:
    """Takes off what stands between a value and the next key. Its first line is beside the value,
    at the column that is returned."""
    node = _last(node)
    comment = node.comment and node.comment[0]
    if not comment or is_block(node):
        return "", 0
    node.comment[0] = None
    text = comment.value
    return "\n" + text_of([comment]) if is_literal(node) else text, comment.column


def hang(node: Node, tail: str, column: int = 0) -> None:
    """The opposite."""
    node = _last(node)
    if tail not in ("", "\n"):
        if is_literal(node):
            below = tail.partition("\n")[2]
            tail = below.lstrip(" ")
            column = len(below) - len(tail)
        node.comment = [token(tail, column), (node.comment or (None, None))[1]]


def _last(node: Node) -> Node:
    while is_block(node) and node.value:
        node = node.value[-1][1] if node.id == "mapping" else node.value[-1]
    return node


def take_head(node: Node) -> tuple[str, int]:
    """The same of what stands between the key of a block and its first line."""
    post, pre = node.comment or (None, None)
    node.comment = None
    if is_literal(node):
        return "".join(pre or []).strip() + "\n", 0
    return (post.value, post.column) if post else ("\n" + text_of(pre or []), 0)


def hang_head(node: Node, head: str, column: int) -> None:
    beside, _, lines = head.partition("\n")
    above = [token(lines, 0)] if lines else None
    node.comment = [token(head, column), None] if beside else [None, above]


def text_of(tokens: list[Any]) -> str:
    return "".join(
        one.value if one.value.startswith("\n") else " " * one.column + one.value for one in tokens
    )


def token(text: str, column: int) -> Any:
    return CommentToken(text, CommentMark(column), None)


# ---------------------------------------------------------------- the lines nobody has edited


def merged(old: str, base: str, new: str) -> str:
    """``new``, with lines as in ``old`` where it is like ``base``, the round trip of ``old``."""
    lines, before, after = (text.splitlines(keepends=True) for text in (old, base, new))
    # Lines that only ``old`` has stand between ``first`` and ``last`` of the same line of ``base``.
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for _, i, end, j, stop in _changes([*map(_words, before)], [*map(_words, lines)]):
        together = end - i == stop - j
        for n in range(end - i if together else 1):
            first.setdefault(i + n, j + n)
            last[i + n] = j + n
        first.setdefault(end, stop)
        last[end] = stop
    result: list[str] = []
    done = reached = 0
    for what, i, end, j, stop in _changes(before, after):
        if what == "equal":
            continue
        while i not in last:
            i, j = i - 1, j - 1
        while end not in first:
            end, stop = end + 1, stop + 1
        if i < reached:
            return new
        result += [*lines[done : first[i] if i == end else last[i]], *after[j:stop]]
        done, reached = first[end], end
    return "".join([*result, *lines[done:]])


def _words(line: str) -> str:
    return " ".join(line.split())


def _changes(one: list[str], other: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
