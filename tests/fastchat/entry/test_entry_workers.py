"""The workers' entry modules, beside FastChat's own, with a controller that is down."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

TOKEN = "hf_never_to_be_seen"


def status_of(worker):
    return httpx.post(worker.url + "/worker_get_status").json()


def say(worker, model):
    question = {"model": model, "prompt": "Hello", "max_new_tokens": 4, "temperature": 0}
    return httpx.post(worker.url + "/worker_generate", json=question, timeout=60).json()


def assert_only_the_mended_one_comes_up(mended, plain):
    mended.wait_until_served("POST", "/worker_get_status")
    assert plain.exit_status() == 1
    # With transformers 5 it does not even come so far as to register.
    assert "ConnectionError" in plain.log() or "KeyError: 'factor'" in plain.log()


def test_model_worker_answers(worker):
    assert status_of(worker) == {"model_names": ["tiny-owl"], "speed": 1, "queue_length": 0}
    assert say(worker, "tiny-owl")["error_code"] == 0


def test_its_probe_is_not_logged(worker):
    status_of(worker)
    say(worker, "tiny-owl")

    assert "/worker_get_status" not in worker.log()
    assert "POST /worker_generate" in worker.log()


def test_multi_model_worker_registers_nothing_and_serves_all_its_models(start_worker, models):
    flags = ["--device", "cpu", "--conv-template", "vicuna_v1.1", "--no-register"]
    for model in ("tiny-owl", "tiny-fox"):
        flags += ["--model-path", str(models / model), "--model-names", model]
    plain = start_worker("multi_model_worker", *flags, plain=True)
    mended = start_worker("multi_model_worker", *flags)

    assert_only_the_mended_one_comes_up(mended, plain)
    assert status_of(mended)["model_names"] == ["tiny-owl", "tiny-fox"]
    assert say(mended, "tiny-owl")["error_code"] == 0
    assert say(mended, "tiny-fox")["error_code"] == 0
    assert mended.exit_status_after(signal.SIGTERM) == -signal.SIGTERM


def test_huggingface_api_worker_registers_nothing_and_shows_no_token(start_worker, tmp_path):
    remote = {"model_path": "remote", "api_base": "http://127.0.0.1:1", "token": TOKEN}
    info = {"remote": remote | {"context_length": 64, "conv_template": "vicuna_v1.1"}}
    (tmp_path / "info.json").write_text(json.dumps(info))
    flags = ["--model-info-file", str(tmp_path / "info.json"), "--no-register"]
    plain = start_worker("huggingface_api_worker", *flags, plain=True)
    mended = start_worker("huggingface_api_worker", *flags)

    assert_only_the_mended_one_comes_up(mended, plain)
    assert status_of(mended)["model_names"] == ["remote"]
    assert TOKEN not in mended.log()
    assert TOKEN in plain.log()
    assert mended.exit_status_after(signal.SIGTERM) == -signal.SIGTERM


@pytest.fixture
def mlx_stub(tmp_path):
    """What mlx_worker imports of MLX, which exists for Apple's machines only."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "core.py").touch()
    (tmp_path / "mlx_lm").mkdir()
    (tmp_path / "mlx_lm" / "__init__.py").write_text("generate = None\nload = lambda path: (0, 0)")
    (tmp_path / "mlx_lm" / "utils.py").write_text("generate_step = None")
    return {"PYTHONPATH": str(tmp_path)}


def test_mlx_worker_sends_the_controller_nothing(start_worker, mlx_stub):
    worker = start_worker(
        "mlx_worker", "--model-path", "apple", "--conv-template", "vicuna_v1.1", env=mlx_stub
    )
    worker.wait_until_served("POST", "/worker_get_status")

    assert status_of(worker)["model_names"] == ["apple"]
    assert "Register to controller" not in worker.log()
    assert "Send heart beat" not in worker.log()
    assert worker.exit_status_after(signal.SIGTERM) == -signal.SIGTERM


def test_a_worker_ends_when_its_port_is_taken(start_worker, mlx_stub, taken_port):
    flags = ["--model-path", "apple", "--conv-template", "vicuna_v1.1"]
    worker = start_worker("mlx_worker", *flags, env=mlx_stub, port=taken_port)

    assert worker.exit_status() == 3
    assert "cannot serve" in worker.log()
    assert "address already in use" in worker.log()
