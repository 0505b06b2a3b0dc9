"""Real FastChat processes for the tests of the entry modules, and beside them the unmended ones."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

REPOSITORY = Path(__file__).parents[3]
ENTRY = REPOSITORY / "supervisor" / "fastchat" / "entry"
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
PATIENCE = 60  # seconds; only a test that fails waits for so long

API_KEY = "sk-never-to-be-seen"
MODEL = "tiny-owl"
NOBODY = "http://127.0.0.1:1"  # an address where nothing listens


@dataclass
class Process:
    """A FastChat process on a loopback port, with all its output in `log_file`."""

    popen: subprocess.Popen[bytes]
    port: int
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self.log_file.read_text()

    def wait_until_served(self, method: str, path: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, f"ended before it served:\n{self.log()}"
            with contextlib.suppress(httpx.TransportError):
                httpx.request(method, self.url + path)
                return
            time.sleep(0.05)
        pytest.fail(f"does not serve:\n{self.log()}")

    def wait_until_logged(self, words: str, *, since: int = 0) -> None:
        """Wait for `words` in the log, `since` as many characters of it."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.log()[since:]:
            assert time.monotonic() < deadline, f"does not log {words!r}:\n{self.log()}"
            time.sleep(0.005)

    def exit_status(self) -> int:
        return self.popen.wait(PATIENCE)

    def exit_status_after(self, signum: signal.Signals) -> int:
        self.popen.send_signal(signum)
        return self.exit_status()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


Start = Callable[..., Process]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a module of FastChat, by its entry module or `plain`; all end with the tests."""
    processes: list[Process] = []

    def start(
        name: str,
        *flags: str,
        plain: bool = False,
        port: int | None = None,
        listener: socket.socket | None = None,
        stdin: str = "",
        env: dict[str, str] | None = None,
    ) -> Process:
        module = ["-m", f"fastchat.serve.{name}"] if plain else [str(ENTRY / f"{name}.py")]
        handed_over = []
        if listener:
            port, handed_over = listener.getsockname()[1], [listener.fileno()]
            env = {"LLM_SUPERVISOR_LISTEN_FD": str(listener.fileno())} | (env or {})
        port = port or free_port()
        folder = tmp_path_factory.mktemp(name)
        (folder / "stdin").write_text(stdin)
        with (folder / "stdin").open() as given, (folder / "log").open("w") as log:
            popen = subprocess.Popen(
                [sys.executable, *module, "--host", "127.0.0.1", "--port", str(port), *flags],
                stdin=given,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=ENVIRONMENT | (env or {}),
                start_new_session=True,
                preexec_fn=die_with_the_tests,
                pass_fds=handed_over,
            )
        processes.append(Process(popen, port, folder / "log"))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


ENVIRONMENT = os.environ | {
    "LOGDIR": "",
    "PYTHONUNBUFFERED": "1",
    "NO_PROXY": "localhost,127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "LLM_SUPERVISOR_NO_REGISTER": "1",
}


def die_with_the_tests() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="session")
def entry_folder() -> Path:
    return ENTRY


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the demonstration models."""
    folder = REPOSITORY / "models"
    if not (folder / MODEL / "config.json").exists():
        pytest.skip("no models: run scripts/make_demo_models.py")
    return folder


@pytest.fixture(scope="session")
def controller(start: Start) -> Process:
    controller = start("controller")
    controller.wait_until_served("GET", "/test_connection")
    return controller


@pytest.fixture(scope="session")
def plain_controller(start: Start) -> Process:
    controller = start("controller", plain=True)
    controller.wait_until_served("GET", "/test_connection")
    return controller


@pytest.fixture(scope="session")
def start_worker(start: Start) -> Start:
    """Starts a worker whose controller is down: only one that sends it nothing comes up."""

    def start_worker(
        name: str, *flags: str, env: dict[str, str] | None = None, **options: object
    ) -> Process:
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        net = ["--worker-address", address, "--controller-address", NOBODY]
        env = {"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "0"} | (env or {})  # a first one at once
        return start(name, *net, *flags, **{"port": port, **options}, env=env)

    return start_worker


@pytest.fixture(scope="session")
def worker(start_worker: Start, models: Path) -> Process:
    worker = start_worker(
        "model_worker",
        *("--model-path", str(models / MODEL), "--model-names", MODEL),
        *("--conv-template", "vicuna_v1.1", "--device", "cpu"),
    )
    worker.wait_until_served("POST", "/worker_get_status")
    return worker


@pytest.fixture(scope="session")
def registered(controller: Process, worker: Process) -> None:
    """The worker is registered as the supervisor does it."""
    register(controller, worker.url, MODEL)


def register(controller: Process, worker_name: str, model: str, *, queue_length: int = 0) -> None:
    registration = {
        "worker_name": worker_name,
        "check_heart_beat": False,
        "worker_status": {"model_names": [model], "speed": 1, "queue_length": queue_length},
    }
    answer = httpx.post(controller.url + "/register_worker", json=registration)
    assert answer.status_code == 200


@pytest.fixture(scope="session")
def register_worker() -> Callable[..., None]:
    return register


@pytest.fixture(scope="session")
def api_server(start: Start, controller: Process) -> Process:
    """The mended API server, with its key from stdin."""
    server = start(
        "openai_api_server",
        *("--controller-address", controller.url),
        stdin=f'{{"api_keys": ["{API_KEY}"]}}',
        env={"LLM_SUPERVISOR_SECRETS": "stdin"},
    )
    server.wait_until_served("GET", "/health")
    return server


@pytest.fixture(scope="session")
def plain_api_server(start: Start, controller: Process) -> Process:
    """FastChat's own API server, with its key in argv."""
    server = start(
        "openai_api_server",
        *("--controller-address", controller.url, "--api-keys", API_KEY),
        plain=True,
    )
    server.wait_until_served("GET", "/docs")
    return server


class FakeWorker(ThreadingHTTPServer):
    """A worker that fails at will, as no real one does, and remembers what it was asked.

    It answers `worker.words`, one word after the other. A generation goes through `worker.hook`,
    if there is one, as soon as it is asked for (`words` is 0) and after each word of a stream.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeWorkerHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.words = ["Tu-whit", " tu-who"]
        self.template = TEMPLATE
        self.status = 200
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.hook: Callable[[int], None] = lambda words: None
        self.left_alone = threading.Event()  # a client has gone before the end of its answer
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def prompts(self) -> list[str]:
        return [pload["prompt"] for path, pload in self.asked if "generate" in path]

    def die(self) -> None:
        """End as if killed: nobody listens any more, and the answer that runs is cut off."""
        self.shutdown()
        self.server_close()
        raise ConnectionAbortedError

    def handle_error(self, request: object, client_address: object) -> None:
        if isinstance(sys.exception(), BrokenPipeError | ConnectionResetError):
            self.left_alone.set()
        elif not isinstance(sys.exception(), ConnectionAbortedError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FakeWorkerHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWorker

    def do_POST(self) -> None:
        pload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, pload))
        if self.path == "/worker_generate_stream":
            self.stream()
        else:
            self.answer(json.dumps(self.contents()).encode())

    def contents(self) -> dict[str, Any]:
        if self.path == "/worker_generate":
            self.server.hook(0)
            return generated("".join(self.server.words), "stop")
        return {
            "/worker_get_conv_template": {"conv": self.server.template},
            "/model_details": {"context_length": 2048},
            "/count_token": {"count": 1},
        }[self.path]

    def answer(self, body: bytes) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        self.server.hook(0)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = self.server.words
        for count in range(1, len(words) + 1):
            self.send_chunk(generated("".join(words[:count]), None))
            self.server.hook(count)
        self.send_chunk(generated("".join(words), "stop"))
        self.wfile.write(b"0\r\n\r\n")

    def send_chunk(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\0"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))

    def log_message(self, *args: object) -> None:
        pass


def generated(text: str, finish_reason: str | None) -> dict[str, Any]:
    if text == "nonsense":
        return {}
    if text.startswith("error "):
        return {"text": text, "error_code": int(text.split()[1])}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish_reason}


TEMPLATE = {
    "name": "fake",
    "system_template": "{system_message}",
    "system_message": "",
    "roles": ["USER", "ASSISTANT"],
    "messages": [],
    "offset": 0,
    "sep_style": 1,
    "sep": "\n",
    "sep2": None,
    "stop_str": None,
    "stop_token_ids": None,
}


@pytest.fixture
def fake_worker() -> Iterator[Callable[[], FakeWorker]]:
    workers: list[FakeWorker] = []

    def start_fake_worker() -> FakeWorker:
        workers.append(FakeWorker())
        return workers[-1]

    yield start_fake_worker
    for worker in workers:
        worker.shutdown()
        worker.server_close()
