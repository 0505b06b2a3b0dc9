"""Whatever stands in the file, the loader answers with a cluster or with errors, and soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer import Writer

from supervisor.spec.load import load
from supervisor.spec.model import Cluster
from supervisor.spec.problems import SpecError

VALID = """\
description: ${NAME:-all of it}
env: {A: 1}
port_range: 21002-21999
x-slow: &slow {startup: {deadline: 1h}}
controller: {port: 21001, dispatch_method: lottery, restart: {policy: always, limit: 3}}
defaults: {device: cuda, probes: *slow, env: {B: "2"}}
workers:
  owl:
    model_path: lmsys/vicuna-7b-v1.5
    gpus: [0, 1]
    replicas: 2
    gptq: {wbits: 4, groupsize: 128, act_order: true}
  fox: {<<: {dtype: half}, kind: vllm_worker, model_path: x, gpu_memory_utilization: 0.5}
  many: {kind: multi_model_worker, models: [{model_path: x, model_names: [y]}]}
api_server: {port: 8888, api_keys: ["${KEYS:-}"], allowed_origins: ["*"]}
web_server: {port: 7860}
services:
  web: {command: [python, -m, web], depends_on: [api_server], ready: {tcp: "127.0.0.1:1"}}
logs: {max_size: 10MiB, keep: 3}
"""
LINES = VALID.splitlines(keepends=True)

relaxed = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def judge(folder: Path, content: bytes) -> Cluster | None:
    """Load it. Anything but a cluster or a sound list of problems fails the test."""
    path = folder / "cluster.yaml"
    path.write_bytes(content)
    try:
        return load(path, {"NAME": "n"}).cluster
    except SpecError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert problem.file == str(path)
        assert problem.message
        about_the_whole_file = (problem.line, problem.column, problem.path) == (0, 0, "")
        assert about_the_whole_file or (problem.line >= 1 and problem.column >= 1)
    return None


def test_the_unchanged_file_is_valid(tmp_path: Path) -> None:
    assert judge(tmp_path, VALID.encode()) is not None


@relaxed
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(VALID.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    judge(tmp_path, bytes(content))


@relaxed
@given(
    kept=st.lists(st.booleans(), min_size=len(LINES), max_size=len(LINES)),
    indent=st.integers(0, 4),
    at=st.integers(0, len(LINES) - 1),
)
def test_deleted_and_shifted_lines(tmp_path: Path, kept: list[bool], indent: int, at: int) -> None:
    lines = [line for line, keep in zip(LINES, kept, strict=True) if keep]
    if at < len(lines):
        lines[at] = " " * indent + lines[at].lstrip()
    judge(tmp_path, "".join(lines).encode())


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from(["${X}", "$", "~x/y", "a" * 300, "/" + "b" * 300, "²", "1:30", "[", "::1"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a nested value."""
    inner: Any = ()
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


PLACES = places(yaml.safe_load(VALID))
FIELDS = sorted({str(place[-1]) for place in PLACES if place} | {"kind", "awq", "external", "host"})


@relaxed
@given(place=st.sampled_from(PLACES[1:]), value=anything, key=st.none() | st.sampled_from(FIELDS))
def test_any_value_at_any_place(
    tmp_path: Path, place: tuple[Any, ...], value: Any, key: str | None
) -> None:
    """A value replaced by another, or another key beside it."""
    values = yaml.safe_load(VALID)
    around = values
    for part in place[:-1]:
        around = around[part]
    around[key if key and isinstance(around, dict) else place[-1]] = value
    judge(tmp_path, yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "replace"))


@relaxed
@given(text=st.text(alphabet="{}[]:,-&*!|>%@`'\"#?~<$\\ \n\tab01", max_size=60))
def test_line_noise(tmp_path: Path, text: str) -> None:
    judge(tmp_path, text.encode())


# ---------------------------------------------------------------- bombs


def layers(of: str, width: int = 10, depth: int = 30) -> str:
    """``of`` is one layer, that names the one below ``width`` times."""
    lines = ["x-0: &x0 {seed: 1}"]
    for i in range(1, depth):
        below = ", ".join([f"*x{i - 1}"] * width)
        lines.append(f"x-{i}: &x{i} {of.format(below=below)}")
    return "\n".join([*lines, f"workers: {{a: {{model_path: x, <<: *x{depth - 1}}}}}"])


@pytest.mark.parametrize("layer", ["{{a: [{below}]}}", "{{<<: [{below}]}}"])
def test_anchors_that_multiply_are_refused(write: Writer, layer: str) -> None:
    """Ten to the power of thirty values, or merges; unrefused, this test would not end."""
    (message,) = {p.message for p in write.problems(layers(layer)) if "50000" in p.message}
    assert message == "more than 50000 values; do the anchors multiply? write it without them"


def test_a_cluster_may_be_large(write: Writer) -> None:
    lines = [f"  m{i}: {{model_path: x, seed: {i}, env: {{A: b}}}}\n" for i in range(1000)]
    assert len(write.cluster("workers:\n" + "".join(lines)).workers) == 1000


def test_dependencies_may_be_long(write: Writer) -> None:
    chain = [f"  s{i}: {{command: [x], depends_on: [s{i + 1}]}}\n" for i in range(3000)]
    text = "services:\n" + "".join(chain)
    assert len(write.cluster(text + "  s3000: {command: [x]}\n").services) == 3001
    (error,) = write.errors(text + "  s3000: {command: [x], depends_on: [s0]}\n")
    assert "runs in a circle: s0 -> s1 -> s2 -> " in error


def test_a_model_in_a_folder_with_an_impossible_name(write: Writer) -> None:
    (error,) = write.errors(f"workers: {{a: {{model_path: /{'x' * 300}}}}}")
    assert "there is no model at /xxx" in error
