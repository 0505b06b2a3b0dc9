"""The JSON schema of the cluster file, for editors and for the generated documentation."""

from __future__ import annotations

from typing import Any

from supervisor.spec.model import Cluster


def json_schema() -> dict[str, Any]:
    """A JSON schema (2020-12) in which every property has a description."""
    schema = Cluster.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llm-supervisor cluster file"
    return schema
