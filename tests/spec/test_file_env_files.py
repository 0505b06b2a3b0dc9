"""Environment variables from files that the cluster file names."""

from __future__ import annotations

from pathlib import Path

import pytest
from writer import Writer

from supervisor.spec.problems import SpecError

TEXT = """
env_file: all.env
env: {A: file}
services:
  one: {command: [x], env_file: one.env, env: {B: entry}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "all.env").write_text("# for all\nA=all\nexport C='with # and space'\nD=${HOME}\n")
    (tmp_path / "one.env").write_text("B=one\nTOKEN=secret\n")
    return tmp_path


def test_what_stands_in_the_file_wins_and_nothing_is_expanded(folder: Path) -> None:
    file = Writer(folder).load(TEXT)
    assert file.cluster.env == {"A": "file", "C": "with # and space", "D": "${HOME}"}
    assert file.cluster.services["one"].env == {"B": "entry", "TOKEN": "secret"}


def test_the_files_belong_to_the_cluster_file(folder: Path) -> None:
    assert Writer(folder).load(TEXT).named == [folder / "all.env", folder / "one.env"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("one.env", None, "services.one.env_file: cannot read the variables in"),
        ("all.env", b"A=1\nno variable\n", "env_file: line 2 of"),
        ("all.env", b"1A=1\n", "write it as NAME=value"),
        ("all.env", b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line(
    folder: Path, name: str, content: bytes | None, says: str
) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(SpecError) as refused:
        Writer(folder).load(TEXT)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)
