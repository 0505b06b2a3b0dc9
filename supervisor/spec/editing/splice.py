"""One value put into a text, or taken out of it; nothing else of the text changes."""

from __future__ import annotations

import re
from typing import Any

import yaml

from supervisor.spec.editing.tree import (
    MERGE,
    NULL,
    Alias,
    EditError,
    Meaning,
    NotYaml,
    Tree,
    column_of,
    flattened,
    meaning_of,
    meaning_of_node,
    same,
)
from supervisor.spec.editing.values import block, copied, mapping, one_line

Keys = tuple[str, ...]
"""Where a value stands: keys of mappings. Items of lists are not edited one by one."""
Pair = tuple[yaml.Node, yaml.Node]

_BY_HAND = "edit the file by hand"
_WORD = re.compile(r"[A-Za-z0-9._-]+")


def put(text: str, keys: Keys, value: yaml.Node) -> str:
    """``value`` at ``keys``, with the mappings that are missing on the way. Raises EditError."""
    tree = Tree(text)
    if _get(tree.meaning, keys) == meaning_of_node(value):
        return text
    wanted = _with(tree.meaning, keys, meaning_of_node(value))
    return _checked(tree, _put(tree, keys, value), wanted, keys)


def drop(text: str, keys: Keys, keep: int) -> str:
    """Without ``keys``, and without the mappings below the first ``keep`` keys that are empty then.

    Raises EditError.
    """
    tree = Tree(text)
    if _get(tree.meaning, keys) is None:
        raise EditError(f"{'.'.join(keys)} is not set in the file")
    wanted = _without(tree.meaning, keys, keep)
    return _checked(tree, _drop(tree, keys, keep), wanted, keys)


def _checked(tree: Tree, new: str, wanted: Meaning, keys: Keys) -> str:
    """An edit that does what it should and nothing else, or none."""
    if tree.text and not tree.text.endswith("\n"):
        new = new.rstrip("\r\n")
    try:
        good = same(meaning_of(new), wanted)
    except NotYaml:
        good = False
    if good:
        return new
    name = ".".join(keys)
    if anchor := _anchor_above(tree, keys):
        why = f"{name} is part of &{anchor}, which others use too"
    else:
        why = f"cannot change {name} without changing more than that"
    raise EditError(f"{why}; {_BY_HAND}")


# ---------------------------------------------------------------- put


def _put(tree: Tree, keys: Keys, value: yaml.Node) -> str:
    if tree.root is None or _is_null(tree.root):
        return _append(tree, keys, value)
    around: tuple[yaml.MappingNode, Pair] | None = None
    node = tree.root
    for depth, key in enumerate(keys):
        here, rest = keys[:depth], keys[depth:]
        if isinstance(node, Alias):  # those who share it keep what they have
            return _put(tree, here, _node_with(copied(node.target), rest, value))
        empty = _is_null(node) or (isinstance(node, yaml.MappingNode) and not node.value)
        if empty and around:
            return _replace(tree, *around, _nested(rest, value), here)
        if not isinstance(node, yaml.MappingNode):
            name = ".".join(here) or "the file"
            raise EditError(f"{name} is no mapping, so it cannot hold {key!r}; {_BY_HAND}")
        pair = _own(node, key)
        if pair is None:
            inherited = dict(flattened(node)).get(key)
            if inherited is None or len(rest) == 1:
                made = _nested(rest[1:], value)
            else:
                made = _node_with(copied(inherited), rest[1:], value)
            return _insert(tree, node, made, keys[: depth + 1])
        around, node = (node, pair), pair[1]
    assert around is not None
    return _replace(tree, *around, value, keys)


def _append(tree: Tree, keys: Keys, value: yaml.Node) -> str:
    """To a file that holds nothing but comments."""
    text = tree.text
    if text and not text.endswith("\n"):
        text += tree.eol
    if text.strip() and text.splitlines()[-1].strip():
        text += tree.eol
    made = _nested(keys[1:], value)
    return text + _lines(tree, block(keys[0], made, 0, _levels(keys[:1]), tree.step))


def _insert(tree: Tree, node: yaml.MappingNode, value: yaml.Node, keys: Keys) -> str:
    """A key that its mapping does not have yet, behind the last one."""
    text, key = tree.text, keys[-1]
    if node.flow_style:
        new = one_line(key, value, in_flow=True)
        if not node.value:
            return _spliced(tree, tree.end(node) - 1, tree.end(node) - 1, new)
        end = tree.end(node.value[-1][1])
        return _spliced(tree, end, end, f", {new}")
    column = column_of(node)
    place = _below(tree, tree.end(node), column)
    new = _lines(tree, block(key, value, column, _levels(keys), tree.step))
    if _levels(keys) and _are_separated(tree, node):
        new = tree.eol + new
    if not text[:place].endswith("\n"):
        new = tree.eol + new
    return _spliced(tree, place, place, new)


def _replace(tree: Tree, around: yaml.MappingNode, pair: Pair, value: yaml.Node, keys: Keys) -> str:
    text, (key, old) = tree.text, pair
    start, end = old.start_mark.index, tree.end(old)
    _refuse_shared(tree, start, end, keys)
    opened = not around.flow_style and _levels(keys) > 0 and _is_filled(value)
    inline = one_line("k", value, in_flow=bool(around.flow_style))[len("k: ") :]
    if not opened and not _is_block(old):
        if start == end:  # `key:` with nothing, or `{key}`
            inline = f" {inline}" if ":" in text[key.end_mark.index : start] else f": {inline}"
        return _spliced(tree, start, end, inline)
    # The key's line keeps its comment; the old value's lines go.
    colon = text.index(":", key.end_mark.index) + 1
    head, comment = text[:colon], tree.comment(colon, tree.next_line(colon))
    lines = [""]
    if opened:
        lines += block(key.value, value, column_of(around), _levels(keys), tree.step)[1:]
    else:
        lines[0] = f" {inline}"
    if comment is not None:
        before = text[:comment]
        space = before[len(before.rstrip(" ")) :]
        lines[0] += (space or " ") + text[comment : tree.next_line(comment)].rstrip()
    return head + _lines(tree, lines) + text[max(tree.next_line(end), colon) :]


# ---------------------------------------------------------------- drop


def _drop(tree: Tree, keys: Keys, keep: int) -> str:
    trail: list[tuple[yaml.MappingNode, Pair]] = []
    node = tree.root
    for depth, key in enumerate(keys):
        rest = keys[depth:]
        if isinstance(node, Alias):
            left = _node_without(copied(node.target), rest)
            if not left.value and depth > keep:
                return _drop(tree, keys[:depth], keep)
            return _put(tree, keys[:depth], left)
        assert isinstance(node, yaml.MappingNode)
        pair = _own(node, key)
        if pair is None:
            if len(rest) == 1:
                name = ".".join(keys)
                raise EditError(f"{name} comes from an anchor (`<<`); set another, or {_BY_HAND}")
            left = _node_without(copied(dict(flattened(node))[key]), rest[1:])
            return _insert(tree, node, left, keys[: depth + 1])
        trail.append((node, pair))
        node = pair[1]
    while len(trail) - 1 > keep and len(trail[-1][0].value) == 1:
        trail.pop()
    around, pair = trail[-1]
    _refuse_shared(tree, pair[0].start_mark.index, tree.end(pair[1]), keys)
    if around.flow_style:
        return _cut_item(tree, around, pair, keys)
    return _cut_lines(tree, around, pair, keys)


def _cut_item(tree: Tree, around: yaml.MappingNode, pair: Pair, keys: Keys) -> str:
    """Out of ``{a: 1, b: 2}``, with one of its commas."""
    pairs: list[Pair] = around.value
    number = pairs.index(pair)
    start, end = pair[0].start_mark.index, tree.end(pair[1])
    if number + 1 < len(pairs):
        end = pairs[number + 1][0].start_mark.index
    elif number > 0:
        start = tree.end(pairs[number - 1][1])
    if tree.comment(start, end) is not None:
        raise EditError(f"cannot tell whose the comments beside {'.'.join(keys)} are; {_BY_HAND}")
    return _spliced(tree, start, end, "")


def _cut_lines(tree: Tree, around: yaml.MappingNode, pair: Pair, keys: Keys) -> str:
    """The entry with its comments, and a blank line of those around it."""
    text, column = tree.text, column_of(around)
    start = tree.line(pair[0].start_mark.index)
    if text[start : pair[0].start_mark.index].strip():
        raise EditError(f"{'.'.join(keys)} does not stand in a line of its own; {_BY_HAND}")
    end = _below(tree, tree.end(pair[1]), column)
    first = around.value[0] is pair
    if not (first and around is tree.root):  # there, the file's own head stands
        start = _above(tree, start, column)
    blank_above = start > 0 and not text[tree.line(start - 1) : start].strip()
    blank_below = end < len(text) and not text[end : tree.next_line(end)].strip()
    if blank_below and (blank_above or first):
        end = tree.next_line(end)
    elif end == len(text):
        while start > 0 and not text[tree.line(start - 1) : start].strip():
            start = tree.line(start - 1)
    return _spliced(tree, start, end, "")


def _above(tree: Tree, start: int, column: int) -> int:
    """Where the comment begins that stands right above a key, in its column: it is the key's.

    Unless it is an entry that somebody has commented out: that stays.
    """
    place = start
    while place > 0:
        above = tree.line(place - 1)
        if above + column not in tree.comments or tree.text[above : above + column].strip():
            break
        place = above
    lines = [line.strip().lstrip("#") for line in tree.text[place:start].splitlines()]
    return start if any(_is_entry(lines[i:]) for i in range(len(lines))) else place


def _is_entry(lines: list[str]) -> bool:
    try:
        found = yaml.safe_load("\n".join(lines))
    except (yaml.YAMLError, ValueError):
        return False
    return isinstance(found, dict) and all(_WORD.fullmatch(str(key)) for key in found)


# ---------------------------------------------------------------- lines


def _below(tree: Tree, end: int, column: int) -> int:
    """The line below an entry and the comments that are indented deeper than its key."""
    place = line = tree.next_line(end)
    while line < len(tree.text):
        below = tree.next_line(line)
        words = tree.text[line:below].lstrip(" ")
        if words.startswith("#") and below - line - len(words) > column:
            place = below
        elif words.strip():
            break
        line = below
    return place


def _are_separated(tree: Tree, node: yaml.MappingNode) -> bool:
    """Whether the file sets entries of this mapping apart by blank lines."""
    if len(node.value) < 2:
        return node is tree.root
    (_, before), (after, _) = node.value[-2:]
    between = tree.text[tree.next_line(tree.end(before)) : tree.line(after.start_mark.index)]
    return any(not line.strip() for line in between.splitlines())


def _lines(tree: Tree, lines: list[str]) -> str:
    return "".join(line + tree.eol for line in lines)


def _spliced(tree: Tree, start: int, end: int, new: str) -> str:
    """A comment behind it in the same line keeps its column if others stand there, too."""
    text = tree.text
    comment = tree.comment(end, tree.next_line(end))
    if comment is None or "\n" in text[start:end] + new:
        return text[:start] + new + text[end:]
    between = text[end:comment].rstrip(" ")
    space = comment - end - len(between)
    if space > 2 or tree.column(comment) in (tree.column(c) for c in tree.comments if c != comment):
        space = max(min(space, 2), space - (len(new) - (end - start)))
    return text[:start] + new + between + " " * space + text[comment:]


# ---------------------------------------------------------------- nodes and meanings


def _levels(keys: Keys) -> int:
    """How many levels of a new value at ``keys`` are blocks: sections and entries are, options
    are written in one line, as ``gptq: {wbits: 4}``."""
    return max(0, (2 if keys[0] in ("workers", "services") else 1) - len(keys) + 1)


def _own(node: yaml.MappingNode, key: str) -> Pair | None:
    return next((p for p in node.value if p[0].tag != MERGE and p[0].value == key), None)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == NULL


def _is_filled(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and bool(node.value)


def _is_block(node: yaml.Node) -> bool:
    if isinstance(node, yaml.CollectionNode):
        return not node.flow_style
    return isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")


def _refuse_shared(tree: Tree, start: int, end: int, keys: Keys) -> None:
    if anchor := tree.shared(start, end):
        text = f"{'.'.join(keys)} holds &{anchor}, which others use too; {_BY_HAND}"
        raise EditError(text)


def _anchor_above(tree: Tree, keys: Keys) -> str | None:
    """An anchor on the way to ``keys`` that is used elsewhere."""
    used = {node.name for node in tree.nodes() if isinstance(node, Alias)}
    node: Any = tree.root
    for key in keys:
        pair = _own(node, key) if isinstance(node, yaml.MappingNode) else None
        if pair is None:
            return None
        node = pair[1]
        if getattr(node, "anchor", None) in used:
            return str(node.anchor)
    return None


def _nested(keys: Keys, value: yaml.Node) -> yaml.Node:
    for key in reversed(keys):
        value = mapping([(key, value)])
    return value


def _node_with(node: yaml.Node, keys: Keys, value: yaml.Node) -> yaml.Node:
    if not keys:
        return value
    if not isinstance(node, yaml.MappingNode):
        raise EditError(f"what an anchor brings is no mapping, so it cannot hold {keys[0]!r}")
    items = {key.value: item for key, item in node.value}
    below = items.get(keys[0])
    items[keys[0]] = _node_with(below, keys[1:], value) if below else _nested(keys[1:], value)
    return mapping(list(items.items()))


def _node_without(node: yaml.Node, keys: Keys) -> yaml.Node:
    assert isinstance(node, yaml.MappingNode)
    items = {key.value: item for key, item in node.value}
    below = items.pop(keys[0])
    if len(keys) > 1 and (left := _node_without(below, keys[1:])).value:
        items[keys[0]] = left
    return mapping(list(items.items()))


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
