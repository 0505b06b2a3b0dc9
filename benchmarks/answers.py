"""Is it answered? Asked again and again, as cheaply as can be, so as not to take time from it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

_TIMEOUT = 60.0
_TOKENS = 4


def prompt_answered(port: int, model: str) -> bool:
    """By the worker itself."""
    question = {"prompt": "Hello", "temperature": 0.0, "max_new_tokens": 1, "echo": False}
    answer = _post(port, "/worker_generate", {"model": model, **question, "stop": []})
    return answer is not None and answer.get("error_code") == 0


def chat_answered(port: int, model: str) -> bool:
    """Through the API server."""
    messages = [{"role": "user", "content": "Hello"}]
    question = {"model": model, "messages": messages, "temperature": 0, "max_tokens": _TOKENS}
    answer = _post(port, "/v1/chat/completions", question)
    return answer is not None and bool(answer["choices"][0]["message"]["content"])


def port_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def moment_when(condition: Callable[[], bool], *, every: float, end: float, what: str) -> float:
    """Of the monotonic clock; raises TimeoutError at ``end``."""
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} in time")
        time.sleep(every)
    return time.monotonic()


def _post(port: int, path: str, content: dict[str, Any]) -> Any:
    """The answer's content; None if there is none, or it is an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    with contextlib.closing(connection):
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(content), headers)
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
