"""The JSON schema of the cluster file, for editors and for the generated documentation."""

from __future__ import annotations

from typing import Any

from supervisor.spec.model import Cluster


def json_schema() -> dict[str, Any]:
    """A JSON schema (2020-12) in which every property has a description."""
    schema: dict[str, Any] = _tidy(Cluster.model_json_schema())
    for name in ("Gptq", "Awq"):
        del schema["$defs"][name]["required"]  # `defaults` may hold what a worker leaves out
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-supervisor cluster file",
        **schema,
    }


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
