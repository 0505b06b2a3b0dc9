"""Whether the API server still answers anything but HTTP 500.

One that answers 500 to everybody has a health route that answers as ever. But a client can get a
500 for a mistake of its own (an unknown role in a message is one), so that 500s alone prove
nothing. When nobody has got anything else for a while, the server asks itself what a client would,
and that answer counts.
"""

from __future__ import annotations

import asyncio
import json

DOUBTFUL_FAILURES = 5  # in a row, with no success in between


class SelfCheck:
    """An ASGI application that watches another, FastChat's API server in `module`."""

    def __init__(self, module):
        self.module = module
        self.app = module.app
        self.failures = 0
        self.failing = False
        self.asking = None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return

        succeeds = False

        async def send_and_note(message):
            nonlocal succeeds
            if message["type"] == "http.response.start":
                succeeds = message["status"] < 400
                self.answered(message["status"])
            elif succeeds:  # each piece of a stream counts: its beginning may be an hour old
                self.answered(200)
            await send(message)

        await self.app(scope, receive, send_and_note)

    def answered(self, status):
        """503 is the absence of others; who gets 4xx has not come far enough to tell anything."""
        if status == 500:
            self.failures += 1
        elif status < 400:
            self.failures, self.failing = 0, False

    def is_failing(self):
        """The answer to the last question; in doubt another one is asked, but not waited for."""
        in_doubt = self.failing or self.failures >= DOUBTFUL_FAILURES
        if in_doubt and (self.asking is None or self.asking.done()):
            self.asking = asyncio.create_task(self.ask_itself())
        return self.failing

    async def ask_itself(self):
        """List the models, then ask the first one for a token, as a client does."""
        status, answer = await self.ask("GET", "/v1/models")
        if status == 200:
            models = [model["id"] for model in json.loads(answer)["data"]]
            for model in models[:1]:
                question = {
                    "model": model,
                    "messages": [{"role": "user", "content": "Hello"}],
                    "max_tokens": 1,
                }
                status, _ = await self.ask("POST", "/v1/chat/completions", question)
        self.failing = status == 500
        if not self.failing:
            self.failures = 0

    async def ask(self, method, path, content=None):
        """Status and body of the application's answer, without a connection."""
        body = b"" if content is None else json.dumps(content).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *self.credentials()],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
        }
        answer = {"status": 500, "body": b""}

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            answer["status"] = message.get("status", answer["status"])
            answer["body"] += message.get("body", b"")

        try:
            await self.app(scope, receive, send)
        except Exception as error:
            # Its handler has answered 500, and raised it again for the server to log.
            self.module.logger.warning(f"asked itself {method} {path}: {error!r}")
        return answer["status"], answer["body"]

    def credentials(self):
        for key in self.module.app_settings.api_keys or ():
            key = key if isinstance(key, bytes) else key.encode()
            return [(b"authorization", b"Bearer " + key)]
        return []
