"""The files in configs/ are valid, and name the schema that editors check them with.

Their models are Hugging Face names, so they load on a machine that has none of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from supervisor.core.instance import InstanceSpec
from supervisor.fastchat import roles
from supervisor.spec.load import load

CONFIGS = Path(__file__).parents[1] / "configs"
EXAMPLES = sorted(CONFIGS.glob("*.yaml"))
SCHEMA = json.loads((CONFIGS / "cluster.schema.json").read_text())
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def instances(name: str, environ: dict[str, str] | None = None) -> dict[str, InstanceSpec]:
    file = load(CONFIGS / name, environ or {})
    ports = {name: 21100 + i for i, name in enumerate(roles.without_port(file.cluster))}
    return roles.expand(file, ports, environ or {})


@every_example
def test_it_loads_and_becomes_command_lines(path: Path) -> None:
    assert all(spec.argv for spec in instances(path.name).values())


@every_example
def test_it_names_its_schema_and_follows_it(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=cluster.schema.json"
    jsonschema.validate(yaml.safe_load(text), SCHEMA, jsonschema.Draft202012Validator)


@every_example
def test_it_fits_on_a_screen_or_two(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 100


def test_the_default_cluster() -> None:
    specs = instances("cluster.yaml")
    assert list(specs) == ["controller", "tiny-owl-0", "tiny-owl-1", "tiny-fox-0", "api_server"]
    assert specs["controller"].port == 21001
    assert specs["api_server"].port == 8888
    for name in ("tiny-owl-0", "tiny-owl-1", "tiny-fox-0"):
        assert dict(specs[name].env)["CUDA_VISIBLE_DEVICES"] == ""
        assert "--device cpu" in " ".join(specs[name].argv)
        assert "--conv-template vicuna_v1.1" in " ".join(specs[name].argv)


def test_every_suggestion_in_the_default_cluster_can_be_taken(tmp_path: Path) -> None:
    """With all options that stand there as comments uncommented, it is still valid."""
    text = (CONFIGS / "cluster.yaml").read_text()
    options = re.compile(r"^( *)# ( *(?!yaml-)[\w-]+:( |$))", re.MULTILINE)
    (tmp_path / "models").symlink_to(CONFIGS.parent / "models")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "api-keys.txt").write_text("one\n")
    path = tmp_path / "configs" / "cluster.yaml"
    path.write_text(options.sub(r"\1\2", text))
    cluster = load(path, {"OPENAI_API_KEYS": "two,three"}).cluster
    assert list(cluster.workers) == [
        "tiny-owl",
        "tiny-fox",
        "vicuna-13b",
        "vicuna-7b",
        "mistral-7b",
    ]
    assert list(cluster.services) == ["webui"]
    assert cluster.api_server is not None
    assert cluster.api_server.host == "0.0.0.0"
    assert len(cluster.api_server.api_keys) == 3


def test_a_gpu_server_deals_out_its_gpus() -> None:
    specs = instances("gpu-server.yaml", {"OPENAI_API_KEYS": "a,b"})
    seen = {name: spec.gpus for name, spec in specs.items() if spec.gpus}
    assert seen == {
        "vicuna-13b-0": ("0",),
        "mistral-7b-0": ("1",),
        "mistral-7b-1": ("2",),
        "llama-2-70b-0": ("3", "4"),
    }
    assert specs["api_server"].secret_input == b'{"api_keys": ["a", "b"]}'
    assert specs["webui"].depends_on == ("api_server",)


def test_vllm_runs_under_its_own_python() -> None:
    specs = instances("vllm.yaml")
    assert specs["mixtral-8x7b-0"].argv[0] == "/opt/vllm/bin/python"
    assert specs["mixtral-8x7b-0"].argv[-3:] == ("--enable-prefix-caching", "--swap-space", "8")
    assert specs["api_server"].argv[0] != "/opt/vllm/bin/python"


def test_a_second_machine_starts_no_controller_and_is_reachable() -> None:
    specs = instances("second-machine.yaml")
    assert list(specs) == ["vicuna-7b-0", "codellama-34b-0"]
    assert all(str(spec.address).startswith("http://10.0.0.2:") for spec in specs.values())
    assert all(
        "--controller-address http://10.0.0.1:21001" in " ".join(s.argv) for s in specs.values()
    )
