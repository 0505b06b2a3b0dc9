"""A first cluster file: its values, and a text that says exactly those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.spec.document import parse
from supervisor.spec.first import WIDTH, First, text_of, values_of
from supervisor.spec.load import load_text


def workers(*models: str, **options: Any) -> dict[str, Any]:
    asked = First([{"model_path": model, **options} for model in models])
    found: dict[str, Any] = values_of(asked)["workers"]
    return found


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["lmsys/vicuna-7b-v1.5"], ["vicuna-7b-v1.5"]),
        (["/data/owl/"], ["owl"]),
        (["~/my models/a b"], ["a-b"]),
        (["./.hidden"], ["hidden"]),
        (["../.."], ["model"]),
        (["./模型"], ["model"]),
        (["a/x", "b/x", "c/x"], ["x", "x.2", "x.3"]),
        (["a/llama", "a/llama-0"], ["llama", "llama-0.2"]),  # llama-0 is the first one's replica
        (["a/llama-12", "a/llama"], ["llama-12", "llama.2"]),
        (["a/controller", "a/supervisor"], ["controller.2", "supervisor.2"]),
        (["a/" + "x" * 90], ["x" * 59]),
    ],
)
def test_a_worker_is_called_as_its_model(models: list[str], names: list[str]) -> None:
    assert list(workers(*models)) == names


def test_clients_use_the_models_own_name_where_the_worker_has_another() -> None:
    found = workers("a/x", "b/x", "./a b", "../..")
    assert "model_names" not in found["x"]
    assert found["x.2"]["model_names"] == ["x"]
    assert found["a-b"]["model_names"] == ["a b"]
    assert "model_names" not in found["model"]
    assert "model_names" not in workers("a/x", model_names=["x"])["x"]
    assert workers("a/x", "b/x", model_names=["y"])["x.2"]["model_names"] == ["y"]


# ---------------------------------------------------------------- values


def test_what_is_the_default_anyway_is_left_out() -> None:
    asked = First(
        [{"model_path": "a/x", "host": "127.0.0.1", "device": "cuda", "replicas": 1, "gpus": None}],
        {"host": "127.0.0.1", "port": 21001, "dispatch_method": "shortest_queue"},
        {"host": None, "port": 8000, "allowed_origins": ["*"], "allow_credentials": False},
    )
    values = values_of(asked)
    assert values == {"workers": {"x": {"model_path": "a/x"}}, "api_server": {}}
    file = load_text(text_of(values, "c.yaml"), Path("c.yaml"), {})
    assert file.cluster.api_server is not None
    assert file.cluster.api_server.port == 8000


def test_what_all_of_several_share_stands_in_defaults() -> None:
    one = {"model_path": "a/x", "port": 1, "device": "cpu", "gptq": {"wbits": 4}, "replicas": 2}
    two = {"model_path": "a/y", "port": 1, "device": "cpu", "gptq": {"wbits": 4}, "replicas": 3}
    assert values_of(First([one, two])) == {
        "defaults": {"device": "cpu", "gptq": {"wbits": 4}},
        "workers": {
            "x": {"model_path": "a/x", "port": 1, "replicas": 2},
            "y": {"model_path": "a/y", "port": 1, "replicas": 3},
        },
        "api_server": {},
    }
    assert values_of(First([one]))["workers"] == {"x": one}


# ---------------------------------------------------------------- text

ODD = st.one_of(
    st.text(st.characters(exclude_categories=["C"]), min_size=1),
    st.sampled_from(
        ["on", "1e3", "a: b", "# x", "${HOME}", "$$", "{a}", "[", "'", "a, b", "~", ""]
    ),
)


@given(ODD, st.lists(ODD, min_size=1, max_size=30))
def test_the_text_says_what_is_meant_whatever_it_is(word: str, words: list[str]) -> None:
    values = {
        "workers": {
            "1": {"model_path": word, "model_names": words, "gptq": {"wbits": 4, "ckpt": word}}
        },
        "api_server": {"allowed_origins": words, "host": word},
        "log_dir": word,
    }
    document = parse(text_of(values, word), "c.yaml", {})
    assert document.problems == []
    assert document.values == values


def test_a_line_that_is_too_long_is_broken() -> None:
    asked = First(
        [{"model_path": "a/x", "gptq": {"wbits": 4, "ckpt": "/models/" + "x" * 70}}],
        {},
        {"allowed_origins": [f"https://site-{i}.example.org" for i in range(9)]},
    )
    text = text_of(values_of(asked), "c.yaml")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "    gptq:\n      wbits: 4\n      ckpt: /models/" in text
    assert "  allowed_origins:\n    - 'https://site-0.example.org'\n" in text
    assert parse(text, "c.yaml", {}).values == values_of(asked)


def test_it_names_its_schema_only_where_there_is_one() -> None:
    values = values_of(First([{"model_path": "a/x"}]))
    line = "# yaml-language-server: $schema=cluster.schema.json"
    assert text_of(values, "c.yaml", schema=True).startswith(line)
    assert "$schema" not in text_of(values, "c.yaml")


def test_the_head_has_the_commands_to_go_on_with() -> None:
    asked = First([{"model_path": "a/x"}], {}, {"host": "::1", "port": 9000})
    head = text_of(values_of(asked), "'my\nfile.yaml'").partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    text = "\n".join(head)
    assert "llm-supervisor up -c 'my?file.yaml'" in text
    assert "curl http://[::1]:9000/v1/models" in text
