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
    _sign(r"No module named|ModuleNotFoundError|ImportError", "a Python package is missing",
          hopeless=True),
    _sign(r"is not a local folder and is not a valid model identifier|Repository Not Found|"
          r"does not appear to have a file named|Incorrect path_or_model_id|"
          r"couldn't connect to .*huggingface", "the model cannot be found", hopeless=True),
    _sign(r"Torch not compiled with CUDA enabled|No CUDA GPUs are available|"
          r"Found no NVIDIA driver|invalid device ordinal", "it asks for a GPU that it cannot see",
          hopeless=True),
    _sign(r"can't open file|Is a directory|No such file or directory", "a file is missing",
          hopeless=True),
    _sign(r"CUDA out of memory|OutOfMemoryError", "the GPU is out of memory", hopeless=False),
    _sign(r"address already in use", "its port is taken", hopeless=False),
    _sign(r"MemoryError|DefaultCPUAllocator: can't allocate", "the machine is out of memory",
          hopeless=False),
)  # fmt: skip

_NOISE = re.compile(r"^\s*$|^=== .* ===$|^\s+(File|\^|~)|Traceback \(most recent")
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| \w+ \| \w+ \| ")
"""FastChat's own (fastchat/utils.py, build_logger)."""
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b|\b(error|fatal|cannot|failed)\b", re.I)


def diagnose(ended: str, lines: Sequence[str]) -> Diagnosis:
    """``ended`` is how (`exited with 1`), ``lines`` the last ones of the run, oldest first."""
    said = [_PREFIX.sub("", line).strip() for line in lines if not _NOISE.match(line)]
    for line in reversed(said):
        for sign in _SIGNS:
            if sign.pattern.search(line):
                return Diagnosis(f"{ended}: {sign.meaning} ({_short(line)})", sign.hopeless)
    telling = next((line for line in reversed(said) if _ERROR.search(line)), None)
    if telling is not None:
        return Diagnosis(f"{ended}: {_short(telling)}", hopeless=False)
    if "SIGKILL" in ended:
        return Diagnosis(f"{ended} (by hand, or by the kernel for want of memory)", hopeless=False)
    return Diagnosis(f"{ended}; its log does not say why", hopeless=False)


def _short(line: str) -> str:
    return line if len(line) <= 200 else line[:197] + "..."
