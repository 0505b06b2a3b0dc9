"""Values that are to be written: what they mean to PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

from supervisor.spec.editing.tree import TAG, TEXT, EditError

_PLAIN_TYPES = {TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp")}


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
        empty = node is not None and not (node.value or node.style)  # `!`, say
        means_itself = whole and not empty and node.tag in _PLAIN_TYPES and "\n" not in text
    return from_python(node if means_itself else text)


def from_python(value: Any) -> yaml.Node:
    """A plain value; one that is a node already stays as it is."""
    if isinstance(value, yaml.Node):
        return value
    if isinstance(value, dict):
        pairs = [(from_python(str(key)), from_python(item)) for key, item in value.items()]
        return yaml.MappingNode(TAG + "map", pairs)
    if isinstance(value, list | tuple):
        return yaml.SequenceNode(TAG + "seq", [from_python(item) for item in value])
    if isinstance(value, str):
        return yaml.ScalarNode(TEXT, value)
    if value is None:
        return yaml.ScalarNode(TAG + "null", "null")
    node: yaml.Node = yaml.representer.SafeRepresenter().represent_data(value)
    return node
