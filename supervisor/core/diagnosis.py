"""From the end of a process to the one sentence that says why, and the class of the cause. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class CauseClass(StrEnum):
    """Why a process ended, as far as it matters for what to do next (``restart.py``)."""

    WRONG_CONFIG = "wrong configuration"
    """No restart can mend it: the file, or the machine, has to change."""
    PORT_BUSY = "port busy"
    GPU_MEMORY = "out of GPU memory"
    HOST_MEMORY = "out of host memory"
    GPU_LOST = "GPU lost"
    """Its GPU does not answer, or not correctly: fallen off the bus, ECC errors, driver gone."""
    ENGINE_ERROR = "engine error"
    """What computes has failed: a CUDA kernel, NCCL, the engine of vLLM or sglang."""
    UNKNOWN = "unknown"

    @property
    def is_hopeless(self) -> bool:
        return self is CauseClass.WRONG_CONFIG


@dataclass(frozen=True, slots=True)
class Diagnosis:
    cause: str
    kind: CauseClass

    @property
    def hopeless(self) -> bool:
        return self.kind.is_hopeless


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: str
    """Not compiled before the first death: a start has no time for it."""
    kind: CauseClass
    meaning: str
    """Empty where the line says it better."""


def _sign(kind: CauseClass, meaning: str, *patterns: str) -> _Sign:
    return _Sign("|".join(patterns), kind, meaning)


_SIGNS = (
    _sign(CauseClass.WRONG_CONFIG, "its command line is wrong",
          r"error: (?:unrecognized arguments|argument |the following arguments)"),
    _sign(CauseClass.WRONG_CONFIG,
          "the model is not on this machine, and Hugging Face cannot be reached",
          r"[Cc]ouldn't connect to '?https?://", r"LocalEntryNotFoundError"),
    _sign(CauseClass.WRONG_CONFIG, "the model cannot be found",
          r"is not a local folder and is not a valid model identifier", r"Repository Not Found",
          r"does not appear to have a file named", r"Incorrect path_or_model_id",
          r"HFValidationError", r"RepositoryNotFoundError", r"GatedRepoError",
          r"You are trying to access a gated repo", r"Unrecognized model in",
          r"Error no file named", r"(?:gptq|AWQ) checkpoint not found"),
    _sign(CauseClass.WRONG_CONFIG, "the model's files are damaged",
          r"SafetensorError", r"PytorchStreamReader failed"),
    _sign(CauseClass.WRONG_CONFIG, "the model brings code of its own, which is not trusted",
          r"contains custom code which must be executed",
          r"requires you to execute the configuration file"),
    _sign(CauseClass.WRONG_CONFIG, "its engine does not know this kind of model",
          r"does not recognize this architecture", r"Model architectures \[.*\] are not supported"),
    _sign(CauseClass.WRONG_CONFIG, "a Python package is missing",
          r"No module named", r"ModuleNotFoundError", r"ImportError"),
    _sign(CauseClass.WRONG_CONFIG, "",
          r"Failed to (?:load|import) (?:GPTQ-for-LLaMa|tinychat|[Ee]xllama|xFasterTransformer)"),
    _sign(CauseClass.WRONG_CONFIG, "bitsandbytes does not work with this CUDA",
          r"CUDA Setup failed despite", r"library version not found: libbitsandbytes"),
    _sign(CauseClass.WRONG_CONFIG, "its GPU cannot run this kind of model",
          r"no kernel image is available",
          r"[Qq]uantization (?:method \S+|scheme) is not supported",
          r"Bfloat16 is only supported on GPUs"),
    _sign(CauseClass.WRONG_CONFIG, "the model does not fit the number of its GPUs",
          r"must be divisible by tensor parallel size",
          r"number of required GPUs exceeds the total"),
    _sign(CauseClass.WRONG_CONFIG, "the GPU's driver is too old",
          r"driver on your system is too old", r"driver version is insufficient"),
    _sign(CauseClass.WRONG_CONFIG, "it asks for a GPU that it cannot see",
          r"Torch not compiled with CUDA enabled", r"No CUDA GPUs are available",
          r"Found no NVIDIA driver", r"invalid device ordinal",
          r"NVML Shared Library Not Found", r"no CUDA-capable device is detected"),
    _sign(CauseClass.GPU_MEMORY, "the GPU is out of memory",
          r"(?:CUDA|HIP|NPU) out of memory", r"OutOfMemoryError", r"CUDA error: out of memory",
          r"Cuda failure \d* ?'out of memory'", r"CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED",
          r"CUBLAS_STATUS_NOT_INITIALIZED",  # so PyTorch says if no memory is left for a handle
          r"No available memory for the cache blocks",
          r"less than desired GPU memory utilization",
          r"larger than the (?:maximum number of tokens that can be stored in|available) KV cache",
          r"Not enough memory\. Please try to increase --mem-fraction-static",
          r"Not enough memory to allocate KV cache", r"enough GPU RAM to fit"),
    _sign(CauseClass.GPU_LOST, "the GPU is lost",
          r"GPU[_ ]is[_ ]lost", r"GpuIsLost", r"fallen off the bus", r"\bXid\b.*\d"),
    _sign(CauseClass.GPU_LOST, "the GPU's memory or link is broken",
          r"uncorrectable (?:ECC|NVLink) error", r"ECC_UNCORRECTABLE"),
    _sign(CauseClass.GPU_LOST, "the GPU cannot be reached",
          r"CUDA driver initialization failed", r"Driver/library version mismatch",
          r"CUDA (?:error: )?unknown error", r"Unexpected error from cudaGetDeviceCount",
          r"CUDA error: (?:initialization error|system not yet initialized)",
          r"CUDA-capable device\(s\) is/are busy or unavailable",
          r"NVMLError", r"[Ff]ailed to initialize NVML", r"Unable to determine the device handle"),
    _sign(CauseClass.PORT_BUSY, "its port is taken",
          r"[Aa]ddress already in use"),
    _sign(CauseClass.HOST_MEMORY, "the machine is out of shared memory",
          r"out of shared memory", r"creating shared memory segment"),
    _sign(CauseClass.HOST_MEMORY, "the machine is out of memory",
          r"MemoryError", r"DefaultCPUAllocator: can't allocate", r"Cannot allocate memory",
          r"std::bad_alloc"),
    _sign(CauseClass.ENGINE_ERROR, "",
          r"CUDA error", r"HIP error", r"NCCL (?:e|E)rror", r"ncclUnhandled", r"DistBackendError",
          r"cuDNN error", r"CU(?:BLAS|DNN|SPARSE)_STATUS_", r"caught collective operation timeout"),
    _sign(CauseClass.UNKNOWN, "a disk is full", r"No space left on device"),
    _sign(CauseClass.UNKNOWN, "it has too many open files", r"Too many open files"),
    _sign(CauseClass.WRONG_CONFIG, "a file is missing",
          r"can't open file", r"Is a directory", r"No such file or directory"),
)  # fmt: skip
"""Ends of FastChat 0.2.36, PyTorch, transformers, vLLM, sglang, bitsandbytes, NVML and NCCL; the
first sign that fits a line counts."""

_SEE_ABOVE = re.compile(
    r"Engine ?[Cc]ore (?:initialization failed|failed to start|encountered|hit an exception)|"
    r"EngineDeadError|Background loop has errored|Engine loop is not running|"
    r"Engine process failed to start|WorkerProc initialization failed|"
    r"died unexpectedly|died, exit code|Received sigquit from a child|scheduler is dead|"
    r"Scheduler hit an exception"
)
"""One process of an engine tells that another one has ended; that one has said why before."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| (?P<fastchat>\w+) \| \w+ \| ?"  # build_logger, utils.py
    r"|^(?:\(\w+ pid=\d+[^)]*\) )?(?P<vllm>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d (?:\[\S+\]|\S+\]) ?"
    r"|^\(\w+ pid=\d+[^)]*\) "  # vLLM, of a process that prints
    r"|^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] "  # sglang
)
_RANK = re.compile(r"^\[rank\d+\]: ")
"""torch.distributed, before each line of a traceback."""
_INDENTED = re.compile(r"^\s+(?:what\(\): +|(?=CUDA Setup failed))")
"""Causes that are indented: an exception that nobody has caught (libstdc++), and bitsandbytes."""
_IDLE = re.compile(r"^(DEBUG|INFO|WARNING)\b[: ]|\b\w*Warning: ")
"""uvicorn, logging, and ``warnings``: talk, however bad it sounds, that ended nothing."""
_NOISE = re.compile(r"^\s|^$|^=== .* ===$|^Traceback \(most recent")
"""Our own marks, and the indented lines of a traceback, which quote source code."""
_EXCEPTION = re.compile(r"^[\w.]+(Error|Exception|Interrupt)\b")
_COMPLAINT = re.compile(r"\b(error|fatal|cannot|failed)\b", re.IGNORECASE)
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
_KILLED_CHILD = re.compile(r"exit ?code:? -9\b|SIGKILL")


def diagnose(ended: str, lines: Sequence[str], *, oom_kill: bool = False) -> Diagnosis:
    """``ended`` is how (`exited with 1`), ``lines`` the last ones of the run, oldest first.

    ``oom_kill``: the kernel has just killed some process of this machine for want of memory.
    """
    if ended.endswith(("SIGKILL", "exited with 137")) and oom_kill:  # 137: a shell's for SIGKILL
        cause = f"{ended}: the kernel killed it for want of memory"
        return Diagnosis(cause, CauseClass.HOST_MEMORY)
    if ended.endswith("SIGKILL"):
        cause = f"{ended} (by hand, or by the kernel for want of memory)"
        return Diagnosis(cause, CauseClass.UNKNOWN)
    if ended.endswith(_FROM_OUTSIDE):
        return Diagnosis(f"{ended} (sent by somebody else)", CauseClass.UNKNOWN)
    if ended == "exited with 0":
        return Diagnosis(f"{ended}, as if its work were done", CauseClass.UNKNOWN)
    said = [line for line in map(_message, lines) if line]
    if oom_kill and any(_SEE_ABOVE.search(one) and _KILLED_CHILD.search(one) for one in said):
        cause = f"{ended}: the kernel killed a part of it for want of memory"
        return Diagnosis(cause, CauseClass.HOST_MEMORY)
    return _explained(ended, said)


def _explained(ended: str, said: Sequence[str]) -> Diagnosis:
    """From the last line that can be a cause, or from one that it refers to."""
    referring: str | None = None
    for line in reversed(said):
        if _SEE_ABOVE.search(line):
            referring = referring or line
            continue
        sign = next((sign for sign in _SIGNS if re.search(sign.pattern, line)), None)
        if sign is not None and sign.meaning:
            return Diagnosis(f"{ended}: {sign.meaning} ({_short(line)})", sign.kind)
        if sign is not None:
            return Diagnosis(f"{ended}: {_short(line)}", sign.kind)
        if _EXCEPTION.search(line):
            kind = CauseClass.ENGINE_ERROR if referring else CauseClass.UNKNOWN
            return Diagnosis(f"{ended}: {_short(line)}", kind)
    if referring is not None:
        return Diagnosis(f"{ended}: {_short(referring)}", CauseClass.ENGINE_ERROR)
    complaint = next((line for line in reversed(said) if _COMPLAINT.search(line)), None)
    if complaint is not None:
        return Diagnosis(f"{ended}: {_short(complaint)}", CauseClass.UNKNOWN)
    return Diagnosis(f"{ended}; its log does not say why", CauseClass.UNKNOWN)


def _message(line: str) -> str:
    """What a line says, without its prefix; nothing if it cannot be the cause of an end."""
    line = _COLOUR.sub("", line)
    prefix = _PREFIX.match(line)
    if prefix is not None:
        level = prefix["fastchat"] or prefix["vllm"]
        if level in ("DEBUG", "INFO", "WARNING"):
            return ""
        line = line[prefix.end() :]
    line = _INDENTED.sub("", _RANK.sub("", line.rstrip()))
    return "" if _NOISE.search(line) or _IDLE.search(line) else line


def _short(line: str) -> str:
    return line if len(line) <= 200 else line[:197] + "..."
