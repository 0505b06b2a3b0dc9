"""The verbs that edit the file, while no supervisor runs: what they write, and what they refuse."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from harness import COMMAND, ROOT, Cluster

from supervisor.runtime import safewrite
from supervisor.runtime.safewrite import WriteError, replace

TEXT = """\
# my cluster
workers:
  vicuna:
    model_path: lmsys/vicuna-7b-v1.5   # the small one
    device: cpu
  # other:
  #   model_path: a/b

api_server: {port: 8888}
"""


@pytest.fixture
def idle(cluster: Cluster) -> Cluster:
    """A cluster that is not running."""
    return cluster.write(TEXT)


def done(cluster: Cluster, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """It is done, and the file is still one that is valid."""
    answer = cluster.run(verb, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert [one.name for one in cluster.folder.iterdir() if one.name.endswith(".new")] == []
    return answer


def refused(cluster: Cluster, verb: str, *arguments: str, status: int = 2) -> str:
    """It is refused in one sentence, and nothing is written."""
    before = cluster.file.read_bytes()
    answer = cluster.run(verb, *arguments)
    assert answer.returncode == status, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert cluster.file.read_bytes() == before
    assert sorted(one.name for one in cluster.folder.iterdir()) == ["cluster.yaml"]
    return answer.stderr


# ---------------------------------------------------------------- what they write


def test_a_worker_is_added_with_all_flags(idle: Cluster) -> None:
    answer = done(
        idle,
        *("add", "new", "--model-path", "owner/name", "--gpus", "0,GPU-ab,2", "--num-gpus", "1"),
        *("--replicas", "2", "--kind", "model_worker", "--device", "cuda", "--load-8bit"),
        *("--cpu-offloading", "--max-gpu-memory", "20GiB", "--model-names", "a, b"),
        *("--conv-template", "vicuna_v1.1", "--limit-worker-concurrency", "3", "--port", "21500"),
        *("--set", "env.MODE=0755", "--set", "probes.liveness.interval=5s"),
    )
    assert answer.stdout.startswith(f"--- {idle.file}\n+++ {idle.file} (new)\n@@")
    assert "\n+  new:\n" in answer.stdout
    assert f"{idle.file} is written; it takes effect at the next" in answer.stdout
    text = idle.file.read_text()
    assert yaml.safe_load(text)["workers"]["new"] == {
        "model_path": "owner/name",
        "gpus": [0, "GPU-ab", 2],
        "num_gpus": 1,
        "replicas": 2,
        "kind": "model_worker",
        "device": "cuda",
        "load_8bit": True,
        "cpu_offloading": True,
        "max_gpu_memory": "20GiB",
        "model_names": ["a", "b"],
        "conv_template": "vicuna_v1.1",
        "limit_worker_concurrency": 3,
        "port": 21500,
        "env": {"MODE": 0o755},
        "probes": {"liveness": {"interval": "5s"}},
    }
    assert "env: {MODE: 0755}" in text  # which is the text 0755 to the loader
    done(idle, "remove", "new")
    assert idle.file.read_text() == TEXT


def test_quantized_workers_are_added(idle: Cluster) -> None:
    done(
        idle,
        *("add", "g", "--model-path", "a/b", "--gptq-wbits", "4", "--gptq-groupsize", "128"),
        *("--gptq-act-order", "--gptq-ckpt", "some.pt"),
    )
    done(
        idle,
        *("add", "w", "--model-path", "a/c", "--awq-wbits", "4", "--awq-groupsize", "64"),
        *("--awq-ckpt", "some.pt"),
    )
    text = idle.file.read_text()
    assert "gptq: {ckpt: some.pt, wbits: 4, groupsize: 128, act_order: true}\n" in text
    assert "awq: {ckpt: some.pt, wbits: 4, groupsize: 64}\n" in text


def test_a_folder_is_named_from_here_and_written_from_the_file(idle: Cluster) -> None:
    """The verbs run in the root of the repository."""
    done(idle, "add", "owl", "--model-path", "models/tiny-owl", "--device", "cpu")
    done(idle, "add", "fox", "--model-path", f"{ROOT}/models/tiny-fox", "--device", "cpu")
    workers = yaml.safe_load(idle.file.read_text())["workers"]
    assert workers["owl"]["model_path"] == os.path.relpath(ROOT / "models/tiny-owl", idle.folder)
    assert workers["fox"]["model_path"] == f"{ROOT}/models/tiny-fox"


def test_scale_set_and_unset_change_their_lines_only(idle: Cluster) -> None:
    done(idle, "scale", "vicuna", "3")
    done(idle, "set", "vicuna", "env.A=", "description=note: this", "-y")
    done(idle, "set", "web_server", "port=7860")
    done(idle, "set", ".", "logs.keep=2")
    text = idle.file.read_text()
    assert "    device: cpu\n    replicas: 3\n    env: {A: ''}\n    description: 'note: th" in text
    assert "web_server:\n  port: 7860\n" in text
    assert "# the small one" in text
    done(idle, "unset", "vicuna", "replicas", "env.A", "description")
    done(idle, "remove", "web_server")
    done(idle, "unset", ".", "logs.keep")
    assert idle.file.read_text() == TEXT


def test_a_variable_is_left_to_the_loader(idle: Cluster) -> None:
    idle.environ["A_PORT"] = "8123"
    done(idle, "set", "vicuna", "port=${A_PORT}")
    assert "    port: ${A_PORT}\n" in idle.file.read_text()


def test_what_is_so_already_is_not_written(idle: Cluster) -> None:
    before = idle.file.stat().st_mtime_ns, idle.file.stat().st_ino
    answer = done(idle, "set", "vicuna", "device=cpu")
    assert answer.stdout == f"nothing to change: {idle.file} says so already\n"
    assert (idle.file.stat().st_mtime_ns, idle.file.stat().st_ino) == before


def test_a_dry_run_shows_and_writes_nothing(idle: Cluster) -> None:
    before = idle.file.stat().st_mtime_ns, idle.file.stat().st_ino
    answer = done(idle, "scale", "vicuna", "2", "--dry-run")
    assert answer.stdout.endswith("+    replicas: 2\n   # other:\n   #   model_path: a/b\n \n")
    assert (idle.file.stat().st_mtime_ns, idle.file.stat().st_ino) == before


def test_the_file_keeps_its_mode_its_link_and_its_form(idle: Cluster) -> None:
    real = idle.folder / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    real.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    real.chmod(0o640)
    idle.file.unlink()
    idle.file.symlink_to("elsewhere/real.yaml")
    done(idle, "scale", "vicuna", "2")
    assert idle.file.readlink() == Path("elsewhere/real.yaml")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    content = real.read_bytes()
    assert content.startswith(b"\xef\xbb\xbf# my")
    assert content.count(b"\n") == content.count(b"\r\n") == TEXT.count("\n") + 1
    assert [one.name for one in real.parent.iterdir()] == ["real.yaml"]


# ---------------------------------------------------------------- what they refuse


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("add vicuna --model-path a/b", "'vicuna' is in the file already; change it with `set`"),
        ("add new", "workers.new.model_path: is required; add it"),
        ("add new --model-path ./nowhere", "workers.new.model_path: "),
        ("add a/b --model-path a/b", "a name has letters, digits"),
        ("add new --model-path a/b --set port=80000", "cluster.yaml:8:11: workers.new.port"),
        ("remove vicuno", "there is no service 'vicuno' in the file; did you mean 'vicuna'?"),
        ("scale vicuna -- -1", "workers.vicuna.replicas: must be at least 0"),
        ("scale api_server 2", "'api_server' is no worker, and only workers have replicas"),
        ("scale nobody 2", "there are: api_server, vicuna"),
        ("set vicuna repliccas=2", "unknown key 'repliccas'; did you mean 'replicas'?"),
        ("set vicuna replicas", "'replicas' has no value; write it as replicas=VALUE"),
        ("set vicuna gpus=[0", "'[0' is not YAML"),
        ("set vicuna model_path.x=1", "workers.vicuna.model_path is no mapping"),
        ("unset vicuna port", "workers.vicuna.port is not set in the file"),
        ("unset vicuna model_path", "workers.vicuna.model_path: is required"),
    ],
)
def test_a_bad_edit_is_refused(idle: Cluster, arguments: str, says: str) -> None:
    verb, *rest = arguments.split()
    places = idle.places
    if "--" in rest:  # what follows it are no flags, so those that say where come first
        cut = rest.index("--")
        before = idle.file.read_bytes()
        answer = subprocess.run(
            [*COMMAND, verb, *places, *rest[:cut], *rest[cut:]],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert answer.returncode == 2
        assert says in answer.stderr
        assert idle.file.read_bytes() == before
        return
    assert says in refused(idle, verb, *rest)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"workers: {a: [\n", "cluster.yaml:2:1: not YAML: "),
        (b"a: \xff\n", "cluster.yaml:1:4: is not UTF-8 text"),
        (b"a: 1\n---\nb: 2\n", "not YAML: "),
        (b"workers: {a: {model_path: x/y, port: 1, port: 2}}\n", "key 'port' stands here a second"),
    ],
)
def test_a_broken_file_is_named_with_its_line(idle: Cluster, content: bytes, says: str) -> None:
    idle.file.write_bytes(content)
    assert says in refused(idle, "set", "a", "replicas=2")


def test_a_missing_file_is_not_made(cluster: Cluster) -> None:
    answer = cluster.run("scale", "a", "2")
    assert answer.returncode == 2
    assert "there is no such file" in answer.stderr
    assert not cluster.file.exists()


def on_terminal(cluster: Cluster, answer: bytes, *arguments: str) -> tuple[int, bytes]:
    """The command on a terminal where somebody types ``answer``."""
    ours, theirs = pty.openpty()
    with contextlib.ExitStack() as both:
        both.callback(os.close, ours)
        process = subprocess.Popen(
            [*COMMAND, *arguments, *cluster.places],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={**cluster.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        os.write(ours, answer)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
        return process.wait(), shown


@pytest.mark.parametrize(
    ("answer", "status", "written"), [(b"\n", 0, True), (b"n\n", 1, False), (b"\x04", 1, False)]
)
def test_on_a_terminal_somebody_is_asked(
    idle: Cluster, answer: bytes, status: int, written: bool
) -> None:
    ended, shown = on_terminal(idle, answer, "scale", "vicuna", "2")
    assert b"Apply? [Y/n]" in shown
    assert b"\x1b[32m+    replicas: 2" in shown  # green
    assert ended == status
    assert (idle.file.read_text() != TEXT) == written


def test_on_a_terminal_yes_asks_nothing(idle: Cluster) -> None:
    ended, shown = on_terminal(idle, b"", "scale", "vicuna", "2", "--yes")
    assert ended == 0
    assert b"Apply?" not in shown


# ---------------------------------------------------------------- writing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"old")
    return path


def left(file: Path) -> list[str]:
    return [one.name for one in file.parent.iterdir()]


def test_a_file_that_has_changed_underneath_is_not_written(file: Path) -> None:
    with pytest.raises(WriteError, match="has changed underneath; look at it and try again"):
        replace(file, b"older", b"new")
    assert file.read_bytes() == b"old"
    assert left(file) == ["cluster.yaml"]


def test_a_link_that_leads_elsewhere_meanwhile_is_a_change(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = file.with_name("link.yaml"), file.with_name("other.yaml")
    other.write_bytes(b"old")
    link.symlink_to(file)

    def swap(descriptor: int) -> None:
        link.unlink()
        link.symlink_to(other)

    monkeypatch.setattr(safewrite.os, "fsync", swap)
    with pytest.raises(WriteError, match="has changed underneath"):
        replace(link, b"old", b"new")
    assert file.read_bytes() == other.read_bytes() == b"old"


def test_a_full_disk_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safewrite.os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        replace(file, b"old", b"new")
    assert file.read_bytes() == b"old"
    assert left(file) == ["cluster.yaml"]


def test_a_file_that_is_not_ours_to_write_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anything, and the tests may run as root: so what root is asked is replaced."""
    monkeypatch.setattr(safewrite.os, "access", lambda path, mode: False)
    with pytest.raises(WriteError, match=r"may not write .*; do it as a user who may"):
        replace(file, b"old", b"new")


def test_an_owner_that_cannot_be_kept_is_a_reason_to_refuse(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(descriptor: int, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    elsewhere = os.stat_result((*file.stat()[:4], 12345, 12345, *file.stat()[6:10]))
    monkeypatch.setattr(safewrite.os, "stat", lambda path: elsewhere)
    monkeypatch.setattr(safewrite.os, "fchown", forbidden)
    with pytest.raises(WriteError, match="belongs to user 12345 and group 12345"):
        replace(file, b"old", b"new")
    assert left(file) == ["cluster.yaml"]


def test_the_owner_is_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    before = file.stat()
    replace(file, b"old", b"new")
    assert (file.stat().st_uid, file.stat().st_gid) == (before.st_uid, before.st_gid)
    assert file.read_bytes() == b"new"


def test_a_folder_that_nobody_can_write_in_is_named(file: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write /proc/\d+"):
        replace(Path("/proc/self/comm"), b"", b"new")
