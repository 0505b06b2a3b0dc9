"""``init``: a first cluster file, from flags or from the answers to a few questions.

Nothing is written before the whole of it is valid; a file that is there is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from supervisor.cli.failure import DONE, USAGE, Failure
from supervisor.cli.init_flags import INIT_OPTIONS
from supervisor.cli.locations import config_path
from supervisor.spec.first import First, text_of, values_of
from supervisor.spec.load import load_text
from supervisor.spec.paths import looks_local, resolve
from supervisor.spec.problems import Problem, SpecError

KEYS_FILE = "api-keys.txt"
SERVER_PORT, CONTROLLER_PORT = 8888, 21001
"""Those of the script."""

Options = dict[str, Any]
Answer = TypeVar("Answer")

_ALIKE = (
    *("conv_template", "revision", "device", "replicas", "max_gpu_memory", "load_8bit"),
    *("cpu_offloading", "limit_worker_concurrency", "stream_interval"),
)
"""Flags of a worker that are called as in the file, and mean the same."""

_GPU = re.compile(r"[0-9]{1,9}|(GPU|MIG)-[\w/-]+")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def run_init(arguments: argparse.Namespace) -> int:
    printed = arguments.output == "-"
    given = arguments.output if arguments.output and not printed else None
    path = Path(given) if given else config_path(arguments)
    keys_path = path.parent / KEYS_FILE
    if not printed:
        _refuse_to_replace(path, arguments.force)
        if arguments.api_keys:
            _refuse_to_replace(keys_path, arguments.force)
    elif arguments.api_keys:
        what = "keys are kept in a file beside the cluster file, never in it"
        raise Failure(f"--api-keys: {what}; leave the flag out, or write to a file", USAGE)
    first, keys = _what_is_asked(arguments, _folder(path), None if printed else keys_path)
    text = _checked_text(first, path, with_keys=bool(keys))
    if printed:
        print(text, end="")
        return DONE
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        if keys:
            undo.callback(_put(keys_path, _keys_text(keys), mode=0o600))
        _put(path, text, mode=0o666)
        undo.pop_all()
    print(f"{path} is written")
    if keys:
        which = "the API key is" if len(keys) == 1 else "the API keys are"
        print(f"{which} in {keys_path}, which only you can read; keep it out of version control")
    print(f"start it with: llm-supervisor up -c {shlex.quote(str(path))}")
    return DONE


def _what_is_asked(
    arguments: argparse.Namespace, base: Path, keys_path: Path | None
) -> tuple[First, list[str]]:
    """From the flags; from questions if they name no model. And the keys, to be kept in
    ``keys_path`` (None: they cannot be kept)."""
    common = _common(arguments, base)
    server = _server(arguments)
    keys = _split_keys(arguments.api_keys)
    if arguments.model_path or arguments.model_path_address:
        workers = [{**common, **model} for model in _models(arguments)]
    elif sys.stdin.isatty() and sys.stderr.isatty():
        _say("A few questions; [what an empty answer means]. Ctrl-C ends them, nothing is written.")
        workers = [{**common, **model} for model in _ask_models(arguments)]
        taken = arguments.controller_port or CONTROLLER_PORT
        keys = _ask_server(arguments, server, taken, keys, keys_path)
    else:
        what = "no model is named, and there is no terminal to ask on"
        raise Failure(f"{what}; name one with --model-path, a folder or a Hugging Face name", USAGE)
    if server["host"] not in (None, *_LOCAL_HOSTS) and not keys and "api_keys_file" not in server:
        _say(f"the API server will answer on {server['host']} without a key; --api-keys sets one")
    if arguments.no_register:
        _say("--no-register has no effect: the supervisor registers the workers")
    for worker in workers:
        worker["model_path"] = _moved(worker["model_path"], base)
    controller = {
        "host": _host(arguments.controller_host),
        "port": arguments.controller_port,
        "dispatch_method": arguments.dispatch_method,
    }
    places = {
        name: _from(base, resolve(Path.cwd(), folder))
        for name in ("run_dir", "log_dir")
        if (folder := getattr(arguments, name))
    }
    return First(workers, controller, server, places), keys


# ---------------------------------------------------------------- from the flags


def _common(arguments: argparse.Namespace, base: Path) -> Options:
    """What holds for every worker."""
    options: Options = {name: getattr(arguments, name) for name in _ALIKE}
    options["max_gpu_memory"] = arguments.max_gpu_memory or None
    options["host"] = _host(arguments.worker_host)
    if arguments.model_names:
        options["model_names"] = [name.strip() for name in arguments.model_names.split(",")]
    if arguments.gpus:
        options["gpus"] = _gpus(arguments.gpus)
        if options["gpus"] is None:
            what = (
                f"must be numbers or UUIDs of GPUs such as 0,1, each once, not {arguments.gpus!r}"
            )
            raise Failure(f"--gpus: {what}", USAGE)
    options["num_gpus"] = _num_gpus(arguments, len(options.get("gpus", ())))
    for method in ("gptq", "awq"):
        options[method] = _quantization(arguments, method, base)
    return options


def _num_gpus(arguments: argparse.Namespace, listed: int) -> int | None:
    """The script's default is 1, however many are listed; the file's is all of them."""
    share: int | None = arguments.num_gpus
    if share is None and arguments.replicas is None and listed > 1:
        share = 1
    return None if share and share * (arguments.replicas or 1) == listed else share


def _quantization(arguments: argparse.Namespace, method: str, base: Path) -> Options | None:
    options: Options = {
        name: getattr(arguments, f"{method}_{name}", None)
        for name in ("wbits", "groupsize", "act_order", "ckpt")
    }
    options = {name: value for name, value in options.items() if value not in (None, False)}
    if not options or options == {"wbits": 16}:  # FastChat's word for "off"
        return None
    if "wbits" not in options:
        flags = " and ".join(f"--{method}-{name.replace('_', '-')}" for name in options)
        what = f"means nothing without --{method}-wbits, which turns {method.upper()} on"
        raise Failure(f"{flags} {what}; add it", USAGE)
    if "ckpt" in options:  # always a path, which FastChat takes as it is
        path = os.path.expanduser(options["ckpt"])
        options["ckpt"] = path if os.path.isabs(path) else _from(base, Path.cwd() / path)
    return options


def _server(arguments: argparse.Namespace) -> Options:
    return {
        "host": _host(arguments.server_host),
        "port": SERVER_PORT if arguments.server_port is None else arguments.server_port,
        "allow_credentials": arguments.allow_credentials,
        "allowed_origins": arguments.allowed_origins,
        "allowed_methods": arguments.allowed_methods,
        "allowed_headers": arguments.allowed_headers,
    }


def _models(arguments: argparse.Namespace) -> list[Options]:
    if arguments.model_path and arguments.model_path_address:
        what = "--model-path has no effect beside --model-path-address in the script"
        raise Failure(f"{what}; remove one, or name all models in the latter", USAGE)
    models = [_model(text) for text in arguments.model_path_address or ()]
    if arguments.model_path:
        models = [{"model_path": arguments.model_path}]
    if arguments.worker_port is not None:
        free = [model for model in models if "port" not in model]
        if len(free) > 1:
            what = f"--worker-port is one port, for {len(free)} workers without one"
            raise Failure(f"{what}; remove it, or write MODEL@HOST@PORT for each", USAGE)
        if not free:
            _say("--worker-port has no effect: every model has a port already")
        for model in free:
            model["port"] = arguments.worker_port
    return models


def _model(text: str) -> Options:
    """``MODEL``, ``MODEL@HOST`` or ``MODEL@HOST@PORT``; a folder may have an @ in its name."""
    if os.path.exists(os.path.expanduser(text)):
        return {"model_path": text}
    path, *rest = text.rsplit("@", 2)
    host, port = [*rest, "", ""][:2]
    if not path or host.isdecimal() or not (port == "" or (port.isdecimal() and port.isascii())):
        what = f"{text!r} must be MODEL, MODEL@HOST or MODEL@HOST@PORT, the port a number; mend it"
        raise Failure(f"--model-path-address: {what}", USAGE)
    found: Options = {"model_path": path}
    if host:
        found["host"] = _host(host)
    if port:
        found["port"] = int(port)
    return found


def _host(text: str | None) -> str | None:
    return "127.0.0.1" if text == "localhost" else text or None


def _gpus(text: str) -> list[int | str] | None:
    """``0,1`` or UUIDs; None if that is not what it is."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [int(part) if part.isdecimal() else part for part in parts if _GPU.fullmatch(part)]
    return found if 0 < len(set(found)) == len(parts) else None


def _split_keys(text: str | None) -> list[str]:
    if text is None:
        return []
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if why := _bad_keys(keys):
        raise Failure(f"--api-keys: {why}", USAGE)
    return keys


def _bad_keys(keys: list[str]) -> str | None:
    """Why they cannot be kept one a line; never with the keys themselves."""
    if not keys:
        return "holds no key, which would open the server to all; give one or remove the flag"
    if any(key.startswith("#") or not key.isprintable() for key in keys):
        return "a key begins with # or holds a control character; choose another"
    return None


# ---------------------------------------------------------------- from questions


def _ask_models(arguments: argparse.Namespace) -> Iterator[Options]:
    count = 0
    while True:
        path = _ask(*_path_question(first=count == 0))
        if not path:
            return
        count += 1
        model: Options = {"model_path": path}
        if arguments.gpus is None and arguments.device is None:
            model["gpus"] = _ask("  its GPUs, as 0 or 0,1 [none: the CPU]: ", _read_gpus) or None
            model["device"] = None if model["gpus"] else "cpu"
        if arguments.replicas is None:
            replicas = _ask("  replicas, processes that share its requests [1]: ", _read_replicas)
            model["replicas"] = replicas
        gpus = len(model.get("gpus") or ()) // (model.get("replicas") or arguments.replicas or 1)
        if not arguments.load_8bit and gpus <= 1:  # FastChat quantizes so on one GPU only
            model["load_8bit"] = _ask("  half the memory, by 8-bit weights? [no]: ", _read_yes)
        yield model


def _path_question(*, first: bool) -> tuple[str, Callable[[str], str]]:
    def read(text: str) -> str:
        if first and not text:
            raise ValueError("name at least one model")
        if looks_local(Path.cwd(), text) and not resolve(Path.cwd(), text).exists():
            raise ValueError(f"there is no model at {resolve(Path.cwd(), text)}")
        return text

    what = "a folder, or a Hugging Face name as lmsys/vicuna-7b-v1.5"
    return f"model, {what}: " if first else "one more model [no more]: ", read


def _ask_server(
    arguments: argparse.Namespace,
    server: Options,
    taken: int,
    keys: list[str],
    keys_path: Path | None,
) -> list[str]:
    """Fills in the server; returns the keys that are to be kept in ``keys_path``."""
    if arguments.server_port is None:

        def read(text: str) -> int:
            if text == str(taken):
                raise ValueError("that is the controller's port")
            return _number(text, SERVER_PORT, 65535)

        server["port"] = _ask(f"port of the API server [{SERVER_PORT}]: ", read)
    if arguments.server_host is None and _ask("open it to the network? [no]: ", _read_yes):
        server["host"] = "0.0.0.0"
    if server["host"] in (None, *_LOCAL_HOSTS) or keys or keys_path is None:
        return keys
    if keys_path.exists():
        _say(f"its keys are those in {keys_path}")
        server["api_keys_file"] = KEYS_FILE
        return []
    while True:
        typed = _answer(lambda: getpass.getpass("API key, not shown [one is made]: "))
        given = [key.strip() for key in typed.split(",") if key.strip()]
        why = _bad_keys(given) if typed else None
        if why is None:
            return given or [f"sk-{secrets.token_urlsafe(32)}"]
        _say(f"  {why}")


def _ask(question: str, read: Callable[[str], Answer]) -> Answer:
    """The answer, asked for again until it makes sense. On stderr: stdout may be the file."""
    while True:
        print(question, end="", file=sys.stderr, flush=True)
        try:
            return read(_answer(input))
        except ValueError as error:
            _say(f"  {error}; try again")


def _answer(source: Callable[[], str]) -> str:
    try:
        return source().strip()
    except EOFError:
        _say("")
        what = "the questions were not answered to the end; nothing was written"
        raise Failure(f"{what}; start again, or see `llm-supervisor init --help`", USAGE) from None
    except UnicodeDecodeError:
        raise ValueError("that is not text") from None


def _read_gpus(text: str) -> list[int | str]:
    found = _gpus(text) if text else []
    if found is None:
        raise ValueError("GPUs are numbers such as 0 or 0,1, each once")
    return found


def _read_replicas(text: str) -> int:
    return _number(text, 1, 1000)


def _number(text: str, default: int, most: int) -> int:
    value = int(text) if text.isdecimal() and len(text) < 10 else 0 if text else default
    if not 1 <= value <= most:
        raise ValueError(f"that is no number from 1 to {most}")
    return value


def _read_yes(text: str) -> bool:
    if text.lower() not in ("", "y", "yes", "n", "no"):
        raise ValueError("answer yes or no")
    return text.lower().startswith("y")


# ---------------------------------------------------------------- paths, checks, files


def _folder(path: Path) -> Path:
    return Path(os.path.abspath(path)).parent


def _moved(model_path: str, base: Path) -> str:
    """A folder relative to the current one, seen from the file's; anything else as it is."""
    local = looks_local(Path.cwd(), model_path)
    if not local or model_path.startswith("~") or os.path.isabs(model_path):
        return model_path
    return _from(base, resolve(Path.cwd(), model_path))


def _from(base: Path, path: Path) -> str:
    """With a dot in front, it is a folder even where one of that name is not there."""
    text = os.path.relpath(path, base)
    return text if text.startswith(("./", "../")) or text in (".", "..") else f"./{text}"


def _checked_text(first: First, path: Path, *, with_keys: bool) -> str:
    """The text of the file, known to be valid. The keys are left out of the check: their file is
    written only if all the rest is right."""
    values = values_of(first)
    config = shlex.quote(str(path))
    schema = (_folder(path) / "cluster.schema.json").is_file()
    text = text_of(values, config, schema=schema)
    try:
        load_text(text, path, os.environ)
    except SpecError as error:
        found = list(dict.fromkeys(map(_in_flags, error.problems)))
        what = found[0] if len(found) == 1 else "\n  ".join(["these flags are wrong:", *found])
        raise Failure(what, USAGE) from None
    if not with_keys:
        return text
    server = {**values["api_server"], "api_keys_file": KEYS_FILE}
    return text_of({**values, "api_server": server}, config, schema=schema)


_FIELDS = re.compile(r"\b(num_gpus|gpus|load_8bit|cpu_offloading|device)\b(?:: (\w+))?")
_PLACES = {
    **{f"controller.{name}": f"--controller-{name}" for name in ("host", "port")},
    **{f"api_server.{name}": f"--server-{name}" for name in ("host", "port")},
}
_FLAGS = {name for names, _ in INIT_OPTIONS for name in names}


def _in_flags(problem: Problem) -> str:
    """The user has seen flags, and no file yet: no line, and flags in place of fields."""

    def flag(match: re.Match[str]) -> str:
        value = match[2] if match[2] and match[2] != "true" else ""
        return f"{_flag(match[1])} {value}".rstrip()

    message = _FIELDS.sub(flag, problem.message)
    for place, name in _PLACES.items():
        message = message.replace(place, name)
    return f"{_place(problem.path)}: {message}" if problem.path else message


def _place(path: str) -> str:
    """``workers.a.gptq.wbits`` -> ``--gptq-wbits``; what has no flag stays as it is."""
    if path in _PLACES:
        return _PLACES[path]
    field = re.search(r"((gptq|awq)\.)?\w+(?=(\[\d+\])?$)", path)
    name = _flag(field[0]) if field else path
    if path.startswith("workers.") and name in ("--host", "--port"):
        return f"{path} (--worker-{name[2:]} or MODEL@HOST@PORT)"
    return name if name in _FLAGS else path


def _flag(field: str) -> str:
    return "--" + field.replace(".", "-").replace("_", "-")


def _refuse_to_replace(path: Path, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise Failure(f"{path} is there already, and is no file; choose another with -c", USAGE)
    if not force:
        what = f"{path} is there already; choose another with -c FILE"
        raise Failure(f"{what}, or replace it with --force, which keeps a copy beside it", USAGE)


def _put(path: Path, text: str, mode: int) -> Callable[[], None]:
    """A new file with this text; what was there before is kept under another name. Returns what
    undoes it."""
    backup = None
    if os.path.lexists(path):
        backup = _free_name(path)
        path.rename(backup)
        backup.chmod(backup.stat().st_mode & 0o7777 & ~(0o666 & ~mode))

    def restore() -> None:
        if backup is not None and not os.path.lexists(path):
            backup.rename(path)

    def undo() -> None:
        path.unlink(missing_ok=True)
        restore()

    with contextlib.ExitStack() as failed:
        failed.callback(restore)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        failed.callback(undo)  # only now is it ours
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        failed.pop_all()
    if backup is not None:
        _say(f"the old {path} is now {backup}")
    return undo


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.old{number}")):
        number += 1
    return backup


def _keys_text(keys: Iterable[str]) -> str:
    head = "# Keys of the API server, one a line; written by `llm-supervisor init`."
    return "\n".join([head, *keys]) + "\n"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
