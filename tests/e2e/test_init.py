"""``init``: old command lines and answers become a cluster file that starts the same FastChat.

What the launch script of Langchain-Chatchat would have started stands in the tables as the flags
that it handed to FastChat; flags that it gave with FastChat's own default are left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import stat
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import COMMAND, DEADLINE, ROOT, die_with_parent

from supervisor.cli.main import main
from supervisor.core.instance import InstanceSpec
from supervisor.fastchat import roles
from supervisor.spec.load import ClusterFile, load

OWL = ["--model-path", "a/owl"]


class Folder:
    """An empty folder to call ``init`` in."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.file = path / "configs" / "cluster.yaml"
        self.keys = path / "configs" / "api-keys.txt"
        self._capsys = capsys
        self.output = self.errors = ""

    def init(self, *words: str) -> int:
        status = main(["init", *words])
        self.output, self.errors = self._capsys.readouterr()
        return status

    def made(self, *words: str) -> ClusterFile:
        assert self.init(*words) == 0, self.errors
        return load(self.file, {})

    def values(self, *words: str) -> Any:
        self.made(*words)
        return yaml.safe_load(self.file.read_text())

    def instances(self, *words: str) -> dict[str, InstanceSpec]:
        file = self.made(*words)
        ports = {name: 21900 + i for i, name in enumerate(roles.without_port(file.cluster))}
        return roles.expand(file, ports, {})

    def refused(self, *words: str) -> str:
        """What it says; and nothing has changed."""
        before = self.contents()
        assert self.init(*words) == 2, self.output
        assert self.contents() == before
        assert self.output == ""
        assert "Traceback" not in self.errors
        return self.errors

    def contents(self) -> dict[Path, bytes | None]:
        paths = self.path.rglob("*")
        return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_SUPERVISOR_CONFIG", raising=False)
    return Folder(tmp_path, capsys)


# ---------------------------------------------------------------- old command lines -> values

# Each row: words; the values of the file, without `api_server: {port: 8888}`.
VALUES: list[tuple[str, dict[str, Any]]] = [
    (
        "--model-path-address THUDM/chatglm2-6b@localhost@7650 "
        "THUDM/chatglm2-6b-32k@localhost@7651",
        {
            "workers": {
                "chatglm2-6b": {"model_path": "THUDM/chatglm2-6b", "port": 7650},
                "chatglm2-6b-32k": {"model_path": "THUDM/chatglm2-6b-32k", "port": 7651},
            }
        },
    ),
    (
        "--model-path-address a/x@10.0.0.5@7650 --model-path-address a/y b/x@localhost "
        "--device cpu",
        {
            "defaults": {"device": "cpu"},
            "workers": {
                "x": {"model_path": "a/x", "host": "10.0.0.5", "port": 7650},
                "y": {"model_path": "a/y"},
                "x.2": {"model_path": "b/x", "model_names": ["x"]},
            },
        },
    ),
    (
        "--model-path a/owl --worker-host 0.0.0.0 --worker-port 20002 --model-names gpt-4,o",
        {
            "workers": {
                "owl": {
                    "model_path": "a/owl",
                    "model_names": ["gpt-4", "o"],
                    "host": "0.0.0.0",
                    "port": 20002,
                }
            }
        },
    ),
    (
        "--controller-host localhost --controller-port 21001 --dispatch-method shortest_queue "
        "--server-host localhost --model-path a/owl --device cuda",
        {"workers": {"owl": {"model_path": "a/owl"}}},
    ),
    (
        "--controller-host 10.0.0.1 --controller-port 21005 --dispatch-method lottery "
        "--model-path a/owl",
        {
            "controller": {"host": "10.0.0.1", "port": 21005, "dispatch_method": "lottery"},
            "workers": {"owl": {"model_path": "a/owl"}},
        },
    ),
    (
        "--model-path a/owl --awq-wbits 4 --awq-groupsize 128 --awq-ckpt /c --replicas 2",
        {
            "workers": {
                "owl": {
                    "model_path": "a/owl",
                    "replicas": 2,
                    "awq": {"wbits": 4, "groupsize": 128, "ckpt": "/c"},
                }
            }
        },
    ),
    (
        "--model-path a/owl --gptq-wbits 16 --log-dir out --run-dir configs/run",
        {"workers": {"owl": {"model_path": "a/owl"}}, "log_dir": "../out", "run_dir": "./run"},
    ),
]


@pytest.mark.parametrize(("words", "values"), VALUES, ids=[words for words, _ in VALUES])
def test_the_values(folder: Folder, words: str, values: dict[str, Any]) -> None:
    assert folder.values(*words.split()) == {**values, "api_server": {"port": 8888}}
    lines = folder.file.read_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert folder.output.splitlines() == [
        "configs/cluster.yaml is written",
        "start it with: llm-supervisor up -c configs/cluster.yaml",
    ]


def test_the_api_server(folder: Folder) -> None:
    words = ["--server-host", "0.0.0.0", "--server-port", "9000", "--allow-credentials"]
    words += ["--allowed-origins", '["http://a.b"]', "--allowed-methods", '["GET", "POST"]']
    assert folder.values(*OWL, *words, "--allowed-headers", '["*"]')["api_server"] == {
        "host": "0.0.0.0",
        "port": 9000,
        "allow_credentials": True,
        "allowed_origins": ["http://a.b"],
        "allowed_methods": ["GET", "POST"],
    }
    assert "answer on 0.0.0.0 without a key" in folder.errors


# ---------------------------------------------------------------- ... -> FastChat

MANY = "--model-path-address a/x@localhost@7650 a/y@localhost@7651"

# Each row: words; what FastChat gets (None: not at all); the GPUs that it sees (None: all).
FASTCHAT: list[tuple[str, dict[str, str | None], str | None]] = [
    (
        "--model-path-address a/x@localhost@7650",
        {
            "--model-path": "a/x",
            "--model-names": "x",
            "--host": "127.0.0.1",
            "--port": "7650",
            "--worker-address": "http://127.0.0.1:7650",
            "--controller-address": "http://127.0.0.1:21001",
            "--device": "cuda",
            "--num-gpus": None,
            "--load-8bit": None,
            "--gptq-wbits": None,
        },
        None,
    ),
    (
        f"{MANY} --gpus 0,1 --num-gpus 2 --max-gpu-memory 20GiB",
        {"--num-gpus": "2", "--max-gpu-memory": "20GiB"},
        "0,1",
    ),
    (  # the script's --num-gpus was 1 then
        f"{MANY} --gpus 2,3 --load-8bit",
        {"--num-gpus": "1", "--load-8bit": "", "--cpu-offloading": None},
        "2",
    ),
    (
        f"{MANY} --gpus 0 --load-8bit --cpu-offloading",
        {"--num-gpus": "1", "--load-8bit": "", "--cpu-offloading": ""},
        "0",
    ),
    (
        f"{MANY} --gptq-wbits 4 --gptq-groupsize 128 --gptq-act-order --gptq-ckpt /models/q.pt",
        {
            "--gptq-wbits": "4",
            "--gptq-groupsize": "128",
            "--gptq-act-order": "",
            "--gptq-ckpt": "/models/q.pt",
        },
        None,
    ),
    (f"{MANY} --gptq-wbits 4", {"--gptq-wbits": "4", "--gptq-ckpt": None}, None),
    (
        f"{MANY} --limit-worker-concurrency 3 --stream-interval 1 --revision v2",
        {"--limit-worker-concurrency": "3", "--stream-interval": "1", "--revision": "v2"},
        None,
    ),
    (f"{MANY} --device cpu", {"--device": "cpu"}, ""),
    (
        f"{MANY} --controller-port 21005 --controller-host localhost",
        {"--controller-address": "http://127.0.0.1:21005"},
        None,
    ),
    (
        "--model-path a/x --conv-template vicuna_v1.1 --model-names p,q --awq-wbits 4",
        {"--conv-template": "vicuna_v1.1", "--model-names": "p,q", "--awq-wbits": "4"},
        None,
    ),
]


@pytest.mark.parametrize(
    ("words", "flags", "gpus"), FASTCHAT, ids=[words for words, _, _ in FASTCHAT]
)
def test_fastchat_gets_what_the_script_gave_it(
    folder: Folder, words: str, flags: dict[str, str | None], gpus: str | None
) -> None:
    specs = folder.instances(*words.split())
    workers = [spec for name, spec in specs.items() if name.endswith("-0")]
    assert list(specs) == ["controller", *(spec.name for spec in workers), "api_server"]
    for spec in workers:
        given = flags_of(spec)
        own = {} if spec.service == "x" else {"--model-path", "--model-names"}
        assert {flag: given.get(flag) for flag in flags if flag not in own} == {
            flag: value for flag, value in flags.items() if flag not in own
        }
        assert dict(spec.env).get("CUDA_VISIBLE_DEVICES") == gpus
    if words.startswith(MANY):
        assert [(spec.service, spec.port) for spec in workers] == [("x", 7650), ("y", 7651)]


def test_the_other_two_get_theirs(folder: Folder) -> None:
    specs = folder.instances(
        *OWL, "--dispatch-method", "lottery", "--server-port", "9000", "--allow-credentials"
    )
    assert flags_of(specs["controller"])["--dispatch-method"] == "lottery"
    server = flags_of(specs["api_server"])
    assert server["--port"] == "9000"
    assert server["--allow-credentials"] == ""
    assert server["--controller-address"] == "http://127.0.0.1:21001"


def flags_of(spec: InstanceSpec) -> dict[str, str]:
    """``--a b --c`` -> ``{"--a": "b", "--c": ""}``."""
    found: dict[str, str] = {}
    last = ""
    for word in spec.argv[2:]:
        if word.startswith("--"):
            last = word
            found[last] = ""
        else:
            found[last] = word
    return found


# ---------------------------------------------------------------- paths


def test_a_folder_is_named_as_seen_from_the_file(folder: Folder) -> None:
    model = folder.path / "models" / "my owl"
    model.mkdir(parents=True)
    for words in (["models/my owl"], ["./models/my owl/"], [f"{model}/../my owl"]):
        specs = folder.instances("--model-path", *words, "--force")
        found = flags_of(specs["my-owl-0"])
        assert found["--model-path"] == str(model)
        assert found["--model-names"] == "my owl"
    values = folder.values("--model-path", "models/my owl", "--force")
    assert values["workers"]["my-owl"]["model_path"] == "../models/my owl"
    assert "# a folder, relative to this file" in folder.file.read_text()


def test_a_checkpoint_is_found_from_where_fastchat_runs(folder: Folder) -> None:
    words = ["--gptq-wbits", "4", "--gptq-ckpt", "q/model.pt"]
    spec = folder.instances(*OWL, *words)["owl-0"]
    path = os.path.join(spec.cwd or "", flags_of(spec)["--gptq-ckpt"])
    assert os.path.normpath(path) == str(folder.path / "q" / "model.pt")


def test_a_folder_may_have_an_at_in_its_name(folder: Folder) -> None:
    (folder.path / "owl@v2").mkdir()
    found = folder.values("--model-path-address", "./owl@v2", "./owl@v2@localhost@7650")["workers"]
    assert [worker["model_path"] for worker in found.values()] == ["../owl@v2", "../owl@v2"]
    assert list(found) == ["owl-v2", "owl-v2.2"]


def test_it_is_written_where_it_is_wanted(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.init(*OWL, "-c", "a b/c.yaml") == 0
    assert "start it with: llm-supervisor up -c 'a b/c.yaml'" in folder.output
    assert folder.init(*OWL, "-o", "d.yaml") == 0
    monkeypatch.setenv("LLM_SUPERVISOR_CONFIG", "e.yaml")
    assert folder.init(*OWL) == 0
    for name in ("a b/c.yaml", "d.yaml", "e.yaml"):
        assert load(folder.path / name, {}).cluster.workers


def test_it_can_be_printed(folder: Folder) -> None:
    assert folder.init(*OWL, "-o", "-", "--no-register") == 0
    assert yaml.safe_load(folder.output)["workers"] == {"owl": {"model_path": "a/owl"}}
    assert folder.contents() == {}
    assert folder.errors.startswith("--no-register has no effect")
    assert folder.refused(*OWL, "-o", "-", "--api-keys", "sk-secret").startswith(
        "llm-supervisor: --api-keys: keys are kept in a file beside the cluster file"
    )


def test_in_a_folder_with_the_schema_editors_find_it(folder: Folder) -> None:
    folder.file.parent.mkdir()
    (folder.file.parent / "cluster.schema.json").touch()
    folder.made(*OWL)
    assert folder.file.read_text().startswith("# yaml-language-server: $schema=")


# ---------------------------------------------------------------- keys


def test_keys_go_into_a_file_that_only_we_can_read(folder: Folder) -> None:
    old = os.umask(0)
    try:
        file = folder.made(*OWL, "--api-keys", " sk-one,,sk-two")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.keys.stat().st_mode) == 0o600
    assert file.cluster.api_server is not None
    keys = [key.get_secret_value() for key in file.cluster.api_server.api_keys]
    assert keys == ["sk-one", "sk-two"]
    assert "sk-" not in folder.output + folder.errors + folder.file.read_text()
    assert "the API keys are in configs/api-keys.txt" in folder.output
    assert "api_keys_file: api-keys.txt" in folder.file.read_text()


def test_keys_that_are_there_are_not_lost(folder: Folder) -> None:
    folder.keys.parent.mkdir()
    folder.keys.write_text("sk-old\n")
    folder.keys.chmod(0o644)
    assert "configs/api-keys.txt is there already" in folder.refused(*OWL, "--api-keys", "sk-new")
    folder.made(*OWL, "--api-keys", "sk-new", "--force")
    kept = folder.keys.with_name("api-keys.txt.old1")
    assert kept.read_text() == "sk-old\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "sk-new" in folder.keys.read_text()


def test_keys_without_their_file_are_not_left_behind(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("cluster.yaml"):
            raise OSError(28, "No space left on device", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", full)
    assert folder.init(*OWL, "--api-keys", "sk-one") == 1
    assert folder.errors == "llm-supervisor: No space left on device: configs/cluster.yaml\n"
    assert list(folder.file.parent.iterdir()) == []
    folder.file.write_text("old")
    folder.keys.write_text("sk-old")
    before = folder.contents()
    assert folder.init(*OWL, "--api-keys", "sk-one", "--force") == 1
    assert folder.contents() == before


# ---------------------------------------------------------------- refusals


def test_a_file_that_is_there_is_kept(folder: Folder) -> None:
    folder.made(*OWL)
    before = folder.file.read_text()
    said = folder.refused("--model-path", "a/fox")
    assert "configs/cluster.yaml is there already; choose another with -c FILE" in said
    for name in ("cluster.yaml.old1", "cluster.yaml.old2"):
        folder.made("--model-path", "a/fox", "--force")
        assert f"the old configs/cluster.yaml is now configs/{name}" in folder.errors
    assert folder.file.with_name("cluster.yaml.old1").read_text() == before
    assert "a/fox" in folder.file.read_text()


# Each row: words; what it says.
REFUSED: list[tuple[str, str]] = [
    ("", "no model is named, and there is no terminal to ask on; name one with --model-path"),
    ("--model-path ./none", "--model-path: there is no model at {folder}/none; mend the path"),
    ("--model-path-address a/x@h@y", "--model-path-address: 'a/x@h@y' must be MODEL, MODEL@HOST"),
    ("--model-path-address a/x@7650", "--model-path-address: 'a/x@7650' must be MODEL"),
    ("--model-path-address @h@1", "--model-path-address: '@h@1' must be MODEL"),
    ("--model-path-address a/x@h@0", "must be at least 1"),
    (
        "--model-path-address a/x@h@7 a/y@h@7",
        "workers.y.port (--worker-port or MODEL@HOST@PORT): port 7 is used twice",
    ),
    ("--model-path a --model-path-address b", "has no effect beside --model-path-address"),
    ("--model-path-address a b --worker-port 7", "--worker-port is one port, for 2 workers"),
    ("--model-path a --gpus 0,0", "--gpus: must be numbers or UUIDs of GPUs such as 0,1"),
    ("--model-path a --gpus x", "--gpus: must be numbers or UUIDs of GPUs such as 0,1"),
    ("--model-path a --gpus 0 --num-gpus 2", "--num-gpus: --num-gpus is 2, but only 1 are listed"),
    ("--model-path a --gpus 0 --device cpu", "remove --gpus or set --device cuda"),
    (
        "--model-path a --gpus 0,1 --num-gpus 2 --load-8bit",
        "set --num-gpus 1 or add --cpu-offloading",
    ),
    ("--model-path a --cpu-offloading", "--cpu-offloading: works only with 8-bit quantization"),
    ("--model-path a --max-gpu-memory 20", "--max-gpu-memory: must be an amount such as 20GiB"),
    ("--model-path a --gptq-wbits 4 --load-8bit", "exclude each other; choose one"),
    ("--model-path a --gptq-ckpt q.pt", "--gptq-ckpt means nothing without --gptq-wbits"),
    ("--model-path a --awq-groupsize 1", "--awq-groupsize means nothing without --awq-wbits"),
    ("--model-path a --gptq-wbits 5", "--gptq-wbits"),
    ("--model-path a --server-port 21001", "--server-port: port 21001 is used twice"),
    ("--model-path a --server-port 0", "--server-port: must be at least 1"),
    ("--model-path a --controller-host a/b", "--controller-host: not a host"),
    ("--model-path a --stream-interval 0", "--stream-interval: must be at least 1"),
    ("--model-path a --replicas -1", "--replicas: must be at least 0"),
    ("--model-path a --model-names a,,b", "--model-names: must not be empty"),
    ("--model-path a --allowed-origins *", "must be a JSON list such as '[\"*\"]', not '*'"),
    ("--model-path a --api-keys ,", "--api-keys: holds no key"),
    ("--model-path a --api-keys #secret", "--api-keys: a key begins with #"),
    ("--model-path a --ssl", "--ssl: the API server speaks HTTP only; put a proxy"),
    ("--model-path a --log-level INFO", "--log-level: FastChat's parts have no level"),
    ("--model-path a --controller-address http://h:1", "`controller: {{external: URL}}`"),
    ("--model-path a --worker-address http://h:1", "--worker-address: it follows from"),
    ("--model-path a -c configs", "configs is there already, and is no file"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_is_wrong_is_said_and_nothing_is_written(
    folder: Folder, words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words.endswith("-c configs"):
        folder.file.parent.mkdir()
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        answer = folder.refused(*words.split())
    assert said.format(folder=folder.path) in answer
    assert "secret" not in answer


def test_all_that_is_wrong_is_said_at_once(folder: Folder) -> None:
    said = folder.refused(*OWL, "--max-gpu-memory", "20", "--server-port", "70000")
    assert said.splitlines() == [
        "llm-supervisor: these flags are wrong:",
        "  --max-gpu-memory: must be an amount such as 20GiB",
        "  --server-port: must be at most 65535",
    ]


# ---------------------------------------------------------------- questions


class Terminal:
    """``init`` on a terminal of its own, with somebody who answers."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._ours, its = pty.openpty()

        def own_terminal() -> None:
            die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs us may ignore it
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # where getpass asks

        self.process = subprocess.Popen(
            [*COMMAND, "init", *words],
            stdin=its,
            stdout=its,
            stderr=its,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LLM_SUPERVISOR_CONFIG": ""},
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        os.close(its)
        self.said = ""
        self._seen = 0

    def answer(self, question: str, text: str) -> Terminal:
        """Wait for the question, and type a line."""
        asked = re.compile(rf"{re.escape(question)}[^\n]*: $")
        self._read(lambda: asked.search(self.said, self._seen) is not None)
        self._seen = len(self.said)
        os.write(self._ours, text.encode() + b"\n")
        return self

    def end(self, key: bytes = b"") -> int:
        os.write(self._ours, key)
        self._read(lambda: False)
        return self.process.wait()

    def close(self) -> None:
        os.close(self._ours)  # hangs up
        self.process.kill()
        self.process.wait()

    def _read(self, enough: Callable[[], bool]) -> None:
        with contextlib.suppress(OSError):  # EIO: it has ended
            while not enough():
                if not select.select([self._ours], [], [], DEADLINE)[0]:
                    pytest.fail(f"waits for something else than we do: {self.said}")
                self.said += os.read(self._ours, 4096).decode().replace("\r\n", "\n")


@pytest.fixture
def ask(folder: Folder) -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as opened:

        def terminal(*words: str) -> Terminal:
            one = Terminal(folder.path, *words)
            opened.callback(one.close)
            return one

        yield terminal


Ask = Callable[..., Terminal]


def test_questions_with_empty_answers(folder: Folder, ask: Ask) -> None:
    terminal = ask()
    terminal.answer("model, a folder", "lmsys/vicuna-7b-v1.5")
    for question in ("GPUs", "replicas", "8-bit", "one more model", "port of", "to the network?"):
        terminal.answer(question, "")
    assert terminal.end() == 0, terminal.said
    assert yaml.safe_load(folder.file.read_text()) == {
        "workers": {"vicuna-7b-v1.5": {"model_path": "lmsys/vicuna-7b-v1.5", "device": "cpu"}},
        "api_server": {"port": 8888},
    }
    assert "start it with: llm-supervisor up -c configs/cluster.yaml" in terminal.said


def test_questions_with_wrong_answers_and_better_ones(folder: Folder, ask: Ask) -> None:
    (folder.path / "owl").mkdir()
    terminal = ask()
    terminal.answer("model, a folder", "").answer("model, a folder", "./none")
    terminal.answer("model, a folder", "./owl")
    terminal.answer("GPUs", "all").answer("GPUs", "1,1").answer("GPUs", "0, 1")
    terminal.answer("replicas", "two").answer("replicas", "0").answer("replicas", "2")
    terminal.answer("8-bit", "perhaps").answer("8-bit", "Y")
    terminal.answer("one more model", "a/fox").answer("GPUs", "2,3").answer("replicas", "")
    terminal.answer("one more model", "")  # no 8 bits for the fox, which is on two GPUs
    terminal.answer("port of", "21001").answer("port of", "70000").answer("port of", "9000")
    terminal.answer("to the network?", "yes")
    terminal.answer("API key", "#no").answer("API key", "sk-typed")
    assert terminal.end() == 0, terminal.said
    for words in (
        "name at least one model; try again",
        f"there is no model at {folder.path}/none; try again",
        "GPUs are numbers such as 0 or 0,1, each once; try again",
        "that is no number from 1 to 1000; try again",
        "answer yes or no; try again",
        "that is the controller's port; try again",
        "that is no number from 1 to 65535; try again",
        "a key begins with #",
    ):
        assert words in terminal.said
    assert yaml.safe_load(folder.file.read_text()) == {
        "workers": {
            "owl": {"model_path": "../owl", "gpus": [0, 1], "replicas": 2, "load_8bit": True},
            "fox": {"model_path": "a/fox", "gpus": [2, 3]},
        },
        "api_server": {"host": "0.0.0.0", "port": 9000, "api_keys_file": "api-keys.txt"},
    }
    assert "sk-typed" not in terminal.said
    assert folder.keys.read_text().splitlines()[-1] == "sk-typed"


def test_a_key_is_made_where_none_is_given(folder: Folder, ask: Ask) -> None:
    terminal = ask("--device", "cpu", "--server-port", "9000")
    terminal.answer("model, a folder", "a/owl").answer("replicas", "").answer("8-bit", "")
    terminal.answer("one more", "").answer("to the network?", "y").answer("API key", "")
    assert terminal.end() == 0, terminal.said
    key = folder.keys.read_text().splitlines()[-1]
    assert len(key) > 40
    assert key not in terminal.said
    assert stat.S_IMODE(folder.keys.stat().st_mode) == 0o600


def test_keys_that_are_there_are_used(folder: Folder, ask: Ask) -> None:
    folder.keys.parent.mkdir()
    folder.keys.write_text("sk-old\n")
    terminal = ask("--device", "cpu", "--server-port", "9000", "--replicas", "1", "--load-8bit")
    terminal.answer("model, a folder", "a/owl").answer("one more", "")
    terminal.answer("to the network?", "y")
    assert terminal.end() == 0, terminal.said
    assert "its keys are those in configs/api-keys.txt" in terminal.said
    assert folder.keys.read_text() == "sk-old\n"
    server = load(folder.file, {}).cluster.api_server
    assert server is not None
    assert [key.get_secret_value() for key in server.api_keys] == ["sk-old"]


@pytest.mark.parametrize(("key", "status"), [(b"\x04", 2), (b"\x03", 130)], ids=["end", "Ctrl-C"])
def test_who_goes_away_leaves_nothing(folder: Folder, ask: Ask, key: bytes, status: int) -> None:
    terminal = ask()
    terminal.answer("model, a folder", "a/owl").answer("GPUs", "")
    assert terminal.end(key) == status, terminal.said
    assert folder.contents() == {}
    assert "Traceback" not in terminal.said
    if status == 2:
        assert "the questions were not answered to the end; nothing was written" in terminal.said


def test_what_is_there_is_said_before_anything_is_asked(folder: Folder, ask: Ask) -> None:
    folder.made(*OWL)
    terminal = ask()
    assert terminal.end() == 2
    assert "is there already" in terminal.said
    assert "A few questions" not in terminal.said
