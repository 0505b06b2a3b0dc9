"""From a log's last lines to the one sentence that says why a process ended. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnosis:
    cause: str
    hopeless: bool
    """No restart can mend it: the file, or the machine, has to change."""


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: re.Pattern[str]
    meaning: str
    hopeless: bool


def _sign(pattern: str, meaning: str, *, hopeless: bool) -> _Sign:
    return _Sign(re.compile(pattern), meaning, hopeless)


_SIGNS = (
    _sign(r"error: (unrecognized arguments|argument |the following arguments)",
          "its command line is wrong", hopeless=True),
    _sign(r"[Cc]ouldn't connect to '?https?://|LocalEntryNotFoundError",
          "the model is not on this machine, and Hugging Face cannot be reached", hopeless=True),
    _sign(r"is not a local folder and is not a valid model identifier|Repository Not Found|"
          r"does not appear to have a file named|Incorrect path_or_model_id|HFValidationError|"
          r"RepositoryNotFoundError|GatedRepoError|You are trying to access a gated repo|"
          r"Unrecognized model in|Error no file named", "the model cannot be found",
          hopeless=True),
    _sign(r"No module named|ModuleNotFoundError|ImportError", "a Python package is missing",
          hopeless=True),
    _sign(r"Torch not compiled with CUDA enabled|No CUDA GPUs are available|"
          r"Found no NVIDIA driver|invalid device ordinal", "it asks for a GPU that it cannot see",
          hopeless=True),
    _sign(r"CUDA out of memory|HIP out of memory|OutOfMemoryError", "the GPU is out of memory",
          hopeless=False),
    _sign(r"[Aa]ddress already in use", "its port is taken", hopeless=False),
    _sign(r"MemoryError|DefaultCPUAllocator: can't allocate|Cannot allocate memory",
          "the machine is out of memory", hopeless=False),
    _sign(r"can't open file|Is a directory|No such file or directory", "a file is missing",
          hopeless=True),
)  # fmt: skip

_PREFIX = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| (?P<fastchat>\w+) \| \w+ \| ?"  # build_logger, utils.py
    r"|^(?:\(\w+ pid=\d+\) )?(?P<vllm>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d (?:\[\S+\]|\S+\]) ?"
)
_RANK = re.compile(r"^\[rank\d+\]: ")
"""torch.distributed, before each line of a traceback."""
_IDLE = re.compile(r"^(DEBUG|INFO|WARNING)\b[: ]|\b\w*Warning: ")
"""uvicorn, logging, and ``warnings``: talk, however bad it sounds, that ended nothing."""
_NOISE = re.compile(r"^\s|^$|^=== .* ===$|^Traceback \(most recent")
"""Our own marks, and the indented lines of a traceback, which quote source code."""
_EXCEPTION = re.compile(r"^[\w.]+(Error|Exception|Interrupt)\b")
_COMPLAINT = re.compile(r"\b(error|fatal|cannot|failed)\b", re.IGNORECASE)
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")


def diagnose(ended: str, lines: Sequence[str]) -> Diagnosis:
    """``ended`` is how (`exited with 1`), ``lines`` the last ones of the run, oldest first."""
    if ended.endswith("SIGKILL"):
        return Diagnosis(f"{ended} (by hand, or by the kernel for want of memory)", hopeless=False)
    if ended.endswith(_FROM_OUTSIDE):
        return Diagnosis(f"{ended} (sent by somebody else)", hopeless=False)
    if ended == "exited with 0":
        return Diagnosis(f"{ended}, as if its work were done", hopeless=False)
    said = [line for line in map(_message, lines) if line]
    for line in reversed(said):
        for sign in _SIGNS:
            if sign.pattern.search(line):
                return Diagnosis(f"{ended}: {sign.meaning} ({_short(line)})", sign.hopeless)
        if _EXCEPTION.search(line):
            return Diagnosis(f"{ended}: {_short(line)}", hopeless=False)
    complaint = next((line for line in reversed(said) if _COMPLAINT.search(line)), None)
    if complaint is not None:
        return Diagnosis(f"{ended}: {_short(complaint)}", hopeless=False)
    return Diagnosis(f"{ended}; its log does not say why", hopeless=False)


def _message(line: str) -> str:
    """What a line says, without its prefix; nothing if it cannot be the cause of an end."""
    prefix = _PREFIX.match(line)
    if prefix is not None:
        level = prefix["fastchat"] or prefix["vllm"]
        if level in ("DEBUG", "INFO", "WARNING"):
            return ""
        line = line[prefix.end() :]
    line = _RANK.sub("", line.rstrip())
    return "" if _NOISE.search(line) or _IDLE.search(line) else line


def _short(line: str) -> str:
    return line if len(line) <= 200 else line[:197] + "..."
