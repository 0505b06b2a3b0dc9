"""The flags of ``add``, and what each is called in the file.

Here, and not in ``edit.py``, because every verb builds the whole parser: this imports nothing.
"""

from __future__ import annotations

from typing import Any

Option = tuple[tuple[str, ...], dict[str, Any]]


def _flag(name: str, help: str, **details: Any) -> Option:
    return (name,), {"default": None, "help": help, **details}


def _switch(name: str, help: str) -> Option:
    return _flag(name, help, action="store_true")


def _number(name: str, help: str) -> Option:
    return _flag(name, help, type=int, metavar="N")


_FLAGS: tuple[tuple[str, Option], ...] = (
    ("model_path", _flag("--model-path", "a folder or a Hugging Face name", metavar="PATH")),
    ("kind", _flag("--kind", "kind of worker (model_worker)", metavar="KIND")),
    ("device", _flag("--device", "where the model runs (cuda)", metavar="DEVICE")),
    ("gpus", _flag("--gpus", "GPUs as nvidia-smi numbers them", metavar="0,1")),
    ("num_gpus", _number("--num-gpus", "GPUs of each replica")),
    ("replicas", _number("--replicas", "processes of the model (1)")),
    ("max_gpu_memory", _flag("--max-gpu-memory", "memory per GPU for weights", metavar="20GiB")),
    ("load_8bit", _switch("--load-8bit", "8-bit quantization while loading")),
    ("cpu_offloading", _switch("--cpu-offloading", "offload excess weights to the CPU")),
    ("gptq.ckpt", _flag("--gptq-ckpt", "GPTQ: checkpoint (the model path)", metavar="PATH")),
    ("gptq.wbits", _number("--gptq-wbits", "GPTQ: bits per weight: 2, 3, 4, 8, 16")),
    ("gptq.groupsize", _number("--gptq-groupsize", "GPTQ: group size")),
    ("gptq.act_order", _switch("--gptq-act-order", "GPTQ: activation-order heuristic")),
    ("awq.ckpt", _flag("--awq-ckpt", "AWQ: checkpoint (the model path)", metavar="PATH")),
    ("awq.wbits", _number("--awq-wbits", "AWQ: bits per weight: 4, 16")),
    ("awq.groupsize", _number("--awq-groupsize", "AWQ: group size")),
    ("model_names", _flag("--model-names", "names that clients ask for", metavar="A,B")),
    ("conv_template", _flag("--conv-template", "FastChat's conversation template", metavar="NAME")),
    ("limit_worker_concurrency", _number("--limit-worker-concurrency", "requests at once")),
    ("port", _number("--port", "port of the first replica (a free one)")),
)

FIELDS = {names[0].removeprefix("--").replace("-", "_"): key for key, (names, _) in _FLAGS}
"""What the parser calls a flag -> what the file calls it."""

ADD_OPTIONS: tuple[Option, ...] = (
    *(option for _, option in _FLAGS),
    _flag(
        "--set",
        "any other option of the file, as probes.liveness.interval=5s",
        action="append",
        metavar="KEY=VALUE",
    ),
)

EDIT_OPTIONS: tuple[Option, ...] = (
    (("--dry-run",), {"action": "store_true", "help": "show what would change; write nothing"}),
    (("-y", "--yes"), {"action": "store_true", "help": "do not ask"}),
)
