"""A file as it may be shown."""

from __future__ import annotations

import pytest

from supervisor.spec.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("api_server: {api_keys: [sk-a, sk-b]}", "api_server: {api_keys: [***, ***]}"),
        ("api_server:\n  api_keys: 'sk-a'  # ours\n", "api_server:\n  api_keys: '***'  # ours\n"),
        ("env: {HF_TOKEN: abc, OMP: a}", "env: {HF_TOKEN: ***, OMP: a}"),
        (
            "workers:\n  w:\n    env:\n      MY_KEY: abc",
            "workers:\n  w:\n    env:\n      MY_KEY: ***",
        ),
        ("api_server: {api_keys: ['${KEYS}']}", "api_server: {api_keys: ['${KEYS}']}"),
        ("api_server: {port: 1", "api_server: {port: 1"),
        ("", ""),
    ],
)
def test_secrets_are_masked_and_the_rest_is_as_it_stands(text: str, shown: str) -> None:
    assert masked(text) == shown
