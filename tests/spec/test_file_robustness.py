"""Whatever stands in the file, the loader answers with a cluster or with errors, and soon.

An ordinary run tries some five thousand files. ``LLM_SUPERVISOR_FUZZ=50`` tries fifty times as
many, with other seeds: ``LLM_SUPERVISOR_FUZZ=50 pytest tests/spec/test_file_robustness.py``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT
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

AMOUNT = int(os.environ.get("LLM_SUPERVISOR_FUZZ", "1"))
"""Times as many cases as in an ordinary run."""

relaxed = settings(
    deadline=None,
    max_examples=150 * AMOUNT,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
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


# ---------------------------------------------------------------- mutations of real files


SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
TOKENS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "&a ",
        "*a",
        "<<: *a",
        "!!python/object:os.system ",
        "!x ",
    ),
    *(
        "? ",
        "| ",
        "> ",
        "#",
        "'",
        '"',
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "\t",
        "\r",
        "\x85",
        "\u2028",
    ),
    *(
        "\ufeff",
        "\0",
        "\x7f",
        "${A}",
        "${A:-",
        "$",
        "~",
        "null",
        ".inf",
        ".nan",
        "-.inf",
        "0x7fffffff",
    ),
    *("1e400", "9" * 400, "-1", "0o7", "1_000", "190:20:30", "2001-02-30", "=", "<<", "!!binary x"),
    *("!!set {a}", "!!omap [a: 1]", "!!timestamp x", "!!int x", "!!float x", "\\x00", '"\\ud800"'),
]


def mutated(text: str, chance: random.Random) -> bytes:
    """A shipped file with some things in it that somebody did not mean."""
    lines = text.splitlines(keepends=True)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(lines))
        line = lines[at]
        cut = chance.randrange(len(line) + 1)
        match chance.randrange(7):
            case 0:
                lines[at] = line[:cut] + chance.choice(TOKENS) + line[cut:]
            case 1:
                lines[at] = line[:cut] + chance.choice(TOKENS)
            case 2:
                lines[at] = " " * chance.randrange(8) + line.lstrip()
            case 3:
                lines[at:at] = lines[chance.randrange(len(lines)) :][: chance.randrange(1, 20)]
            case 4:
                del lines[at : at + chance.randrange(1, 5)]
                lines = lines or ["\n"]
            case 5:
                key, colon, _ = line.partition(":")
                lines[at] = f"{key}{colon} {chance.choice(TOKENS)}\n"
            case 6:
                lines[at] = line.upper() if chance.random() < 0.5 else line.replace(" ", "")
    content = bytearray("".join(lines).encode())
    if chance.random() < 0.2:
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_with_mistakes(tmp_path: Path, shipped: Path) -> None:
    text = shipped.read_text()
    for i in range(700 * AMOUNT):
        content = mutated(text, random.Random(f"{shipped.name} {i}"))
        try:
            judge(tmp_path, content)
        except BaseException as error:
            error.add_note(f"case {i}, which is:\n{content!r}")
            raise


def test_random_bytes(tmp_path: Path) -> None:
    for i in range(1000 * AMOUNT):
        chance = random.Random(f"bytes {i}")
        content = chance.randbytes(chance.randrange(200))
        if i % 2:  # as text at least
            content = content.decode("latin-1").replace("\0", "").encode()
        judge(tmp_path, content)


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


_BOMBS = {
    "laughs": "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
    ),
    "merged laughs": layers("{{<<: [{below}]}}", width=100),
    "an anchor of itself": "a: &a [*a, *a]",
    "a merge of itself": "workers: &a {<<: [*a, *a], b: *a}",
    "deep flow": "a: " + "[" * 100_000,
    "deep flow that is closed": "a: " + "{x: " * 2000 + "y" + "}" * 2000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(2000)),
    "deep sequences": "- " * 50_000 + "x",
    "deep keys": "? " * 50_000 + "x",
    "a large number": "port_range: " + "9" * 1_000_000,
    "a large octal": "port_range: 0" + "7" * 1_000_000,
    "a large sexagesimal": "port_range: 1" + ":59" * 200_000,
    "a large float": "workers: {a: {model_path: x, stop_grace: 1" + "0" * 1_000_000 + ".0}}",
    "a long key": "x" * 3_000_000 + ": y",
    "many keys": "".join(f"k{i}: v\n" for i in range(400_000)),
    "one key many times": "a: b\n" * 400_000,
    "many anchors": "".join(f"- &a{i} x\n" for i in range(200_000)),
    "many documents": "---\n" * 1_000_000,
    "many comments": "#\n" * 2_000_000,
    "many variables": "description: '" + "${A:-${" * 300_000 + "'",
    "many dollars": "description: '" + "${A:-" + "$x" * 1_500_000 + "'",
    "many commas": "workers: {a: {model_path: x, gpus: '" + "0," * 1_500_000 + "'}}",
    "many replicas": "workers:\n" + "".join(
        f"  w{i}: {{model_path: x, replicas: 1000}}\n" for i in range(500)
    ),
    "a long duration": "workers: {a: {model_path: x, stop_grace: '" + "1s" * 1_500_000 + "'}}",
    "an almost duration": "workers: {a: {model_path: x, stop_grace: '" + "1" * 2_000_000 + "x'}}",
    "a long size": "logs: {max_size: '" + "1" * 2_000_000 + " '}",
    "a long host": "api_server: {host: '" + "a." * 1_500_000 + "'}",
    "a long address": "controller: {external: 'http://" + "[" * 1_000_000 + "'}",
    "a long quoted string": 'description: "' + "\\x41" * 900_000 + '"',
    "python objects": "a: !!python/object/apply:os.system ['touch pwned']",
    "python names": "a: !!python/name:os.system",
    "python modules": "a: !!python/module:os",
    "python tuples": "a: !!python/tuple [1, 2]",
}  # fmt: skip

_LOADER = """
import resource, sys
from pathlib import Path
from supervisor.spec.load import load
from supervisor.spec.problems import SpecError
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]), int(sys.argv[3])))
try:
    load(Path(sys.argv[1]), {"A": "a"})
except SpecError as error:
    print(len(error.problems), max(len(str(one)) for one in error.problems))
"""
_MEMORY = 2 * 1024**3
"""Bytes of address space: a file of 4 MiB, all its values and their places need less than one."""
_SECONDS = 60
"""Of processor time, on a slow machine."""


@pytest.mark.parametrize("bomb", _BOMBS)
def test_a_bomb_takes_neither_memory_nor_time(tmp_path: Path, bomb: str) -> None:
    """In a process of its own, which is killed if it takes more than it may."""
    path = tmp_path / "cluster.yaml"
    path.write_text(_BOMBS[bomb])
    done = subprocess.run(
        [sys.executable, "-c", _LOADER, str(path), str(_MEMORY), str(_SECONDS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (ROOT / "pwned").exists()
    if done.stdout:  # nor is what we say about it a bomb
        count, longest = map(int, done.stdout.split())
        assert count <= 101
        assert longest < 10_000, longest
