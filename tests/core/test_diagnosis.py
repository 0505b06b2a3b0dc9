"""From real log tails to one sentence. Long paths are shortened, the words are as they were."""
# ruff: noqa: E501

from __future__ import annotations

from textwrap import dedent

import pytest

from supervisor.core.diagnosis import CauseClass, Diagnosis, diagnose


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
""")

NO_SUCH_FOLDER = fastchat("""
      File ".../huggingface_hub/utils/_validators.py", line 154, in validate_repo_id
        raise HFValidationError(
    huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.
""")

OFFLINE = fastchat("""
      File ".../transformers/utils/hub.py", line 553, in cached_files
        raise OSError(
    OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
    Check your internet connection or see how to run the library in offline mode at 'https://huggingface.co/docs/transformers/installation#offline-mode'.
""")

NO_WEIGHTS = fastchat("""
        raise EnvironmentError(
    OSError: Error no file named pytorch_model.bin, model.safetensors, tf_model.h5, model.ckpt.index or flax_model.msgpack found in directory /models/empty.
""")

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
""")

CUDA_OOM_OF_ONE_RANK = said("""
    [rank1]:   File ".../torch/nn/modules/linear.py", line 105, in __init__
    [rank1]:     torch.empty((out_features, in_features), **factory_kwargs)
    [rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
""")

CUDA_OOM_IN_VLLM = said("""
    INFO 07-01 12:00:01 [loader.py:458] Loading weights took 3.02 seconds
    (EngineCore_0 pid=272) ERROR 07-01 12:00:09 [core.py:586]     raise e
    (EngineCore_0 pid=272) ERROR 07-01 12:00:09 [core.py:586] torch.OutOfMemoryError: CUDA out of memory.
""")

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
""")

PORT_IN_USE_ELSEWHERE = said("""
        self.socket.bind(self.server_address)
    OSError: [Errno 98] Address already in use
""")

CPU_OOM = fastchat("""
    RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 90177536 bytes. Error code 12 (Cannot allocate memory)
""")

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


# Each as its program prints it at its end; where: torch = PyTorch 2, vLLM 0.2 to 0.11, sglang 0.1 to
# 0.4, bnb = bitsandbytes, NVML and NCCL as Python programs report them. From their sources, and from
# reports of their users (vllm#1282, #2248, #5060, #5222, #10523, #17618, #25022, sglang#322, #3204,
# bitsandbytes#572, pytorch#131117, nvidia-docker#1671).
ENDS: dict[CauseClass, dict[str, str]] = {
    CauseClass.WRONG_CONFIG: {
        "bnb: no CUDA": "    CUDA Setup failed despite GPU being available. Please run the following",
        "torch: old GPU": "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "vLLM: AWQ on an old GPU": "ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75. Current capability: 70.",
        "vLLM: compressed tensors": "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. Min capability: 80. ', 'Current capability: 75.')",
        "vLLM: unknown model": "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys(['AquilaModel'])",
        "vLLM: heads": "ValueError: Total number of attention heads (12) must be divisible by tensor parallel size (8).",
        "vLLM: GPUs": "ValueError: The number of required GPUs exceeds the total number of available GPUs in the placement group.",
        "transformers: new model": "ValueError: The checkpoint you are trying to load has model type `foo` but Transformers does not recognize this architecture.",
        "transformers: code": "ValueError: The repository /models/foo contains custom code which must be executed to correctly load the model.",
        "safetensors: git lfs pointer": "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        "torch: cut file": "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        "torch: driver": "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        "torch: no GPU": "RuntimeError: No CUDA GPUs are available",
        "torch: CPU build": "AssertionError: Torch not compiled with CUDA enabled",
        "NVML: none": "pynvml.NVMLError_LibraryNotFound: NVML Shared Library Not Found",
        "FastChat: GPTQ": "Error: Failed to load GPTQ-for-LLaMa. cannot import name 'load_quant'",
        "FastChat: AWQ": "Error: AWQ checkpoint not found",
        "FastChat: tinychat": "Error: Failed to import tinychat. No module named 'tinychat'",
    },
    CauseClass.GPU_MEMORY: {
        "torch, old": "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 31.75 GiB total capacity)",
        "torch, driver": "RuntimeError: CUDA error: out of memory",
        "torch, cuBLAS": "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "torch, cuBLAS handle": "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "torch, cuDNN": "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "vLLM, cache": "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        "vLLM, taken": "ValueError: Free memory on device (3.2/23.6 GiB) on startup is less than desired GPU memory utilization (0.9, 21.2 GiB).",
        "vLLM, length": "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be stored in KV cache (9648).",
        "sglang": "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "NCCL": "Cuda failure 2 'out of memory'",
        "transformers, 8 bit": "ValueError: Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit the quantized model.",
    },
    CauseClass.GPU_LOST: {
        "torch, ECC": "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "torch, ECC in C++": "  what():  CUDA error: uncorrectable ECC error encountered",
        "torch, NVLink": "RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution",
        "torch, driver gone": "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.",
        "torch, unknown": "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment",
        "torch, fabric": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before? Error 802: system not yet initialized",
        "torch, exclusive": "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "NVML, lost": "pynvml.NVMLError_GpuIsLost: GPU is lost",
        "NVML, updated": "Failed to initialize NVML: Driver/library version mismatch",
        "NVML, container": "Failed to initialize NVML: Unknown Error",
        "nvidia-smi": "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system to recover this GPU",
        "kernel": "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus.",
    },
    CauseClass.ENGINE_ERROR: {
        "torch, assert": "RuntimeError: CUDA error: device-side assert triggered",
        "torch, address": "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "torch, launch": "RuntimeError: CUDA error: unspecified launch failure",
        "torch, cuBLAS": "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "torch, NCCL": "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:1333, unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "vLLM, NCCL": "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "NCCL, hang": "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE)",
        "vLLM 0": "vllm.engine.async_llm_engine.AsyncEngineDeadError: Background loop has errored already.",
        "vLLM 1": "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "vLLM 1, start": "(APIServer pid=64866) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "vLLM, worker": "ERROR 08-23 08:25:25 multiproc_worker_utils.py:120] Worker VllmWorkerProcess pid 232 died, exit code: -15",
        "sglang": "[2025-07-02 07:41:58 TP0] Received sigquit from a child process. It usually means the child failed.",
    },
    CauseClass.HOST_MEMORY: {
        "numpy": "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array",
        "torch, file": "RuntimeError: unable to mmap 9976576152 bytes from file </models/a.safetensors>: Cannot allocate memory (12)",
        "C++": "terminate called after throwing an instance of 'std::bad_alloc'",
        "shared": "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
        "NCCL": "misc/shmutils.cc:72 NCCL WARN Error: failed creating shared memory segment /dev/shm/nccl-abc (size 9637888)",
        "fork": "OSError: [Errno 12] Cannot allocate memory",
    },
    CauseClass.PORT_BUSY: {
        "asyncio": "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
        "torch, rendezvous": "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. (errno: 98 - Address already in use).",
        "gRPC": "E1122 bind: Address already in use",
    },
    CauseClass.UNKNOWN: {
        "disk": "OSError: [Errno 28] No space left on device: '/var/cache/x'",
        "descriptors": "OSError: [Errno 24] Too many open files: '/models/a.safetensors'",
        "somebody's": "ValueError: rope_scaling must be a dictionary with two fields",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        pytest.param(kind, line, id=f"{kind}: {name}")
        for kind, lines in ENDS.items()
        for name, line in lines.items()
    ],
)
def test_the_class_of_known_ends(kind: CauseClass, line: str) -> None:
    before = said("""
        WARNING 07-01 12:00:01 [config.py:1] CUDA out of memory, port 1 Address already in use
        Traceback (most recent call last):
          File ".../x.py", line 1, in <module>
            raise RuntimeError("CUDA out of memory. GPU is lost. Address already in use")
    """)
    after = said("""
        CUDA kernel errors might be asynchronously reported at some other API call.
        For debugging consider passing CUDA_LAUNCH_BLOCKING=1.
        Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

        bye
    """)
    found = diagnose("exited with 1", [*before, line, *after])
    assert found.kind is kind
    assert found.hopeless is (kind is CauseClass.WRONG_CONFIG)
    assert found.cause.startswith("exited with 1: ")


def test_every_class_has_an_example() -> None:
    assert set(ENDS) == set(CauseClass)


ENGINE_OUT_OF_MEMORY = said("""
    (EngineCore_0 pid=272) ERROR 10-25 13:08:43 [core.py:708] EngineCore failed to start.
    (EngineCore_0 pid=272) ERROR 10-25 13:08:43 [core.py:708] Traceback (most recent call last):
    (EngineCore_0 pid=272) ERROR 10-25 13:08:43 [core.py:708]     raise ValueError("No available memory for the cache blocks. "
    (EngineCore_0 pid=272) ERROR 10-25 13:08:43 [core.py:708] ValueError: No available memory for the cache blocks. Try increasing it.
    (APIServer pid=64866)     raise RuntimeError(
    (APIServer pid=64866) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': 1}
""")


def test_an_engine_that_refers_to_a_cause_above_is_told_by_that_cause() -> None:
    found = diagnose("exited with 1", ENGINE_OUT_OF_MEMORY)
    assert found.kind is CauseClass.GPU_MEMORY
    assert "the GPU is out of memory (ValueError: No available memory" in found.cause


def test_an_engine_that_refers_to_an_unknown_cause_quotes_it_and_is_an_engine_error() -> None:
    lines = said("""
        AssertionError: tensor sizes differ
        EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
    """)
    found = diagnose("exited with 1", lines)
    assert found == Diagnosis(
        "exited with 1: AssertionError: tensor sizes differ", CauseClass.ENGINE_ERROR
    )


def test_colours_hide_nothing() -> None:
    coloured = (
        "\x1b[1;36m(VllmWorkerProcess pid=7)\x1b[0;0m ERROR 08-28 14:16:50 a.py:1] GPU is lost"
    )
    found = diagnose("exited with 1", [coloured])
    assert found == Diagnosis("exited with 1: the GPU is lost (GPU is lost)", CauseClass.GPU_LOST)


@pytest.mark.parametrize("ended", ["was killed by SIGKILL", "exited with 137"])
def test_with_evidence_the_kernel_is_blamed_for_a_kill(ended: str) -> None:
    """137 is what a shell exits with whose command was killed."""
    found = diagnose(ended, ["ready"], oom_kill=True)
    assert found == Diagnosis(
        f"{ended}: the kernel killed it for want of memory", CauseClass.HOST_MEMORY
    )


def test_with_evidence_the_kernel_is_blamed_for_a_part_that_was_killed() -> None:
    died = "ERROR 08-23 08:25:25 utils.py:120] Worker VllmWorkerProcess pid 7 died, exit code: -9"
    assert diagnose("exited with 1", [died], oom_kill=True).kind is CauseClass.HOST_MEMORY
    assert diagnose("exited with 1", [died]).kind is CauseClass.ENGINE_ERROR


def test_somebody_elses_want_of_memory_explains_no_other_end() -> None:
    for ended, lines in (
        ("exited with 1", CUDA_OOM),
        ("was killed by SIGTERM", []),
        ("exited with 0", []),
    ):
        assert diagnose(ended, lines, oom_kill=True) == diagnose(ended, lines)


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
        "exited with 3: ValueError: rope_scaling must be a dictionary with two fields",
        CauseClass.UNKNOWN,
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
    assert found == Diagnosis("exited with 1; its log does not say why", CauseClass.UNKNOWN)


def test_an_error_that_is_no_exception_is_better_than_nothing() -> None:
    found = diagnose("exited with 255", ["Error: Failed to load exllamav2.", "bye"])
    assert found.cause == "exited with 255: Error: Failed to load exllamav2."


def test_an_empty_log() -> None:
    assert diagnose("exited with 1", []).cause == "exited with 1; its log does not say why"


def test_killed_is_not_blamed_on_what_its_log_last_complained_of() -> None:
    found = diagnose("was killed by SIGKILL", MISSING_PACKAGE)
    assert found == Diagnosis(
        "was killed by SIGKILL (by hand, or by the kernel for want of memory)", CauseClass.UNKNOWN
    )


def test_ended_by_somebody_elses_signal() -> None:
    found = diagnose("was killed by SIGTERM", ARGUMENTS)
    assert found == Diagnosis("was killed by SIGTERM (sent by somebody else)", CauseClass.UNKNOWN)


def test_a_crash_by_a_signal_of_its_own_making_is_explained_by_its_log() -> None:
    lines = ["Fatal Python error: Segmentation fault", "", "Current thread 0x0001 (no frame)"]
    found = diagnose("was killed by SIGSEGV", lines)
    assert found.cause == "was killed by SIGSEGV: Fatal Python error: Segmentation fault"


def test_exit_0_is_not_explained_by_an_error() -> None:
    found = diagnose("exited with 0", NOT_A_MODEL)
    assert found == Diagnosis("exited with 0, as if its work were done", CauseClass.UNKNOWN)


def test_a_long_line_is_cut() -> None:
    found = diagnose("exited with 1", [f"ValueError: {'x' * 1000}"])
    assert len(found.cause) == len("exited with 1: ") + 200
    assert found.cause.endswith("...")
