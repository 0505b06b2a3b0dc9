"""FastChat's OpenAI-compatible server, mended.

The flags are those of `fastchat.serve.openai_api_server`.

Besides FastChat's routes it answers `GET /health` with {"status": "ok", "instance": NAME}, without
a key and without waiting for anybody; with "failing", and HTTP 500, where `asking_itself` says so.
With LLM_SUPERVISOR_SECRETS=stdin it reads its API keys from stdin.

What it does while the controller or a worker is away: `asking_again`. How it ends, and how another
one takes its place: `gentle_server`.
"""

from __future__ import annotations

import hmac
import json
import os
import sys

import asking_again  # before `mending`, which takes this folder off the path
import asking_itself
import gentle_server
import mending
from fastapi import Depends
from fastapi.responses import JSONResponse
from fastchat.serve import openai_api_server as fastchat_server


def main():
    api_keys = read_api_keys()
    for answer in (
        fastchat_server.ChatCompletionStreamResponse,
        fastchat_server.CompletionStreamResponse,
    ):
        write_json_with_pydantic_2(answer)
    asking_again.mend(fastchat_server)
    list_models_without_refresh(fastchat_server)
    ask_for_each_prompt_how_to_write_it(fastchat_server)
    ask_key_on_every_route(fastchat_server)
    checked = asking_itself.SelfCheck(fastchat_server)
    add_health(fastchat_server.app, checked)
    mending.keep_out_of_access_log("/health")

    args = fastchat_server.create_openai_api_server()
    if api_keys is not None:
        fastchat_server.app_settings.api_keys = api_keys
    mending.serve(checked, args, gentle_server.GentleServer)


def read_api_keys():
    """The API keys that stand on stdin, or None: FastChat shows those of its flag in argv and log.

    Ends the process when they were promised but are not there: it must not serve without keys.
    """
    if os.environ.get("LLM_SUPERVISOR_SECRETS") != "stdin":
        return None
    try:
        api_keys = json.load(sys.stdin)["api_keys"]
        if not isinstance(api_keys, list):
            raise TypeError
        return ApiKeys(key.encode() for key in api_keys)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Without the cause, which could quote what was read.
        sys.exit('cannot read API keys from stdin: want {"api_keys": ["..."]}, then end of file')


class ApiKeys(tuple):
    """API keys as bytes; looking for one takes the same time wherever it differs from them."""

    def __contains__(self, offered):
        matches = [hmac.compare_digest(key, offered.encode()) for key in self]
        return any(matches)


def write_json_with_pydantic_2(answer):
    """Give the model `answer` the `json()` of pydantic 1, which FastChat's streams call (#3140).

    pydantic 2 refuses its `ensure_ascii=False`, so that every streamed answer is empty. pydantic 2
    never escapes non-ASCII text, so that the option can be dropped. pydantic 1 needs no mend.
    """
    if not hasattr(answer, "model_dump_json"):
        return

    def to_json(self, ensure_ascii=False, **options):
        return self.model_dump_json(**options)

    answer.json = to_json


def list_models_without_refresh(module):
    """Answer `GET /v1/models` from the controller's list, without asking it to refresh.

    A refresh stops FastChat's controller for 5 s per hung worker and undoes registrations. Our
    controller ignores it, but the cluster file may name another one.
    """
    fetch = module.fetch_remote

    async def fetch_remote(url, pload=None, name=None):
        if url.endswith("/refresh_all_workers"):
            return b""
        return await fetch(url, pload, name)

    module.fetch_remote = fetch_remote


def ask_for_each_prompt_how_to_write_it(module):
    """Ask the worker for its conversation template each time: FastChat keeps the first for ever.

    The worker at an address may be replaced by one with another template, and prompts in the wrong
    one are answered badly without a word. Asking costs 1 to 2 ms a request. No upstream issue is
    known.
    """
    get_conv = module.get_conv

    async def get_conv_anew(model_name, worker_addr):
        module.conv_template_map.clear()
        return await get_conv(model_name, worker_addr)

    module.get_conv = get_conv_anew


def ask_key_on_every_route(module):
    """Ask for an API key on `/api/v1/*`, which FastChat leaves open (#2518, #2591)."""
    for route in [route for route in module.app.routes if is_without_key(route, module)]:
        module.app.routes.remove(route)
        module.app.add_api_route(
            route.path,
            route.endpoint,
            methods=list(route.methods),
            dependencies=[Depends(module.check_api_key)],
        )


def is_without_key(route, module):
    """Whether `route` is one of FastChat's (not of the generated documentation) and asks no key."""
    dependencies = getattr(route, "dependencies", None)
    return dependencies is not None and all(
        dependency.dependency is not module.check_api_key for dependency in dependencies
    )


def add_health(app, checked):
    """Add `GET /health`, cheap enough for a probe: FastChat has none (#2449).

    It tells which instance answers, because two share a socket while one takes over.
    """
    instance = os.environ.get("LLM_SUPERVISOR_INSTANCE", "").rpartition("/")[2]

    async def health():
        failing = checked.is_failing()
        answer = {"status": "failing" if failing else "ok", "instance": instance or None}
        return JSONResponse(answer, status_code=500 if failing else 200)

    mending.add_route(app, "GET", "/health", health)


if __name__ == "__main__":
    main()
