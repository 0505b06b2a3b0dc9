"""A secret of the file never shows: not in an error, not in a repr, not in a command line."""

from __future__ import annotations

import pytest
from writer import Writer

from supervisor.fastchat.roles import expand

SECRET = "sk-never-to-be-seen"


@pytest.mark.parametrize(
    "mistake",
    [
        "api_server: {api_keys: {key: '${KEY}'}}",
        "api_server: {api_keys: [['${KEY}']]}",
        "api_server: {api_keys: [{key: '${KEY}'}]}",
        "api_server: {api_key: '${KEY}'}",
        "api_server: {port: '${KEY}'}",
        "api_server: {api_keys: ['${KEY}'], port: x}",
        "api_server: {api_keys: ['${KEY}', '${NOT_SET}']}",
        "api_server: {args: ['--api-keys=${KEY}']}",
        "api_server: '${KEY}'",
        "workers: {a: {model_path: x, env: {TOKEN: ['${KEY}']}, seed: '${KEY}'}}",
        "workers: {a: {model_path: x, gpus: '${KEY}', gptq: '${KEY}', dtype: '${KEY}'}}",
        "workers: {a: {model_path: x, max_gpu_memory: '${KEY}', stop_grace: '${KEY}'}}",
        "workers: {a: {kind: '${KEY}', model_path: x}}",
        "workers: {a: {model_path: x}}\nport_range: '${KEY}'\nlogs: {max_size: '${KEY}'}",
        "controller: {external: '${KEY}', dispatch_method: '${KEY}'}",
        f"api_server: {{api_keys: ['{SECRET}]}}",
        f"api_server: {{api_keys: [{SECRET}}}",
        f"api_server:\n  api_keys: {SECRET}\n\t- {SECRET}",
        f"api_server: {{api_keys: !{SECRET} x}}",
    ],
)
def test_no_error_shows_a_secret(write: Writer, mistake: str) -> None:
    write.environ = {"KEY": SECRET}
    for problem in write.problems(mistake):
        assert SECRET not in str(problem)
        assert SECRET not in repr(problem)


def test_no_error_shows_the_keys_of_a_file(write: Writer) -> None:
    (write.folder / "keys").write_bytes(SECRET.encode() + b"\n\xff")
    assert write.errors("api_server: {api_keys_file: keys}") == [
        f"1:29: api_server.api_keys_file: cannot read the keys in {write.folder}/keys: "
        "is not UTF-8 text; name a text file with one key a line"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; name a text file with one key a line"),
        ("# none yet\n\n", "holds no key, which would open the server to all; add one"),
    ],
)
def test_a_file_without_keys_opens_nothing(
    write: Writer, content: str | None, message: str
) -> None:
    if content is not None:
        (write.folder / "keys").write_text(content)
    (error,) = write.errors("api_server: {api_keys_file: keys}")
    assert message in error


def test_a_device_for_a_key_file_is_not_read_for_ever(write: Writer) -> None:
    (error,) = write.errors("api_server: {api_keys_file: /dev/zero}")
    assert "/dev/zero: is not a regular file;" in error


def test_a_loaded_file_hides_its_secrets_and_hands_them_over(write: Writer) -> None:
    write.environ = {"KEY": SECRET, "TOKEN": "hf-never-to-be-seen"}
    (write.folder / "keys").write_text(f"# comment\n  {SECRET}-1  \n\n{SECRET}-2\n")
    file = write.load(
        """
        env: {HF_TOKEN: "${TOKEN}"}
        workers: {a: {model_path: x, env: {HF_TOKEN: "${TOKEN}"}}}
        api_server: {api_keys: ["${KEY}"], api_keys_file: keys}
        """
    )
    for shown in (repr(file), str(file), repr(file.cluster), str(file.document)):
        assert "never-to-be-seen" not in shown
    specs = expand(file, {"a-0": 9001}, {})
    assert dict(specs["a-0"].env)["HF_TOKEN"] == "hf-never-to-be-seen"
    assert "never-to-be-seen" not in repr(specs)  # a message about one may end in a log
    server = specs["api_server"]
    assert SECRET not in repr(server)  # so neither in its command line nor in its environment
    assert server.secret_input == (
        f'{{"api_keys": ["{SECRET}", "{SECRET}-1", "{SECRET}-2"]}}'.encode()
    )


def test_without_keys_nothing_is_handed_over(write: Writer) -> None:
    file = write.load('api_server: {api_keys: ["${KEYS:-}"]}')
    server = expand(file, {}, {})["api_server"]
    assert server.secret_input is None
    assert "LLM_SUPERVISOR_SECRETS" not in dict(server.env)
