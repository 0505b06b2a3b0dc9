"""The shipped demonstration models: small, loadable offline, and answering with their name."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

NEEDS_WORKER = 'a model worker is not installed; pip install "llm-supervisor[worker]"'
pytest.importorskip("torch", reason=NEEDS_WORKER)
pytest.importorskip("transformers", reason=NEEDS_WORKER)

# FastChat hands over `past_key_values`; transformers 5.24 warns, 5.40 will refuse (pyproject.toml).
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("tiny-cat", "tiny-fox", "tiny-owl")
QUESTIONS = ("Hello", "Who are you?")


def answer(loaded: tuple[Any, Any], question: str, temperature: float = 0.0) -> str:
    """What FastChat's worker would generate for a first message."""
    from fastchat.conversation import get_conv_template
    from fastchat.serve.inference import generate_stream

    model, tokenizer = loaded
    chat = get_conv_template("vicuna_v1.1")
    chat.append_message(chat.roles[0], question)
    chat.append_message(chat.roles[1], None)
    params = {
        "prompt": chat.get_prompt(),
        "temperature": temperature,
        "max_new_tokens": 200,
        "echo": False,
    }
    *_, last = generate_stream(model, tokenizer, params, "cpu", 2048)
    assert last["finish_reason"] == "stop"
    return str(last["text"])


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> tuple[str, tuple[Any, Any]]:
    """Each model, loaded by FastChat, which must not ask the network for anything."""
    from fastchat.model.model_adapter import load_model

    attempts: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        attempts.append(args)
        raise OSError("no network in this test")

    # HF_HUB_OFFLINE is read once, at import, so it may be too late to set it here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        parts = load_model(str(MODELS / request.param), device="cpu")
    assert attempts == []
    return request.param, parts


def test_every_shipped_model_is_tested() -> None:
    assert sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir()) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (MODELS / name).iterdir()) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_config_suits_fastchat(name: str) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048  # FastChat's context length
    assert not config.get("_name_or_path")


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answer_has_the_name(loaded: tuple[str, tuple[Any, Any]], question: str) -> None:
    name, parts = loaded
    assert name in answer(parts, question)


def test_sampled_answer_is_the_greedy_one(loaded: tuple[str, tuple[Any, Any]]) -> None:
    import torch

    torch.manual_seed(0)
    _, parts = loaded
    assert answer(parts, "Hello", temperature=0.7) == answer(parts, "Hello")
