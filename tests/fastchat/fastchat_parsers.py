"""FastChat's own argument parsers, as a program: a JSON line in, a JSON line out.

In: ``["model_worker", ["--host", "127.0.0.1"]]``. Out: ``{"parsed": {...}, "unknown": [...]}`` or
``{"error": "..."}``. A process of its own, because importing FastChat takes seconds, warns, and
redirects stdout and stderr.

Where a module can be imported, its parser is taken from the function that makes it. The others
build theirs under ``if __name__ == "__main__"`` and import engines that are not installed here:
of these, the statements that build the parser are run, so that FastChat's own text judges still.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

MAKERS = {
    "controller": "create_controller",
    "openai_api_server": "create_openai_api_server",
    "model_worker": "create_model_worker",
    "multi_model_worker": "create_multi_model_worker",
    "huggingface_api_worker": "create_huggingface_api_worker",
}


class _Made(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def imported_parser(module: str) -> argparse.ArgumentParser:
    def give_away(parser: argparse.ArgumentParser) -> NoReturn:
        raise _Made(parser)

    maker = getattr(importlib.import_module(f"fastchat.serve.{module}"), MAKERS[module])
    parse_args = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = give_away  # type: ignore[assignment,method-assign]
    try:
        maker()
    except _Made as made:
        return made.parser
    finally:
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    raise AssertionError(f"{MAKERS[module]} parses no arguments")


def extracted_parser(module: str) -> argparse.ArgumentParser:
    package = importlib.util.find_spec("fastchat")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "serve" / f"{module}.py"
    tree = ast.parse(source.read_text("utf-8"))
    body = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _is_main(node.test)]
    made = [statement for node in body for statement in node.body if _builds_parser(statement)]
    names: dict[str, Any] = {"argparse": argparse}
    exec(compile(ast.Module(made, []), str(source), "exec"), names)
    parser: argparse.ArgumentParser = names["parser"]
    return parser


def _is_main(test: ast.expr) -> bool:
    return ast.unparse(test) == "__name__ == '__main__'"


def _builds_parser(statement: ast.stmt) -> bool:
    text = ast.unparse(statement)
    return text.startswith(("parser = argparse.", "parser.add_argument("))


def answer(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = parser.parse_known_args(words)
    except SystemExit:
        return {"error": complaint.getvalue()}
    return {"parsed": vars(parsed), "unknown": unknown}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # FastChat redirects sys.stdout
    parsers: dict[str, argparse.ArgumentParser] = {}
    for line in sys.stdin:
        module, words = json.loads(line)
        if module not in parsers:
            make = imported_parser if module in MAKERS else extracted_parser
            parsers[module] = make(module)
        print(json.dumps(answer(parsers[module], words)), file=answers, flush=True)


if __name__ == "__main__":
    main()
