"""Real FastChat processes for the tests of the entry modules, and beside them the unmended ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
        stdin: str = "",
        env: dict[str, str] | None = None,
    ) -> Process:
        module = ["-m", f"fastchat.serve.{name}"] if plain else [str(ENTRY / f"{name}.py")]
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


def register(controller: Process, worker_name: str, model: str) -> None:
    registration = {
        "worker_name": worker_name,
        "check_heart_beat": False,
        "worker_status": {"model_names": [model], "speed": 1, "queue_length": 0},
    }
    answer = httpx.post(controller.url + "/register_worker", json=registration)
    assert answer.status_code == 200


@pytest.fixture(scope="session")
def register_worker() -> Callable[[Process, str, str], None]:
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
