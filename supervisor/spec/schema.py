"""The JSON schema of the cluster file, for editors and for the generated documentation."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from supervisor.spec import model


def json_schema() -> dict[str, Any]:
    """A JSON schema (2020-12) in which every property has a description."""
    described = _with_descriptions()
    for one in vars(described).values():  # pydantic serializes defaults of models that are built
        if isinstance(one, type) and issubclass(one, BaseModel) and one is not BaseModel:
            one.model_rebuild()
    schema: dict[str, Any] = _tidy(described.Cluster.model_json_schema())
    for name in ("Gptq", "Awq"):
        del schema["$defs"][name]["required"]  # `defaults` may hold what a worker leaves out
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-supervisor cluster file",
        **schema,
    }


def _with_descriptions() -> ModuleType:
    """The model read a second time, and now with the texts under its fields."""
    found = spec_from_file_location("supervisor.spec.described_model", model.__file__)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = module_from_spec(found)  # pydantic looks for it there
    found.loader.exec_module(module)
    return module


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
