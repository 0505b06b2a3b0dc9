"""The JSON schema of the cluster file, for editors and for the generated documentation."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from pydantic import BaseModel

from supervisor.spec import model
from supervisor.spec.model import Cluster


def json_schema() -> dict[str, Any]:
    """A JSON schema (2020-12) in which every property has a description."""
    for one in vars(model).values():  # pydantic serializes defaults of models that are built
        if isinstance(one, type) and issubclass(one, BaseModel) and one is not BaseModel:
            one.model_rebuild()
    schema: dict[str, Any] = _tidy(_described(Cluster.model_json_schema()))
    for name in ("Gptq", "Awq"):
        del schema["$defs"][name]["required"]  # `defaults` may hold what a worker leaves out
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-supervisor cluster file",
        **schema,
    }


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """With the strings under the fields. pydantic could look for them as well (``use_attribute_
    docstrings``), but it does so when the models are imported, which is at every start."""
    texts = _texts()
    for name, part in {"Cluster": schema, **schema["$defs"]}.items():
        owners = model.WORKER_KINDS.values() if name == "Defaults" else [getattr(model, name)]
        properties = part.get("properties", {})
        for field, about in properties.items():
            found = (
                texts.get(base.__name__, {}).get(field) for one in owners for base in one.__mro__
            )
            text = next(filter(None, found), None)
            if text is not None:
                properties[field] = dict(sorted(({"description": text} | about).items()))
    return schema


def _texts() -> dict[str, dict[str, str]]:
    """By class and field, the string under it."""
    texts: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(model)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts.setdefault(node.name, {})[name] = inspect.cleandoc(text)
    return texts


def _tidy(schema: Any) -> Any:
    """Without pydantic's titles and the defaults of whole sections; names as strict as ours."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidy(value) for key, value in schema.items()}
    if isinstance(tidy.get("title"), str):
        del tidy["title"]
    if "default" in tidy and (tidy["default"] is None or isinstance(tidy["default"], dict)):
        del tidy["default"]
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if "patternProperties" in tidy:
        tidy["additionalProperties"] = False
    return tidy
