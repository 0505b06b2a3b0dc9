"""From real log tails to one sentence. Long paths are shortened, the words are as they were."""

from __future__ import annotations

from textwrap import dedent

import pytest

from supervisor.core.diagnosis import Diagnosis, diagnose


def said(text: str) -> list[str]:
    return dedent(text).strip("\n").splitlines()


def fastchat(text: str) -> list[str]:
    """As FastChat logs what is written to stderr."""
    return [f"2026-11-22 20:00:40 | ERROR | stderr | {line}" for line in said(text)]


ARGUMENTS = fastchat("""
    usage: model_worker.py [-h] [--host HOST] [--port PORT]
                           [--worker-address WORKER_ADDRESS]
                           [--seed SEED] [--debug DEBUG] [--ssl]
    model_worker.py: error: unrecognized arguments: --nonsense 3
""")

NOT_A_MODEL = fastchat("""
    Traceback (most recent call last):
      File ".../huggingface_hub/utils/_http.py", line 409, in hf_raise_for_status
        response.raise_for_status()
    requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/x

    The above exception was the direct cause of the following exception:

    Traceback (most recent call last):
      File ".../fastchat/model/model_adapter.py", line 88, in load_model
        tokenizer = AutoTokenizer.from_pretrained(
      File ".../transformers/utils/hub.py", line 470, in cached_files
        raise EnvironmentError(
    OSError: lmsys/vicuna-7 is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
    If this is a private repository, make sure to pass a token having permission to this repo either by logging in with `hf auth login` or by passing `token=<your_token>`
""")  # noqa: E501

NO_SUCH_FOLDER = fastchat("""
      File ".../huggingface_hub/utils/_validators.py", line 154, in validate_repo_id
        raise HFValidationError(
    huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.
""")  # noqa: E501

OFFLINE = fastchat("""
      File ".../transformers/utils/hub.py", line 553, in cached_files
        raise OSError(
    OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
    Check your internet connection or see how to run the library in offline mode at 'https://huggingface.co/docs/transformers/installation#offline-mode'.
""")  # noqa: E501

NO_WEIGHTS = fastchat("""
        raise EnvironmentError(
    OSError: Error no file named pytorch_model.bin, model.safetensors, tf_model.h5, model.ckpt.index or flax_model.msgpack found in directory /models/empty.
""")  # noqa: E501

MISSING_PACKAGE = said("""
    Traceback (most recent call last):
      File "/repo/supervisor/fastchat/entry/vllm_worker.py", line 31, in <module>
        from vllm import AsyncLLMEngine
    ModuleNotFoundError: No module named 'vllm'
""")

CUDA_OOM = fastchat("""
      File ".../torch/nn/modules/module.py", line 1334, in convert
        return t.to(
    torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 86.00 MiB. GPU 0 has a total capacity of 23.69 GiB of which 61.94 MiB is free.
""")  # noqa: E501

CUDA_OOM_OF_ONE_RANK = said("""
    [rank1]:   File ".../torch/nn/modules/linear.py", line 105, in __init__
    [rank1]:     torch.empty((out_features, in_features), **factory_kwargs)
    [rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
""")

CUDA_OOM_IN_VLLM = said("""
    INFO 07-01 12:00:01 [loader.py:458] Loading weights took 3.02 seconds
    (EngineCore_0 pid=272) ERROR 07-01 12:00:09 [core.py:586]     raise e
    (EngineCore_0 pid=272) ERROR 07-01 12:00:09 [core.py:586] torch.OutOfMemoryError: CUDA out of memory.
""")  # noqa: E501

NO_GPU = fastchat("""
        torch._C._cuda_init()
    RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU.
""")

PORT_IN_USE = fastchat("""
    INFO:     Started server process [14664]
    INFO:     Application startup complete.
    ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 39992): address already in use
    INFO:     Waiting for application shutdown.
    INFO:     Application shutdown complete.
""")  # noqa: E501

PORT_IN_USE_ELSEWHERE = said("""
        self.socket.bind(self.server_address)
    OSError: [Errno 98] Address already in use
""")

CPU_OOM = fastchat("""
    RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 90177536 bytes. Error code 12 (Cannot allocate memory)
""")  # noqa: E501

NO_SCRIPT = said("""
    /usr/bin/python3: can't open file '/srv/webui.py': [Errno 2] No such file or directory
""")


@pytest.mark.parametrize(
    ("lines", "meaning", "quote", "hopeless"),
    [
        pytest.param(*case, id=case[1])
        for case in [
            (ARGUMENTS, "its command line is wrong", "--nonsense 3", True),
            (NOT_A_MODEL, "the model cannot be found", "OSError: lmsys/vicuna-7 is not a", True),
            (NO_SUCH_FOLDER, "the model cannot be found", "'/nonexistent/model'", True),
            (OFFLINE, "Hugging Face cannot be reached", "couldn't find them in the cached", True),
            (NO_WEIGHTS, "the model cannot be found", "/models/empty", True),
            (MISSING_PACKAGE, "a Python package is missing", "No module named 'vllm'", True),
            (NO_GPU, "it asks for a GPU that it cannot see", "Found no NVIDIA driver", True),
            (NO_SCRIPT, "a file is missing", "/srv/webui.py", True),
            (CUDA_OOM, "the GPU is out of memory", "torch.OutOfMemoryError", False),
            (CUDA_OOM_OF_ONE_RANK, "the GPU is out of memory", "(torch.OutOfMemory", False),
            (CUDA_OOM_IN_VLLM, "the GPU is out of memory", "(torch.OutOfMemory", False),
            (CPU_OOM, "the machine is out of memory", "you tried to allocate", False),
            (PORT_IN_USE, "its port is taken", "('127.0.0.1', 39992)", False),
            (PORT_IN_USE_ELSEWHERE, "its port is taken", "OSError: [Errno 98]", False),
        ]
    ],
)
def test_known_ends(lines: list[str], meaning: str, quote: str, hopeless: bool) -> None:
    found = diagnose("exited with 1", lines)
    assert found.cause.startswith("exited with 1: ")
    assert meaning in found.cause
    assert quote in found.cause
    assert "2026-11-22" not in found.cause
    assert found.hopeless is hopeless


def test_an_unknown_exception_is_quoted_rather_than_what_follows_it() -> None:
    found = diagnose(
        "exited with 3",
        fastchat("""
              File ".../fastchat/serve/model_worker.py", line 93, in __init__
                raise ValueError("failed to understand")
            ValueError: rope_scaling must be a dictionary with two fields

            ERROR:    Application startup failed. Exiting.
        """),
    )
    assert found == Diagnosis(
        "exited with 3: ValueError: rope_scaling must be a dictionary with two fields", False
    )


def test_the_last_exception_counts_not_an_older_one_that_was_survived() -> None:
    lines = said("""
        ModuleNotFoundError: No module named 'flash_attn'
        RuntimeError: CUDA error: device-side assert triggered
    """)
    found = diagnose("exited with 1", lines)
    assert found.cause == "exited with 1: RuntimeError: CUDA error: device-side assert triggered"
    assert not found.hopeless


def test_source_code_in_a_traceback_is_not_taken_for_the_error_that_it_could_raise() -> None:
    lines = fastchat("""
          File ".../transformers/utils/import_utils.py", line 1967, in requires_backends
            raise ImportError("".join(failed))
        RuntimeError: something else
    """)
    assert diagnose("exited with 1", lines).cause == "exited with 1: RuntimeError: something else"


ORDINARY = [
    '2026-11-22 20:00:40 | INFO | stdout | INFO:     127.0.0.1:50100 - "POST /x" 500 Some Error',
    '2026-11-22 20:00:40 | ERROR | stderr | INFO:     "GET /v1/models" 500 Internal Server Error',
    "2026-11-22 20:00:40 | INFO | model_worker | Loading the model ['error-7b'] on worker 1a2b ...",
    "2026-11-22 20:00:40 | ERROR | stderr | WARNING:  Invalid HTTP request, error ignored.",
    "INFO 07-01 12:00:01 [importing.py:17] Triton not installed: No module named 'triton'",
    "WARNING 07-01 12:00:01 [config.py:1] No such file or directory: /etc/vllm.json",
    "/venv/lib/foo.py:12: FutureWarning: `resume_download` failed to matter, MemoryError",
    "=== 2026-11-22T20:00:40Z llm-supervisor: starting python run.py --on-error fatal ===",
    "Traceback (most recent call last):",
    "",
]


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_lines_are_never_quoted_as_a_cause(line: str) -> None:
    found = diagnose("exited with 1", ["something else", line])
    assert found == Diagnosis("exited with 1; its log does not say why", hopeless=False)


def test_an_error_that_is_no_exception_is_better_than_nothing() -> None:
    found = diagnose("exited with 255", ["Error: Failed to load exllamav2.", "bye"])
    assert found.cause == "exited with 255: Error: Failed to load exllamav2."


def test_an_empty_log() -> None:
    assert diagnose("exited with 1", []).cause == "exited with 1; its log does not say why"


def test_killed_is_not_blamed_on_what_its_log_last_complained_of() -> None:
    found = diagnose("was killed by SIGKILL", MISSING_PACKAGE)
    assert found == Diagnosis(
        "was killed by SIGKILL (by hand, or by the kernel for want of memory)", hopeless=False
    )


def test_ended_by_somebody_elses_signal() -> None:
    found = diagnose("was killed by SIGTERM", ARGUMENTS)
    assert found == Diagnosis("was killed by SIGTERM (sent by somebody else)", hopeless=False)


def test_a_crash_by_a_signal_of_its_own_making_is_explained_by_its_log() -> None:
    lines = ["Fatal Python error: Segmentation fault", "", "Current thread 0x0001 (no frame)"]
    found = diagnose("was killed by SIGSEGV", lines)
    assert found.cause == "was killed by SIGSEGV: Fatal Python error: Segmentation fault"


def test_exit_0_is_not_explained_by_an_error() -> None:
    found = diagnose("exited with 0", NOT_A_MODEL)
    assert found == Diagnosis("exited with 0, as if its work were done", hopeless=False)


def test_a_long_line_is_cut() -> None:
    found = diagnose("exited with 1", [f"ValueError: {'x' * 1000}"])
    assert len(found.cause) == len("exited with 1: ") + 200
    assert found.cause.endswith("...")
