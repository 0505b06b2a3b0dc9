"""Values that are to be written: what they mean, and how they look in YAML."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from supervisor.spec.editing.tree import TEXT, Alias, EditError, flattened

_TAG = "tag:yaml.org,2002:"
_PLAIN_TYPES = {_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}
_QUOTED = '"'


def from_command_line(text: str) -> yaml.Node:
    """``4``, ``true``, ``20GiB``, ``[0, 1]``, ``{a: 1}`` mean what they mean in the file.

    What is no single scalar or flow collection to YAML (``note: this``, ``*.example.com``,
    ``a #b``) is a text, and so is what is empty: a shell takes the quotes away that would say so.
    """
    try:
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        if text.lstrip().startswith(("[", "{")):
            why = getattr(error, "problem", None) or "it does not end"
            raise EditError(f"{text!r} is not YAML: {why}; mend it, or quote it") from None
        return from_python(text)
    whole = node is not None and not text[: node.start_mark.index].strip()
    whole = whole and not text[node.end_mark.index :].strip() and text.lstrip()[0] not in "&|>"
    if isinstance(node, yaml.CollectionNode):
        means_itself = whole and node.flow_style
    else:
        means_itself = whole and node.tag in _PLAIN_TYPES and "\n" not in text
    return from_python(node if means_itself else text)


def from_python(value: Any) -> yaml.Node:
    """A plain value; one that is a node already stays as it is."""
    if isinstance(value, yaml.Node):
        return value
    if isinstance(value, dict):
        return mapping([(str(key), from_python(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return yaml.SequenceNode(_TAG + "seq", [from_python(item) for item in value])
    if isinstance(value, str):
        return yaml.ScalarNode(TEXT, value, style=_QUOTED if _breaks(value) else None)
    if value is None:
        return yaml.ScalarNode(_TAG + "null", "null")
    node: yaml.Node = yaml.representer.SafeRepresenter().represent_data(value)
    return node


def mapping(pairs: list[tuple[str, yaml.Node]]) -> yaml.MappingNode:
    return yaml.MappingNode(_TAG + "map", [(_key(key), value) for key, value in pairs])


def copied(node: yaml.Node) -> yaml.Node:
    """Without anchors, aliases and merges: the same values, standing for themselves."""
    if isinstance(node, Alias):
        return copied(node.target)
    if isinstance(node, yaml.MappingNode):
        return mapping([(key, copied(value)) for key, value in flattened(node)])
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [copied(item) for item in node.value])
    made: Any = copy.copy(node)
    made.style = _QUOTED if _breaks(node.value) else made.style
    return made  # type: ignore[no-any-return]


def one_line(key: str, value: yaml.Node, *, in_flow: bool) -> str:
    """``key: value``. Inside ``{ }`` more texts need quotes than outside."""
    whole = mapping([(key, _flow(value))])
    whole.flow_style = in_flow
    written: str = yaml.serialize(
        whole, Dumper=yaml.SafeDumper, width=10**9, allow_unicode=True
    ).rstrip("\n")
    return written[1:-1] if in_flow else written


def block(key: str, value: yaml.Node, column: int, levels: int, step: int) -> list[str]:
    """Lines: ``levels`` of mappings opened as blocks, what is deeper in one line each."""
    margin = " " * column
    if levels > 0 and isinstance(value, yaml.MappingNode) and value.value:
        lines = [margin + one_line(key, mapping([]), in_flow=False).removesuffix(" {}")]
        for inner, item in value.value:
            lines += block(inner.value, item, column + step, levels - 1, step)
        return lines
    return [margin + one_line(key, value, in_flow=False)]


def _key(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(TEXT, text, style=_QUOTED if _breaks(text) else None)


def _breaks(text: str) -> bool:
    """Whether it would not stay in one line."""
    return any(character in text for character in "\n\r\x85\u2028\u2029")


def _flow(node: yaml.Node) -> yaml.Node:
    """All collections in one line, whatever they were."""
    made = copy.copy(node)
    if isinstance(made, yaml.MappingNode):
        made.value = [(key, _flow(value)) for key, value in made.value]
        made.flow_style = True
    elif isinstance(made, yaml.SequenceNode):
        made.value = [_flow(item) for item in made.value]
        made.flow_style = True
    elif isinstance(made, yaml.ScalarNode) and made.style in ("|", ">"):
        made.style = _QUOTED
    return made
