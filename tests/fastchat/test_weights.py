"""How large a model is on disk, as its files tell: local folders and Hugging Face's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from writer import Writer

from supervisor.core.instance import InstanceSpec
from supervisor.fastchat import roles
from supervisor.fastchat.weights import weights_of

COMMIT = "0123abcd"
MIB = 2**20


def folder(path: Path, **sizes: int) -> Path:
    """A model with files of these sizes (`model__safetensors` is `model.safetensors`)."""
    path.mkdir(parents=True)
    for name, count in sizes.items():
        (path / name.replace("__", ".")).write_bytes(b"x" * count)
    return path


def size(model: str, environ: dict[str, str], revision: str | None = None) -> int:
    return weights_of([model], environ, revision).size


def cached(cache: Path, name: str, count: int, revision: str = "main") -> None:
    """A repository as huggingface_hub keeps it: links into a heap of blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = COMMIT + revision
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for kind in ("blobs", "refs"):
        (repository / kind).mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    (repository / "blobs" / commit).write_bytes(b"x" * count)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{commit}")


def test_the_weights_are_summed_and_nothing_else(tmp_path: Path) -> None:
    model = folder(
        tmp_path / "m", a__safetensors=5, b__safetensors=7, config__json=100, tokenizer__model=50
    )
    assert size(str(model), {}) == 12


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "gguf"])
def test_each_format_counts(tmp_path: Path, suffix: str) -> None:
    assert size(str(folder(tmp_path / "m", **{f"weights__{suffix}": 9})), {}) == 9


def test_what_is_there_in_two_formats_is_read_in_one(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", model__safetensors=5, pytorch_model__bin=6, optimizer__pt=70)
    assert weights_of([str(model)], {}).files == (str(model / "model.safetensors"),)


def test_a_single_file_is_a_model_too(tmp_path: Path) -> None:
    assert size(str(folder(tmp_path / "m", q4__gguf=8) / "q4.gguf"), {}) == 8


def test_what_is_not_there_has_no_size(tmp_path: Path) -> None:
    assert size(str(tmp_path / "none"), {}) == 0
    assert size("owner/name", {"HF_HUB_CACHE": str(tmp_path)}) == 0
    broken = folder(tmp_path / "m", one__safetensors=5)
    (broken / "two.safetensors").symlink_to(tmp_path / "a-download-that-was-broken-off")
    assert size(str(broken), {}) == 5


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)
def test_a_repository_counts_once_it_is_in_the_cache(
    tmp_path: Path, variable: str, below: str
) -> None:
    cached(tmp_path / below, "owner/name", 11)
    cached(tmp_path / below, "owner/name", 22, revision="v2")
    environ = {variable: str(tmp_path)}
    assert size("owner/name", environ) == 11
    assert size("owner/name", environ, "v2") == 22
    assert size("owner/name", environ, COMMIT + "v2") == 22, "a commit is a revision, too"
    assert size("owner/other", environ) == 0


def test_the_cache_is_where_huggingface_hub_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout is theirs: with no name of ours in between, they find what we count."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cached(tmp_path, "owner/name", 11)
    found = huggingface_hub.try_to_load_from_cache(
        "owner/name", "model.safetensors", cache_dir=tmp_path
    )
    assert weights_of(["owner/name"], {"HF_HUB_CACHE": str(tmp_path)}).files == (found,)


def specs(tmp_path: Path, text: str) -> dict[str, InstanceSpec]:
    file = Writer(tmp_path).load(text)
    cluster = file.cluster
    names = roles.without_port(cluster) + roles.without_port_beside(cluster, ())
    return roles.expand(file, {name: 21100 + i for i, name in enumerate(names)}, {})


def test_every_replica_and_its_successor_have_the_size_of_their_models(tmp_path: Path) -> None:
    folder(tmp_path / "one", a__safetensors=5)
    folder(tmp_path / "two", b__bin=7)
    cached(tmp_path / "cache", "owner/name", 11)
    (tmp_path / "list.json").write_text("{}")
    found = specs(
        tmp_path,
        f"""
        env: {{HF_HUB_CACHE: {tmp_path / "cache"}}}
        defaults: {{device: cpu}}
        workers:
          one: {{model_path: ./one, replicas: 2}}
          both:
            kind: multi_model_worker
            models: [{{model_path: one, model_names: [a]}}, {{model_path: ./two, model_names: [b]}}]
          hub: {{model_path: owner/name}}
          far: {{kind: huggingface_api_worker, model_info_file: list.json}}
        """,
    )
    sizes = {name: spec.weights for name, spec in found.items() if spec.weights}
    assert sizes == {"one-0": 5, "one-1": 5, "both-0": 12, "hub-0": 11}
    beside = found["one-0"].beside
    assert beside is not None
    assert beside.weights == 5


def test_a_file_that_grows_is_no_reason_for_another_process(tmp_path: Path) -> None:
    text = "workers: {a: {model_path: ./m}}"
    model = folder(tmp_path / "m", a__safetensors=5)
    before = specs(tmp_path, text)["a-0"]
    (model / "b.safetensors").write_bytes(b"more")
    after = specs(tmp_path, text)["a-0"]
    assert (before.weights, after.weights) == (5, 9)
    assert before.launch == after.launch


def test_large_weights_are_named_to_the_worker_that_is_to_read_them_ahead(tmp_path: Path) -> None:
    """That is no part of how it is launched: a model that arrives later changes nothing."""
    text = "workers: {a: {model_path: ./m}, b: {model_path: ./n}}"
    model = folder(tmp_path / "m", a__safetensors=1, b__safetensors=1)
    folder(tmp_path / "n", a__safetensors=1)
    before = specs(tmp_path, text)
    os.truncate(model / "b.safetensors", 256 * MIB)
    after = specs(tmp_path, text)
    names = [dict(one.env).get("LLM_SUPERVISOR_READ_AHEAD") for one in (before | after).values()]
    assert names == [None, f"{model}/a.safetensors:{model}/b.safetensors", None]
    assert "LLM_SUPERVISOR_READ_AHEAD" not in dict(before["a-0"].env)
    assert before["a-0"].launch == after["a-0"].launch
