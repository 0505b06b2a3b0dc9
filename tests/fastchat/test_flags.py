"""Every field of the file reaches FastChat: its own argument parsers are the judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer import Writer

from supervisor.core.instance import InstanceSpec
from supervisor.fastchat import roles
from supervisor.spec.model import WORKER_KINDS

PARSERS = Path(__file__).with_name("fastchat_parsers.py")


class FastChat:
    """Answers with what FastChat makes of a command line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def parse(self, spec: InstanceSpec) -> tuple[dict[str, Any], list[str]]:
        """The arguments by name, and the words that the parser does not know."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        module = Path(spec.argv[1]).stem
        print(json.dumps([module, spec.argv[2:]]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, f"{answer['error']}\n{spec.argv}"
        return answer["parsed"], answer["unknown"]


@pytest.fixture(scope="module")
def fastchat() -> Iterator[FastChat]:
    process = subprocess.Popen(
        [sys.executable, PARSERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "LOGDIR": "", "CUDA_VISIBLE_DEVICES": ""},
    )
    with process:
        yield FastChat(process)
        assert process.stdin is not None
        process.stdin.close()


def instances(folder: Path, values: dict[str, Any]) -> dict[str, InstanceSpec]:
    file = Writer(folder).load(yaml.safe_dump(values))
    ports = {name: 21100 + i for i, name in enumerate(roles.without_port(file.cluster))}
    return roles.expand(file, ports, {})


def worker(folder: Path, **options: Any) -> InstanceSpec:
    return instances(folder, {"workers": {"owl": options}})["owl-0"]


# ---------------------------------------------------------------- one service of each kind

NET = {
    "host": "127.0.0.1",
    "port": 21100,
    "worker_address": "http://127.0.0.1:21100",
    "controller_address": "http://127.0.0.1:21001",
}
LOADING = {
    "device": "cuda",
    "max_gpu_memory": "20GiB",
    "stream_interval": 3,
    "limit_worker_concurrency": 4,
}

# Each row: options in the file; what FastChat has to make of them.
WORKERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"model_path": "a/b"},
        {"model_path": "a/b", "model_names": ["owl"], "no_register": True, "gpus": None},
    ),
    (
        {
            **LOADING,
            "model_path": "a/b",
            "model_names": ["m", "n"],
            "conv_template": "vicuna_v1.1",
            "revision": "v2",
            "dtype": "bfloat16",
            "gpus": [4, 5],
            "load_8bit": True,
            "cpu_offloading": True,
            "embed_in_truncate": True,
            "seed": -7,
            "debug": True,
        },
        {
            **LOADING,
            "model_path": "a/b",
            "model_names": ["m", "n"],
            "conv_template": "vicuna_v1.1",
            "revision": "v2",
            "dtype": "bfloat16",
            "gpus": None,  # FastChat would set them too late (#2360)
            "num_gpus": 2,
            "load_8bit": True,
            "cpu_offloading": True,
            "embed_in_truncate": True,
            "seed": -7,
            "debug": True,
            "no_register": True,
            "ssl": False,
        },
    ),
    (
        {
            "model_path": "x",
            "gptq": {"ckpt": "c.pt", "wbits": 4, "groupsize": 128, "act_order": True},
        },
        {
            "gptq_ckpt": "c.pt",
            "gptq_wbits": 4,
            "gptq_groupsize": 128,
            "gptq_act_order": True,
            "awq_wbits": 16,
            "enable_exllama": False,
        },
    ),
    (
        {"model_path": "x", "awq": {"ckpt": "c.pt", "wbits": 4, "groupsize": -1}},
        {"awq_ckpt": "c.pt", "awq_wbits": 4, "awq_groupsize": -1, "gptq_wbits": 16},
    ),
    (
        {
            "model_path": "x",
            "exllama": {"max_seq_len": 2048, "gpu_split": "20,7", "cache_8bit": True},
        },
        {
            "enable_exllama": True,
            "exllama_max_seq_len": 2048,
            "exllama_gpu_split": "20,7",
            "exllama_cache_8bit": True,
        },
    ),
    (
        {"model_path": "x", "device": "cpu", "xft": {"max_seq_len": 512, "dtype": "bf16_int8"}},
        {"enable_xft": True, "xft_max_seq_len": 512, "xft_dtype": "bf16_int8", "device": "cpu"},
    ),
    (
        {
            **LOADING,
            "kind": "multi_model_worker",
            "models": [
                {"model_path": "a", "model_names": ["m", "n"], "conv_template": "one"},
                {"model_path": "b", "model_names": ["o"]},
            ],
            "num_gpus": 2,
            "gptq": {"wbits": 8},
        },
        {
            **LOADING,
            "model_path": ["a", "b"],
            "model_names": [["m", "n"], ["o"]],
            "conv_template": ["one", ""],  # "": FastChat chooses by the model path
            "num_gpus": 2,
            "gptq_wbits": 8,
            "no_register": True,
        },
    ),
    (
        {
            "kind": "multi_model_worker",
            "models": [
                {"model_path": "a", "model_names": ["m"], "conv_template": "one"},
                {"model_path": "b", "model_names": ["n"]},
            ],
            "conv_template": "all",
        },
        {"conv_template": ["one", "all"]},
    ),
    (
        {"kind": "multi_model_worker", "models": [{"model_path": "a", "model_names": ["m"]}]},
        {"model_path": ["a"], "model_names": [["m"]], "conv_template": None},
    ),
    (
        {
            "kind": "vllm_worker",
            "model_path": "a/b",
            "model_names": ["m"],
            "conv_template": "t",
            "gpus": [0, 1],
            "limit_worker_concurrency": 9,
            "gpu_memory_utilization": 0.5,
        },
        {
            "model_path": "a/b",
            "model_names": ["m"],
            "conv_template": "t",
            "num_gpus": 2,
            "limit_worker_concurrency": 9,
            "gpu_memory_utilization": 0.5,
            "trust_remote_code": True,
            "no_register": True,
        },
    ),
    (
        {"kind": "vllm_worker", "model_path": "a/b", "trust_remote_code": False},
        {"trust_remote_code": False, "num_gpus": 1, "gpu_memory_utilization": 0.9},
    ),
    (
        {
            "kind": "sglang_worker",
            "model_path": "a/b",
            "tokenizer_path": "c/d",
            "conv_template": "t",
            "num_gpus": 2,
            "limit_worker_concurrency": 9,
            "mem_fraction_static": 0.7,
            "trust_remote_code": False,
            "multimodal": True,
        },
        {
            "model_path": "a/b",
            "tokenizer_path": "c/d",
            "conv_template": "t",
            "num_gpus": 2,
            "limit_worker_concurrency": 9,
            "mem_fraction_static": 0.7,
            "trust_remote_code": False,
            "multimodal": True,
            "no_register": True,
        },
    ),
    (
        {"kind": "sglang_worker", "model_path": "a/b"},
        {"tokenizer_path": "", "trust_remote_code": True, "multimodal": False},
    ),
    (
        {
            "kind": "lightllm_worker",
            "model_path": "a/b",
            "gpus": [0, 1],
            "limit_worker_concurrency": 9,
            "tokenizer_mode": "auto",
            "max_total_token_num": 6000,
            "max_req_input_len": 2000,
            "max_req_total_len": 3000,
            "mode": ["triton_int8kv", "triton_flashdecoding"],
            "trust_remote_code": True,
        },
        {
            "model_dir": "a/b",
            "model_names": ["owl"],
            "tp": 2,
            "limit_worker_concurrency": 9,
            "tokenizer_mode": "auto",
            "max_total_token_num": 6000,
            "max_req_input_len": 2000,
            "max_req_total_len": 3000,
            "mode": ["triton_int8kv", "triton_flashdecoding"],
            "trust_remote_code": True,
            "no_register": True,
        },
    ),
    (
        {"kind": "mlx_worker", "model_path": "a/b", "conv_template": "t"},
        {"model_path": "a/b", "model_names": ["owl"], "conv_template": "t"},
    ),
    (
        {"kind": "mlx_worker", "model_path": "a/b", "trust_remote_code": False},
        {"trust_remote_code": False},
    ),
    (
        {
            "kind": "huggingface_api_worker",
            "model_info_file": "info.json",
            "seed": 3,
            "limit_worker_concurrency": 9,
        },
        {
            "model_info_file": "{folder}/info.json",
            "seed": 3,
            "limit_worker_concurrency": 9,
            "no_register": True,
        },
    ),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(*row, id=f"{row[0].get('kind', 'model_worker')}-{i}")
        for i, row in enumerate(WORKERS)
    ],
)
def test_a_worker_gets_what_the_file_says(
    tmp_path: Path, fastchat: FastChat, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    (tmp_path / "info.json").write_text("{}")
    parsed, unknown = fastchat.parse(worker(tmp_path, **options))
    expected = {
        name: value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in {**NET, **expected}.items()
    }
    assert {name: parsed.get(name, "no such flag") for name in expected} == expected
    assert unknown == []


def test_every_kind_is_judged() -> None:
    assert {row[0].get("kind", "model_worker") for row in WORKERS} == set(WORKER_KINDS)


def test_options_of_the_vllm_engine_stand_as_vllm_names_them(
    tmp_path: Path, fastchat: FastChat
) -> None:
    """FastChat's parser does not know them; vLLM, which is not installed here, adds its own."""
    spec = worker(
        tmp_path,
        kind="vllm_worker",
        model_path="x",
        dtype="bfloat16",
        quantization="awq",
        max_model_len=4096,
        revision="v2",
        args=["--swap-space", 8],
    )
    _, unknown = fastchat.parse(spec)
    assert dict(zip(unknown[::2], unknown[1::2], strict=True)) == {
        "--dtype": "bfloat16",
        "--quantization": "awq",
        "--max-model-len": "4096",
        "--revision": "v2",
        "--swap-space": "8",
    }


def test_the_servers_get_what_the_file_says(tmp_path: Path, fastchat: FastChat) -> None:
    specs = instances(
        tmp_path,
        {
            "controller": {"host": "0.0.0.0", "port": 9001, "dispatch_method": "lottery"},
            "api_server": {
                "host": "127.0.0.2",
                "port": 9002,
                "allow_credentials": True,
                "allowed_origins": ["http://a", 'http://"b"'],
                "allowed_methods": ["GET"],
                "allowed_headers": [],
                "api_keys": ["sk-1"],
            },
            "web_server": {
                "port": 9003,
                "share": True,
                "concurrency_count": 3,
                "model_list_mode": "once",
            },
        },
    )
    controller = {"host": "0.0.0.0", "port": 9001, "dispatch_method": "lottery", "ssl": False}
    assert fastchat.parse(specs["controller"]) == (controller, [])
    assert fastchat.parse(specs["api_server"]) == (
        {
            "host": "127.0.0.2",
            "port": 9002,
            "controller_address": "http://127.0.0.1:9001",
            "allow_credentials": True,
            "allowed_origins": ["http://a", 'http://"b"'],
            "allowed_methods": ["GET"],
            "allowed_headers": [],
            "api_keys": None,  # they go through stdin
            "ssl": False,
        },
        [],
    )
    parsed, unknown = fastchat.parse(specs["web_server"])
    assert unknown == []
    assert (parsed["host"], parsed["port"], parsed["share"]) == ("127.0.0.1", 9003, True)
    assert (parsed["concurrency_count"], parsed["model_list_mode"]) == (3, "once")
    assert parsed["controller_url"] == "http://127.0.0.1:9001"


def test_further_flags_come_last_and_verbatim(tmp_path: Path) -> None:
    spec = worker(tmp_path, model_path="x", args=["--enable-xft", "--xft-dtype", "int8"])
    assert spec.argv[-3:] == ("--enable-xft", "--xft-dtype", "int8")


# ---------------------------------------------------------------- any model_worker

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cc"]), min_size=1)
literal = (words | words.map("-{}".format)).map(lambda text: text.replace("$", "$$"))
hub_name = literal.map(lambda text: "hub/m" + text.replace("/", ""))
options = st.fixed_dictionaries(
    {"model_path": hub_name},
    optional={
        "revision": literal,
        "conv_template": literal,
        "model_names": st.lists(
            literal.map(lambda text: text.replace(",", ";")), min_size=1, max_size=3
        ),
        "device": st.sampled_from(["cuda", "mps", "xpu", "npu"]),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
        "num_gpus": st.integers(1, 8),
        "max_gpu_memory": st.integers(1, 99).map("{}GiB".format),
        "debug": st.booleans(),
        "embed_in_truncate": st.booleans(),
        "limit_worker_concurrency": st.integers(1, 10**6),
        "stream_interval": st.integers(1, 10**6),
        "seed": st.integers(-(2**63), 2**63),
    },
)


def unescaped(value: Any) -> Any:
    if isinstance(value, list):
        return [unescaped(item) for item in value]
    return value.replace("$$", "$") if isinstance(value, str) else value


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(given_options=options)
def test_any_option_arrives_with_its_value(
    tmp_path: Path, fastchat: FastChat, given_options: dict[str, Any]
) -> None:
    parsed, unknown = fastchat.parse(worker(tmp_path, **given_options))
    assert unknown == []
    for name, value in given_options.items():
        assert parsed[name] == unescaped(value), name
