"""The JSON schema: what editors are told agrees with what the loader accepts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from supervisor.spec.model import WORKER_KINDS, Cluster
from supervisor.spec.schema import json_schema

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property at any depth, definitions included."""
    if isinstance(schema, list):
        for i, item in enumerate(schema):
            yield from properties(item, f"{path}[{i}]")
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "properties":
                for name, field in value.items():
                    yield f"{path}.{name}", field
            yield from properties(value, f"{path}.{key}")


def is_accepted(text: str) -> bool:
    return bool(VALIDATOR.is_valid(yaml.safe_load(text)))


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_field_has_a_description() -> None:
    found = dict(properties(SCHEMA))
    assert len(found) > 200
    assert [path for path, field in found.items() if not field.get("description", "").strip()] == []
    assert set(SCHEMA["properties"]) == set(Cluster.model_fields)


def test_every_section_has_a_description() -> None:
    assert [name for name, part in SCHEMA["$defs"].items() if not part.get("description")] == []


def test_defaults_describe_their_fields_as_the_kinds_do() -> None:
    of_kinds = {
        (name, field["description"])
        for worker in WORKER_KINDS.values()
        for name, field in SCHEMA["$defs"][worker.__name__]["properties"].items()
    }
    of_defaults = SCHEMA["$defs"]["Defaults"]["properties"].items()
    assert {(name, field["description"]) for name, field in of_defaults} <= of_kinds


def test_the_command_prints_it() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "supervisor", "schema"], capture_output=True, check=True, text=True
    )
    assert json.loads(printed.stdout) == SCHEMA


(BRANCHES,) = (
    named["oneOf"]
    for named in SCHEMA["properties"]["workers"]["anyOf"][0]["patternProperties"].values()
)


@pytest.mark.parametrize(
    ("worker", "kind"),
    [
        ({"model_path": "x"}, "ModelWorker"),
        ({"model_path": "x", "gptq": {"act_order": True}}, "ModelWorker"),
        ({"kind": "model_worker", "model_path": "x"}, "ModelWorker"),
        ({"kind": "vllm_worker", "model_path": "x"}, "VllmWorker"),
        ({"kind": "vllm_worker", "model_path": "x", "quantization": "awq"}, "VllmWorker"),
        ({"kind": "sglang_worker", "model_path": "x"}, "SglangWorker"),
        ({"kind": "lightllm_worker", "model_path": "x"}, "LightllmWorker"),
        ({"kind": "mlx_worker", "model_path": "x"}, "MlxWorker"),
        ({"kind": "huggingface_api_worker", "model_info_file": "x"}, "HuggingfaceApiWorker"),
        (
            {
                "kind": "multi_model_worker",
                "models": [{"model_path": "x", "model_names": ["y"]}],
            },
            "MultiModelWorker",
        ),
    ],
)
def test_a_worker_is_of_exactly_one_kind(worker: dict[str, Any], kind: str) -> None:
    matching = [
        branch["$ref"].rpartition("/")[2]
        for branch in BRANCHES
        if VALIDATOR.evolve(schema={**branch, "$defs": SCHEMA["$defs"]}).is_valid(worker)
    ]
    assert matching == [kind]


def test_a_worker_needs_its_model_and_nothing_else() -> None:
    needed = {
        name: set(SCHEMA["$defs"][worker.__name__].get("required", ()))
        for name, worker in WORKER_KINDS.items()
    }
    assert needed == {
        "model_worker": {"model_path"},
        "multi_model_worker": {"kind", "models"},
        "vllm_worker": {"kind", "model_path"},
        "sglang_worker": {"kind", "model_path"},
        "lightllm_worker": {"kind", "model_path"},
        "mlx_worker": {"kind", "model_path"},
        "huggingface_api_worker": {"kind", "model_info_file"},
    }


@pytest.mark.parametrize(
    "text",
    [
        "workers: {a: {model_path: x, restart: never, gpus: 0, env: {N: 4, B: yes, R: 1.5}}}",
        "workers: {a: {model_path: x, gpus: '0,1', model_names: 'a,b', args: [--n, 4]}}",
        "workers: {a: {model_path: x, stop_grace: 1m 30s, gptq: null}}",
        "workers:\nservices:\ndefaults:\ncontroller:\napi_server:\n",
        "port_range: 1-2\nx-mine: {anything: [goes]}",
        "port_range: [1, 2]\napi_server: {api_keys: 'a,b'}",
        "logs: {max_size: 10MiB}",
    ],
)
def test_editors_accept_every_form_that_the_loader_accepts(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))
    Cluster.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "api_sever: {}",
        "workers: {a/b: {model_path: x}}",
        "workers: {a: {}}",
        "workers: {a: {model_path: x, wbits: 4}}",
        "workers: {a: {model_path: x, kind: vllm}}",
        "workers: {a: {model_path: x, port: 0}}",
        "workers: {a: {model_path: x, port: 70000}}",
        "workers: {a: {model_path: x, stop_grace: soon}}",
        "workers: {a: {model_path: x, env: {A-B: c}}}",
        "services: {a: {command: []}}",
        "port_range: [1, 2, 3]",
        "logs: {max_size: large}",
    ],
)
def test_editors_mark_what_the_loader_refuses(text: str) -> None:
    assert not is_accepted(text)


def test_the_generated_files_are_current() -> None:
    script = Path(__file__).parents[2] / "scripts" / "make_docs.py"
    check = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
