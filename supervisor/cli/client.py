"""Talks to a running supervisor: HTTP over its Unix socket."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from supervisor.cli.failure import FAILED, NOT_RUNNING, USAGE, Failure
from supervisor.cli.locations import client_run_dir, config_path
from supervisor.runtime.rundir import RunDir, RunDirError

_PATIENCE = 3.0
"""Seconds to wait for a supervisor that has just been started, or is just starting."""
_ANSWER = 30.0
"""Seconds for an answer; the supervisor answers in milliseconds unless it is stopped itself."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Raises Failure: status 3 when no supervisor runs, 2 for what is not there or not valid,
    1 when it refuses otherwise."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._run_dir = RunDir(client_run_dir(arguments))
        self._config = config_path(arguments)
        try:
            self._run_dir.check_length()
        except RunDirError as error:
            raise Failure(str(error), USAGE) from None

    def await_supervisor(self) -> None:
        """Give a supervisor that was started a moment ago time to listen. Never raises."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and not self._run_dir.socket.exists():
            time.sleep(0.02)

    def get(self, path: str, *, wait: float = 0.0, **query: Any) -> Any:
        """The JSON answer. ``wait``: seconds that the answer may take besides."""
        return json.loads(self._request("GET", path, query, wait=wait).read())

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer; ``body`` is sent as JSON, too."""
        return json.loads(self._request("POST", path, query, body=body).read())

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """The answer line by line, as it comes."""
        response = self._request("GET", path, query, endless=bool(query.get("follow")))
        try:
            for line in response:
                yield line.decode(errors="replace").rstrip("\n")
        except (ConnectionError, http.client.HTTPException):
            return  # the supervisor has ended

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        *,
        wait: float = 0.0,
        endless: bool = False,
        body: Any = None,
        again: bool = True,
    ) -> http.client.HTTPResponse:
        if not self._run_dir.socket.exists() and self._run_dir.owner():
            self.await_supervisor()
        connection = _UnixConnection(self._run_dir.socket, None if endless else _ANSWER + wait)
        target = quote(path, errors="replace")
        if query:
            target += "?" + urlencode(query, doseq=True, errors="replace")
        try:
            with contextlib.ExitStack() as unless_answered:
                unless_answered.callback(connection.close)
                headers = {"Connection": "close"}
                data = None
                if body is not None:
                    data, headers["Content-Type"] = json.dumps(body), "application/json"
                connection.request(method, target, data, headers)
                response = connection.getresponse()
                unless_answered.pop_all()
        except (FileNotFoundError, ConnectionRefusedError):
            raise Failure(self._absence(), NOT_RUNNING) from None
        except PermissionError:
            text = f"you may not open {self._run_dir.socket}; run this as the user who started it"
            raise Failure(text, FAILED) from None
        except NotADirectoryError:
            text = f"{self._run_dir.path} is no directory; name another one with --run-dir"
            raise Failure(text, USAGE) from None
        except TimeoutError:
            text = (
                f"the supervisor ({self._run_dir.owner() or 'gone by now'}) has not answered for "
                f"{_ANSWER:g} s; it may be suspended, or this machine too busy"
            )
            raise Failure(text, FAILED) from None
        except (ConnectionError, http.client.HTTPException):
            if method == "GET" and again and self._run_dir.owner():  # it is being upgraded
                return self._request(method, path, query, wait=wait, endless=endless, again=False)
            raise Failure("the supervisor has just ended", NOT_RUNNING) from None
        if response.status == 422:  # the problems of a file, each with its place
            raise Failure(_why(response), USAGE, prefix=False)
        if response.status != 200:
            raise Failure(_why(response), FAILED if response.status != 404 else USAGE)
        return response

    def _absence(self) -> str:
        from supervisor.runtime.leftovers import find
        from supervisor.runtime.templates import is_template

        found = {one.instance for one in find(self._run_dir.mark)}
        left = sorted(name for name in found if not is_template(name))
        if left:  # it was killed
            return (
                f"no supervisor is running for {self._config}, but {', '.join(left)} run on; "
                "`llm-supervisor up` goes on with them"
            )
        return f"no supervisor is running for {self._config}; start it with `llm-supervisor up`"


def _why(response: http.client.HTTPResponse) -> str:
    body = response.read().decode(errors="replace")
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the supervisor answers HTTP {response.status}: {body[:200]}"
