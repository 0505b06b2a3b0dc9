"""Who may come in: the token of the control API, TLS, and warnings of what stands open."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from certificates import make_certificate
from writer import Writer

from supervisor.spec.token import read_token

TOKEN = "0123456789abcdef-never-shown"
WORKER = "workers: {a: {model_path: x}}\n"


def put(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# ---------------------------------------------------------------- the token


def test_a_control_section_with_a_token_is_valid(write: Writer) -> None:
    put(write.folder / "token", TOKEN + "\n")
    file = write.load(WORKER + "control: {token_file: token}")
    assert file.cluster.control is not None
    assert (file.cluster.control.host, file.cluster.control.port) == ("127.0.0.1", 21000)
    assert read_token(write.folder / "token") == TOKEN
    assert write.folder / "token" in file.named
    assert file.warnings == []


def test_there_is_no_listener_without_a_token(write: Writer) -> None:
    assert write.errors(WORKER + "control: {port: 21000}") == [
        "2:1: control.token_file: is required; add it"
    ]


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (TOKEN, 0o640, "others may read or write the token in {path} (mode 0640); `chmod 600"),
        (TOKEN, 0o604, "others may read or write the token in {path} (mode 0604); `chmod 600"),
        (TOKEN, 0o620, "others may read or write the token in {path} (mode 0620); `chmod 600"),
        ("short\n", 0o600, "the token in {path} has fewer than 16 characters and can be guessed;"),
        (" " * 40, 0o600, "the token in {path} has fewer than 16 characters and can be guessed;"),
        ("", 0o600, "the token in {path} has fewer than 16 characters and can be guessed;"),
        (f"{TOKEN}\n{TOKEN}", 0o600, "{path} holds no token: it is one word of printable ASCII;"),
        (f"{TOKEN} x", 0o600, "{path} holds no token: it is one word of printable ASCII;"),
        (b"\xff" * 20, 0o600, "{path} holds no token: it is one word of printable ASCII;"),
        (b"\0" * 20, 0o600, "{path} holds no token: it is one word of printable ASCII;"),
        ("x" * 5000, 0o600, "{path} holds no token: it is one word of printable ASCII;"),
        (None, 0o600, "cannot read the token in {path}: No such file or directory; make one with"),
    ],
)
def test_a_token_that_protects_nothing_is_an_error_with_its_place(
    write: Writer, content: str | bytes | None, mode: int, message: str
) -> None:
    path = write.folder / "token"
    if content is not None:
        put(path, content, mode)
    (error,) = write.errors(WORKER + "control:\n  token_file: token")
    assert error.startswith(f"3:15: control.token_file: {message.replace('{path}', str(path))}")
    assert TOKEN not in error


def test_what_the_error_says_to_do_makes_a_token(write: Writer) -> None:
    (error,) = write.errors(WORKER + "control: {token_file: token}")
    command = error.partition("`")[2].partition("`")[0]
    subprocess.run(["sh", "-c", command], check=True)
    write.load(WORKER + "control: {token_file: token}")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_does_not_keep_us_waiting(write: Writer, make: object) -> None:
    assert callable(make)
    make(write.folder / "token")
    os.chmod(write.folder / "token", 0o600)
    (error,) = write.errors(WORKER + "control: {token_file: token}")
    assert "is no regular file; make one with" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_token_that_somebody_else_can_change_is_refused(write: Writer) -> None:
    os.chown(put(write.folder / "token", TOKEN), 12345, 12345)
    (error,) = write.errors(WORKER + "control: {token_file: token}")
    assert "belongs to user 12345, who can change it" in error


# ---------------------------------------------------------------- TLS


def test_a_certificate_and_its_key_are_valid(write: Writer) -> None:
    put(write.folder / "token", TOKEN)
    make_certificate(write.folder)
    tls = "tls_cert: tls.crt, tls_key: tls.key"
    file = write.load(WORKER + f"control: {{host: 0.0.0.0, token_file: token, {tls}}}")
    assert file.warnings == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("tls_cert: tls.crt", "control.tls_cert: TLS needs tls_key, too; add it or remove this"),
        ("tls_key: tls.key", "control.tls_key: TLS needs tls_cert, too; add it or remove this"),
        ("tls_cert: none, tls_key: tls.key", "No such file or directory; name a PEM certificate"),
        ("tls_cert: tls.crt, tls_key: token", "; name a PEM certificate and its key"),
        ("tls_cert: token, tls_key: tls.key", "; name a PEM certificate and its key"),
        ("tls_cert: tls.crt, tls_key: other.key", "KEY_VALUES_MISMATCH; name a PEM certificate"),
        ("tls_cert: tls.crt, tls_key: locked.key", "; name a PEM certificate and its key"),
    ],
)
def test_what_cannot_be_used_for_tls_is_an_error(write: Writer, fields: str, message: str) -> None:
    put(write.folder / "token", TOKEN)
    _, key = make_certificate(write.folder)
    make_certificate(write.folder, "other")
    lock = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:word"]
    subprocess.run([*lock, "-out", str(write.folder / "locked.key")], check=True)
    (error,) = write.errors(WORKER + f"control: {{token_file: token, {fields}}}")
    assert error.startswith("2:")
    assert message in error


def test_the_port_belongs_to_nobody_else(write: Writer) -> None:
    put(write.folder / "token", TOKEN)
    text = WORKER + "api_server: {port: 21000}\ncontrol: {token_file: token}"
    (error,) = write.errors(text)
    assert error.startswith("2:20: api_server.port: port 21000 is used twice, here and by control")


# ---------------------------------------------------------------- warnings


def warnings(write: Writer, text: str) -> list[str]:
    return [str(one).removeprefix(f"{write.path}:") for one in write.load(text).warnings]


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.2", "'::'", "gpu-server", "192.168.1.7"])
def test_what_stands_open_is_told_with_its_place(write: Writer, host: str) -> None:
    text = f"""\
controller:
  host: {host}
workers:
  owl:
    model_path: x
    host: {host}
    replicas: 3
api_server: {{host: {host}}}
"""
    controller, worker, server = warnings(write, text)
    assert controller.startswith("2:9: controller.host: ")
    assert "FastChat's controller asks for no password" in controller
    assert worker.startswith("6:11: workers.owl.host: ")
    assert "FastChat's workers ask for no password" in worker
    assert server.startswith("8:20: api_server.host: ")
    assert "without api_keys everybody there can use the models; add api_keys" in server


def test_a_warning_of_the_defaults_is_at_their_place(write: Writer) -> None:
    text = "defaults: {host: 10.0.0.2}\nworkers: {a: {model_path: x}, b: {model_path: y}}"
    assert [one.partition(": ")[0] for one in warnings(write, text)] == ["1:18", "1:18"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "'::1'"])
def test_loopback_is_no_door(write: Writer, host: str) -> None:
    text = f"controller: {{host: {host}}}\nworkers: {{a: {{model_path: x, host: {host}}}}}\n"
    assert warnings(write, text + f"api_server: {{host: {host}}}") == []


def test_what_has_keys_or_does_not_run_is_no_open_door(write: Writer) -> None:
    text = "workers: {a: {model_path: x}, b: {model_path: y, host: 0.0.0.0, enabled: false}}\n"
    text += "api_server: {host: 0.0.0.0, api_keys: [secret]}"
    assert warnings(write, text) == []


def test_a_token_in_the_clear_is_told(write: Writer) -> None:
    put(write.folder / "token", TOKEN)
    (warning,) = warnings(write, WORKER + "control: {host: 0.0.0.0, token_file: token}")
    assert warning.startswith("2:17: control.host: ")
    assert "without TLS whoever listens in between reads the token; add tls_cert" in warning
