"""A first cluster file: what was asked for -> the values of the file -> its text. Pure.

The file is read and changed by people from then on, so it holds only what differs from the
defaults, in the order of our own examples, with a comment where one helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from supervisor.spec.model import (
    NAME_PATTERN,
    SINGLETONS,
    ApiServer,
    Awq,
    Controller,
    Gptq,
    Model,
    ModelWorker,
)

Values = dict[str, Any]

WIDTH, _COMMENTS_AT = 100, 36
_LONGEST_NAME = int(NAME_PATTERN.rpartition(",")[2].rstrip("})$")) - 3
"""Leaves room for what makes a name unique."""

_ORDER = (
    *("model_path", "model_names", "conv_template", "revision", "host", "port", "device", "gpus"),
    *("num_gpus", "replicas", "max_gpu_memory", "load_8bit", "cpu_offloading", "gptq", "awq"),
    *("limit_worker_concurrency", "stream_interval"),
)
_A_MODELS_OWN = {"model_path", "model_names", "port"}

_ABOVE = {
    "defaults": "Options for every worker; a worker's own value wins.",
    "workers": "One entry per model. The key is the name by which clients ask for it.",
}


@dataclass(frozen=True)
class First:
    """What was asked for, in the fields of the cluster file; ``workers`` have no names yet."""

    workers: Sequence[Mapping[str, Any]]
    controller: Mapping[str, Any] = field(default_factory=dict)
    api_server: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Any] = field(default_factory=dict)
    """``run_dir`` and ``log_dir``."""


def values_of(first: First) -> Values:
    """The values of the file; what all of several workers share stands in ``defaults``."""
    workers: dict[str, Values] = {}
    for asked in first.workers:
        given = sorted(_differing(ModelWorker, asked).items(), key=lambda one: _place(one[0]))
        served = asked["model_path"].rstrip("/").rpartition("/")[2]
        name = _name(served, workers)
        worker = dict(given)
        if worker.get("model_names") == [name]:
            del worker["model_names"]
        elif "model_names" not in worker and served != name and _speaks(served):
            worker = {"model_path": worker.pop("model_path"), "model_names": [served], **worker}
        workers[name] = worker
    shared = _shared(list(workers.values())) if len(workers) > 1 else {}
    sections = {
        "controller": _differing(Controller, first.controller),
        "defaults": shared,
        "workers": {
            name: {key: value for key, value in worker.items() if key not in shared}
            for name, worker in workers.items()
        },
        "api_server": _differing(ApiServer, first.api_server),
        **first.places,
    }
    return {name: section for name, section in sections.items() if section or name == "api_server"}


def _place(key: str) -> int:
    return _ORDER.index(key) if key in _ORDER else len(_ORDER)


def _differing(model: type[Model], asked: Mapping[str, Any]) -> Values:
    """Without what is left out and what the model has as its default anyway."""
    nested: dict[str, type[Model]] = {"gptq": Gptq, "awq": Awq}
    kept: Values = {}
    for key, value in asked.items():
        default = model.model_fields[key].default
        default = list(default) if isinstance(default, tuple) else default
        if value is not None and value != default:
            kept[key] = _differing(nested[key], value) if key in nested else value
    return kept


def _shared(workers: Sequence[Values]) -> Values:
    first, *others = workers
    return {
        key: value
        for key, value in first.items()
        if key not in _A_MODELS_OWN and all(other.get(key) == value for other in others)
    }


def _name(served: str, taken: Mapping[str, Any]) -> str:
    """A worker's name from its model's; no other has it, nor could a replica of another."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", served).strip("._-")[:_LONGEST_NAME] or "model"
    others = {*taken, *SINGLETONS, "supervisor"}
    name, number = plain, 1
    while any(name == one or _replica(name, one) or _replica(one, name) for one in others):
        number += 1
        name = f"{plain}.{number}"
    return name


def _speaks(name: str) -> bool:
    """Whether FastChat can serve a model under this name; a folder may be called `..`."""
    return "," not in name and any(map(str.isalnum, name))


def _replica(name: str, service: str) -> bool:
    return re.fullmatch(re.escape(service) + r"-\d+", name) is not None


# ---------------------------------------------------------------- its text


def text_of(values: Values, config: str, *, schema: bool = False) -> str:
    """``config`` is the file as the user names it on the command line (quoted for a shell);
    ``schema`` tells whether the schema of the file lies beside it."""
    blocks = ["\n".join(_head(values, config, schema))]
    noted: set[str] = set()
    for name, section in values.items():
        lines = [f"# {_ABOVE[name]}"] if name in _ABOVE and len(values["workers"]) > 1 else []
        if not isinstance(section, dict):
            blocks.append("\n".join(_entry(name, section, "", "")))
            continue
        if name == "workers":
            lines += [f"{name}:", *_workers(section, noted)]
        elif section:
            lines += [f"{name}:", *_entries(name, section, "  ", noted)]
        else:
            lines += [f"{name}:"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _head(values: Values, config: str, schema: bool) -> Iterator[str]:
    if schema:
        yield "# yaml-language-server: $schema=cluster.schema.json"
        yield "#"
    config = "".join(letter if letter.isprintable() else "?" for letter in config)
    server = values["api_server"]
    host = server.get("host", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
    port = server.get("port", ApiServer.model_fields["port"].default)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/models"
    key = '-H "Authorization: Bearer KEY" ' if "api_keys_file" in server else ""
    commands = {
        f"llm-supervisor validate -c {config}": "check this file, start nothing",
        f"llm-supervisor up -c {config}": "start it; Ctrl-C stops it",
        f"curl {key}{url}": "see what it serves",
    }
    longest = max(map(len, commands))
    told = longest + max(map(len, commands.values())) + 7 <= WIDTH
    yield "# A FastChat cluster: models behind one OpenAI-compatible address. Written by"
    yield "# `llm-supervisor init`; yours to change."
    yield "#"
    for command, what in commands.items():
        yield f"#   {command:<{longest}}   {what}" if told else f"#   {command}"
    yield "#"
    yield "# Every option: docs/configuration.md of llm-supervisor, or `llm-supervisor schema`."


def _workers(workers: Mapping[str, Values], noted: set[str]) -> Iterator[str]:
    airy = any(len(worker) > 1 for worker in workers.values())
    for i, (name, worker) in enumerate(workers.items()):
        if airy and i:
            yield ""
        yield f"  {_scalar(name)}:"
        yield from _entries("workers", worker, "    ", noted)


def _entries(section: str, options: Values, indent: str, noted: set[str]) -> Iterator[str]:
    """Its lines; a comment that stands in the file already (``noted``) is not repeated."""
    for key, value in options.items():
        note = _note(section, key, value, options)
        yield from _entry(key, value, indent, "" if note in noted else note)
        noted.add(note)


def _entry(key: str, value: Any, indent: str, note: str) -> Iterator[str]:
    """One option, in one line if it fits; its comment beside it or else above."""
    line = f"{indent}{key}: {_flow(value)}"
    beside = f"{line:<{_COMMENTS_AT - 2}}  # {note}" if note else line
    if len(beside) <= WIDTH:
        yield beside
        return
    if note:
        yield f"{indent}# {note}"
    if len(line) <= WIDTH or not isinstance(value, list | dict):
        yield line
        return
    yield f"{indent}{key}:"
    for item in value:
        own = f"{item}: {_flow(value[item])}" if isinstance(value, dict) else f"- {_scalar(item)}"
        yield f"{indent}  {own}"


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_scalar(item)}' for key, item in value.items())}}}"
    return _scalar(value)


def _scalar(value: str | int | bool) -> str:
    """Quoted where YAML would take it for something else; a `$` is one, and no variable."""
    meant = value.replace("$", "$$") if isinstance(value, str) else value
    # Within a list, since what needs no quotes there needs none anywhere.
    text = _dump([meant])
    return _dump([meant], default_style='"') if "\n" in text else text


def _dump(items: list[Any], **style: Any) -> str:
    text = yaml.safe_dump(items, default_flow_style=True, width=2**31, allow_unicode=True, **style)
    return str(text).strip()[1:-1]


def _note(section: str, key: str, value: Any, around: Values) -> str:
    """What helps to understand or to change an option; most need nothing."""
    if section == "controller" and key == "host":
        return "it has no passwords: only in a network of your own"
    if section == "api_server" and key == "host":
        return (
            "answers the network, so it asks for a key"
            if "api_keys_file" in around
            else "answers the network, and asks for no key: see api_keys_file"
        )
    if key == "api_keys_file":
        return "one key a line; only you can read it"
    if key == "model_path":
        if value.startswith(("./", "../")):
            return "a folder, relative to this file"
        return "" if value.startswith(("/", "~")) else "downloaded at the first start"
    if key == "num_gpus" and value == 1 and len(around.get("gpus", ())) > around.get("replicas", 1):
        return "of those; without this line, all are used"
    return {
        "host": "workers have no passwords: only in a network of your own",
        "gpus": "numbers as nvidia-smi shows them",
        "device": "cuda for NVIDIA GPUs, mps for Apple silicon" if value == "cpu" else "",
        "replicas": "processes; requests go to the one with less to do",
        "max_gpu_memory": "of each GPU",
    }.get(key, "")
