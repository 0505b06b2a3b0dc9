"""Every secret of a running cluster is looked for where it must not be: everywhere but where the
user has put it, and in the environment of the instances that the file gives it to."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo import demo_file
from harness import Cluster, alive, free_ports, until

from supervisor.daemon.api import ROUTES

LITERAL_KEY = "sk-literal-Q7rT2"
VARIABLE_KEY = "sk-variable-W8pL4"
FILE_KEY = "sk-file-E3mN9"
FILE_TOKEN = "hf-of-env-file-Z5xC1"
PASSWORD = "password-of-one-service-V6bH0"
EVERYBODYS = "token-of-all-services-K4jD7"
CONTROL_TOKEN = "control-token-U1yG3-U1yG3"
NEW_PASSWORD = "new-password-by-api-S2fA6"
DRAFTED = "secret-of-a-draft-B9nM5"
SECRETS = [
    *(LITERAL_KEY, VARIABLE_KEY, FILE_KEY, FILE_TOKEN, PASSWORD, EVERYBODYS),
    *(CONTROL_TOKEN, NEW_PASSWORD, DRAFTED),
]

GIVEN_TO = {
    FILE_TOKEN: {"tiny-fox-0", "worker~template"},  # which that one is forked from, alone
    PASSWORD: {"vault"},
    EVERYBODYS: {
        *("controller", "api_server", "tiny-fox-0", "vault", "crashing", "impossible"),
        *("server~template", "worker~template"),
    },
    NEW_PASSWORD: {"vault"},
    LITERAL_KEY: set(),
    FILE_KEY: set(),
    CONTROL_TOKEN: set(),
    DRAFTED: set(),
}
"""Instances in whose environment a secret may be. VARIABLE_KEY is in the supervisor's own."""


@dataclass
class Place:
    """Somewhere that a secret could show, and all that shows there."""

    name: str
    content: bytes


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The real FastChat, a service with a password, one that crashes, one that cannot start."""
    folder = tmp_path_factory.mktemp("secrets")
    controller, api, control = free_ports(3)
    for name, content in (
        ("keys", FILE_KEY + "\n"),
        ("fox.env", f"HF_TOKEN={FILE_TOKEN}\n"),
        ("token", CONTROL_TOKEN + "\n"),
    ):
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    text = demo_file(controller, api)
    text = text.replace("  tiny-owl:", "  tiny-owl: {enabled: false, model_path: x}\n  #")
    text = text.replace("tiny-fox}", "tiny-fox, env_file: fox.env}")
    keys = f'api_keys: ["{LITERAL_KEY}", "${{AUDITED_KEY}}"], api_keys_file: keys'
    text = text.replace(f"{{port: {api}}}", f"{{port: {api}, {keys}}}")
    text += f"""
watch: false
env: {{EVERYBODYS_TOKEN: {EVERYBODYS}}}
control: {{port: {control}, token_file: token}}
services:
  vault:
    command: [sleep, '1000']
    env: {{VAULT_PASSWORD: {PASSWORD}}}
  crashing:
    command: [sh, -c, 'echo "fatal: no luck" >&2; exit 3']
  impossible:
    command: [sleep, '1000']
    cwd: /no/such/folder
"""
    cluster = Cluster(folder).write(text)
    cluster.environ["AUDITED_KEY"] = VARIABLE_KEY
    cluster.up()
    for name in ("controller", "tiny-fox-0", "api_server", "vault"):
        cluster.until(name, "ready")
    use(cluster, api, control)
    yield cluster
    cluster.down()


def use(cluster: Cluster, api: int, control: int) -> None:
    """All that people do with it, mistakes included."""
    answers = []
    for key in (LITERAL_KEY, VARIABLE_KEY, FILE_KEY, "sk-wrong"):
        bearer = {"Authorization": f"Bearer {key}"}
        answers.append(ask(api, "/v1/models", bearer))
    assert answers == [200, 200, 200, 401]
    assert ask(control, "/v1/status", {"Authorization": f"Bearer {CONTROL_TOKEN}"}) == 200
    assert ask(control, "/v1/status", {"Authorization": f"Bearer {CONTROL_TOKEN}x"}) == 401
    os.kill(cluster.instance("vault")["pid"], signal.SIGKILL)
    until(lambda: cluster.instance("vault")["restarts"], "the vault is restarted")
    until(lambda: cluster.instance("crashing")["restarts"] > 2, "the crashing one is restarted")
    good = cluster.file.read_text()
    assert cluster.run("set", "vault", f"env.VAULT_PASSWORD={NEW_PASSWORD}").returncode == 0
    assert cluster.run("set", "vault", f"env.VAULT_PASSWORD=[{DRAFTED}]").returncode == 2
    assert cluster.run("set", "vault", f"env.{DRAFTED}!=x", f"env.X_KEY={DRAFTED}").returncode == 2
    cluster.write(good.replace(LITERAL_KEY, DRAFTED).replace("port_range", "port_rnage"))
    assert cluster.run("reload").returncode == 2
    cluster.write(good.replace(LITERAL_KEY, DRAFTED))
    assert cluster.run("plan").returncode == 0
    cluster.write(good.replace(PASSWORD, NEW_PASSWORD))
    assert cluster.run("reload", "--no-wait").returncode == 0


def ask(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def over_the_socket(cluster: Cluster, method: str, path: str, body: bytes = b"") -> bytes:
    """The whole answer, as far as it comes within a moment (streams have no end)."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1.0)
        one.connect(str(cluster.run_dir / "control.sock"))
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        found = b""
        try:
            while more := one.recv(65536):
                found += more
        except TimeoutError:
            pass
        return found


def found_in(place: Place) -> list[str]:
    return [f"{secret} in {place.name}" for secret in SECRETS if secret.encode() in place.content]


def test_no_secret_is_in_a_command_line(audited: Cluster) -> None:
    places = []
    for pid in audited.processes():
        if alive(pid):
            places.append(Place(f"argv of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()))
    assert len(places) >= 6  # the supervisor, its log writer, FastChat's three, the vault
    assert [one for place in places for one in found_in(place)] == []


def test_an_environment_has_what_the_file_gives_it_and_no_other_secret(audited: Cluster) -> None:
    wrong, seen = [], set()
    for pid in audited.processes():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just crashed again
        marks = [v for v in variables if v.startswith(b"LLM_SUPERVISOR_INSTANCE=")]
        name = marks[0].rpartition(b"/")[2].decode() if marks else "the supervisor's own"
        for secret, allowed in GIVEN_TO.items():
            if any(secret.encode() in variable for variable in variables):
                seen.add((secret, name))
                if name not in allowed:
                    wrong.append(f"{secret} in the environment of {name}")
    assert wrong == []
    assert {(FILE_TOKEN, "tiny-fox-0"), (NEW_PASSWORD, "vault")} <= seen


def test_no_secret_is_in_a_file_of_the_supervisor(audited: Cluster) -> None:
    """Run directory, logs of instances, the supervisor's own output; and all is private."""
    places = [Place("its output", audited.output.read_bytes())]
    for folder in (audited.run_dir, audited.log_dir):
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode
            if folder is audited.run_dir and not path.name.endswith(".sock"):
                assert not mode & 0o022, path
            if path.name.startswith("state"):
                assert not mode & 0o077, path
            if stat.S_ISREG(mode):
                places.append(Place(str(path), path.read_bytes()))
    names = [place.name for place in places]
    for name in ("ports.json", "lock", "controller.log", "api_server.log", "tiny-fox-0.log"):
        assert any(one.endswith(f"/{name}") for one in names), name
    assert [one for place in places for one in found_in(place)] == []


def test_no_secret_is_in_an_answer_of_the_api(audited: Cluster) -> None:
    names = [one["name"] for one in audited.status()["instances"]]
    places = []
    for route in ROUTES:
        if route.method != "GET":
            continue
        targets = [route.path.replace("{name}", name) for name in names]
        for target in dict.fromkeys(targets):
            for query in ("", "?lines=100000&timeout=0.1", "?follow=1&timeout=0.1"):
                answer = over_the_socket(audited, "GET", target + query)
                assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 422")), (target, answer)
                places.append(Place(target + query, answer))
    assert [one for place in places for one in found_in(place)] == []


def test_no_secret_is_in_an_answer_to_an_edit(audited: Cluster) -> None:
    text = audited.file.read_text()
    edits = [
        {"verb": "set", "name": "vault", "fields": {"env.VAULT_PASSWORD": DRAFTED}},
        {"verb": "set", "name": "api_server", "fields": {"api_keys": [DRAFTED]}},
        {"verb": "set", "name": "vault", "fields": {"env.VAULT_PASSWORD": {DRAFTED: [DRAFTED]}}},
        {"verb": "unset", "name": "vault", "keys": ["env.VAULT_PASSWORD"]},
        {"verb": "remove", "name": "vault"},
    ]
    for edit in edits:
        body = json.dumps({"edits": [edit], "dry_run": True}).encode()
        answer = over_the_socket(audited, "POST", "/v1/edit", body)
        status = answer.split()[1]
        assert status in (b"200", b"422"), answer
        assert found_in(Place(str(edit), answer)) == []
    for draft in (text.replace(LITERAL_KEY, DRAFTED), text + f"\nnonsense: {DRAFTED}"):
        answer = over_the_socket(audited, "POST", "/v1/plan", json.dumps({"text": draft}).encode())
        assert found_in(Place("a plan", answer)) == []
    for body in (b'{"text": 7, "' + DRAFTED.encode() + b'": 1}', b'{"text": "' + DRAFTED.encode()):
        answer = over_the_socket(audited, "POST", "/v1/plan", body)
        assert answer.startswith(b"HTTP/1.1 400")


def test_no_secret_is_in_what_the_command_line_prints(audited: Cluster) -> None:
    for verb, *more in (
        ("status",),
        ("status", "--json"),
        ("plan",),
        ("plan", "--json"),
        ("events",),
        ("validate",),
        ("why", "crashing"),
        ("why", "impossible"),
        ("why", "vault"),
        ("logs", "api_server", "-n", "100000"),
        ("set", "vault", "env.VAULT_PASSWORD=x", "--dry-run"),
    ):
        done = audited.run(verb, *more)
        assert found_in(Place(verb, (done.stdout + done.stderr).encode())) == []
