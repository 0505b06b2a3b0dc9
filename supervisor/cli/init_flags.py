"""The flags of ``init``: those of the launch script of Langchain-Chatchat that it replaces.

Here, and not in ``init.py``, because every verb builds the whole parser: this imports next to
nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from supervisor.cli.failure import USAGE, Failure

Option = tuple[tuple[str, ...], dict[str, Any]]


class _Refuse(argparse.Action):
    """A flag that has no place in the file; ``const`` says why, and what to do instead."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        raise Failure(f"{option_string}: {self.const}", USAGE)


def _flag(name: str, help: str, **details: Any) -> Option:
    return (name,), {"default": None, "help": help, **details}


def _switch(name: str, help: str) -> Option:
    return _flag(name, help, action="store_true")


def _number(name: str, help: str, **details: Any) -> Option:
    return _flag(name, help, type=int, metavar="N", **details)


def _refused(name: str, why: str) -> Option:
    details = {"action": _Refuse, "nargs": "?", "const": why, "help": argparse.SUPPRESS}
    return (name,), details


def _texts(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise argparse.ArgumentTypeError(f"must be a JSON list such as '[\"*\"]', not {text!r}")
    return value


INIT_OPTIONS: tuple[Option, ...] = (
    (
        ("-o", "--output"),
        {"metavar": "FILE", "help": "where to write it, if not to -c; - prints it"},
    ),
    _switch("--force", "replace a file that is there; a copy is kept beside it"),
    _flag(
        "--model-path-address",
        "a model, or several; the path is a folder or a Hugging Face name",
        nargs="+",
        action="extend",
        metavar="MODEL[@HOST[@PORT]]",
    ),
    _flag("--model-path", "the same for one model", metavar="MODEL"),
    _flag("--model-names", "names under which clients ask for it", metavar="A,B"),
    _flag("--conv-template", "FastChat's conversation template", metavar="NAME"),
    _flag("--revision", "revision of the Hugging Face repository", metavar="NAME"),
    _flag("--worker-host", "address that workers listen on (127.0.0.1)", metavar="HOST"),
    _number("--worker-port", "port of the one worker (a free one)"),
    _flag("--device", "where the models run (cuda)", choices=("cpu", "cuda", "mps", "xpu", "npu")),
    _flag("--gpus", "GPUs as nvidia-smi numbers them", metavar="0,1"),
    _number("--num-gpus", "GPUs of each worker (1, as in the script)"),
    _number("--replicas", "processes of each model (1)"),
    _flag("--max-gpu-memory", "memory per GPU for weights (what is free)", metavar="20GiB"),
    _switch("--load-8bit", "8-bit quantization while loading"),
    _switch("--cpu-offloading", "offload excess weights to the CPU; with --load-8bit"),
    _flag("--gptq-ckpt", "GPTQ: checkpoint (the model path)", metavar="PATH"),
    _number("--gptq-wbits", "GPTQ: bits per weight: 2, 3, 4, 8, 16", choices=(2, 3, 4, 8, 16)),
    _number("--gptq-groupsize", "GPTQ: group size"),
    _switch("--gptq-act-order", "GPTQ: activation-order heuristic"),
    _flag("--awq-ckpt", "AWQ: checkpoint (the model path)", metavar="PATH"),
    _number("--awq-wbits", "AWQ: bits per weight: 4, 16", choices=(4, 16)),
    _number("--awq-groupsize", "AWQ: group size"),
    _number("--limit-worker-concurrency", "requests that a worker works on at once"),
    _number("--stream-interval", "tokens between two pieces of a stream"),
    _switch("--no-register", "ignored: the supervisor registers workers"),
    _flag("--controller-host", "address that it listens on (127.0.0.1)", metavar="HOST"),
    _number("--controller-port", "port that it listens on (21001)"),
    _flag(
        "--dispatch-method",
        "how it picks one of a model's workers (shortest_queue)",
        choices=("lottery", "shortest_queue"),
    ),
    _flag("--server-host", "address of the API server (127.0.0.1)", metavar="HOST"),
    _number("--server-port", "port of the API server (8888)"),
    _switch("--allow-credentials", "CORS: allow credentials"),
    _flag("--allowed-origins", "CORS: allowed origins", type=_texts, metavar="JSON"),
    _flag("--allowed-methods", "CORS: allowed methods", type=_texts, metavar="JSON"),
    _flag("--allowed-headers", "CORS: allowed headers", type=_texts, metavar="JSON"),
    _flag("--api-keys", "keys that clients must send; kept in api-keys.txt", metavar="A,B"),
    _refused(
        "--ssl",
        "the API server speaks HTTP only; put a proxy that speaks HTTPS in front of it, and remove "
        "the flag",
    ),
    _refused("--log-level", "FastChat's parts have no level of their own; remove the flag"),
    _refused(
        "--controller-address",
        "a controller of this cluster has --controller-host and --controller-port; name one that "
        "runs elsewhere in the file, as `controller: {external: URL}`",
    ),
    _refused(
        "--worker-address",
        "it follows from the worker's host and port; give MODEL@HOST@PORT and remove the flag",
    ),
)
