"""Requests to the API server that outlast short absences of the controller and of workers.

A restart takes a controller away for half a second, and a crash a worker for some seconds or, with
a second replica, for the instant until the controller has heard of it. FastChat asks once and
answers a plain 500. No upstream issue is known.

LLM_SUPERVISOR_RETRY_SECONDS (10) is how long one question to the controller or a worker is asked
again, counted from its first failure; with 0 it is asked once.

LLM_SUPERVISOR_MODELS is a JSON list of models that count as seen when this process starts: while a
cluster changes, a new API server may be up before a model that is served anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import aiohttp
from fastchat.constants import WORKER_API_TIMEOUT, ErrorCode

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25  # seconds between two tries
SHARE_OF_WAIT = 0.1  # by which an answer may come later than it could
CONNECT_SECONDS = 3  # enough for a SYN that was lost; a machine that is gone never answers one
REMEMBER_SECONDS = 60  # for so long a model that is not listed any more is waited for
AWAY = (502, 503, 504)  # what a proxy answers for somebody who is away, and uvicorn when it is full
CONTROLLER_AWAY = ErrorCode.CONTROLLER_NO_WORKER
WORKER_AWAY = ErrorCode.CONTROLLER_WORKER_TIMEOUT
TELL = "tell the operator of this server, whose log has more"

# Before aiohttp 3.10 a connection that is not made in time looks like an answer that is late.
NOT_CONNECTED = (
    aiohttp.ClientConnectorError,
    getattr(aiohttp, "ConnectionTimeoutError", aiohttp.ClientConnectorError),
)


def mend(module):
    """Let `module`, FastChat's API server, ask again, and say what is wrong when that is no use."""
    asker = Asker(module, read_retry_seconds())
    asker.saw(*read_expected_models())
    module.fetch_remote = asker.fetch_remote
    module.get_worker_address = asker.get_worker_address
    module.check_model = asker.check_model
    module.generate_completion_stream = asker.generate_completion_stream
    answer_absence_with_503(module)
    end_every_stream_with_a_word(module)


def read_retry_seconds():
    """The bound from the environment; ends the process when it is no number of seconds."""
    given = os.environ.get("LLM_SUPERVISOR_RETRY_SECONDS", "10")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        sys.exit(f"LLM_SUPERVISOR_RETRY_SECONDS is {given!r}: want seconds, for example 10, or 0")
    return seconds


def read_expected_models():
    """The models from the environment; none where it has no list of names."""
    try:
        models = json.loads(os.environ.get("LLM_SUPERVISOR_MODELS", "[]"))
    except ValueError:
        return []
    if not isinstance(models, list):
        return []
    return [model for model in models if isinstance(model, str)]


class Missed(Exception):
    """One try that brought no answer.

    `again`: another try may bring one. `read`: the request may have been read before it failed.
    """

    def __init__(self, what, again=True, read=True):
        super().__init__(what)
        self.again = again
        self.read = read


class Unanswered(Exception):
    """A question that is asked no more: one of FastChat's codes, and a sentence for the client.

    The sentence names no address, because clients may be strangers; the log has it.
    """

    def __init__(self, code, what):
        super().__init__(f"{what}; try again in a moment, and if that does not help, {TELL}.")
        self.code = code

    def content(self):
        """What a worker would answer."""
        return {"text": str(self), "error_code": self.code}


class Patience:
    """How long one question goes on being asked."""

    def __init__(self, seconds, logger):
        self.seconds = seconds
        self.logger = logger
        self.deadline = None
        self.reason = None

    async def wait(self, reason, unanswered):
        """Sleep, each time a little longer; raise `unanswered` when the time is up.

        Time counts from the first failure, because a worker may die late in a long answer.
        """
        now = time.monotonic()
        self.deadline = self.deadline or now + self.seconds
        if reason != self.reason:
            self.reason = reason
            self.logger.warning(f"{reason}; asks again for up to {self.deadline - now:.1f} s")
        waited = now - (self.deadline - self.seconds)
        pause = min(max(FIRST_PAUSE, SHARE_OF_WAIT * waited), LONGEST_PAUSE)
        if now + pause > self.deadline:
            raise unanswered
        await asyncio.sleep(pause)


class Asker:
    """Asks the controller and workers for `module`, FastChat's API server."""

    def __init__(self, module, seconds):
        self.module = module
        self.seconds = seconds
        self.refuse_unknown_model = module.check_model
        self.last_seen = {}  # model -> when it was there

    async def fetch_remote(self, url, pload=None, name=None):
        """Ask as FastChat's function of this name does, but again where that may help."""
        controller = self.module.app_settings.controller_address
        if url.startswith(controller + "/"):
            answer = await self.ask_controller(url[len(controller) :], pload, self.patience())
            return answer[name] if name else answer
        try:
            [output] = [whole async for whole in self.ask_worker(whole_answer, url, pload)]
        except Unanswered as unanswered:
            if name != "":
                raise
            # `generate_completion`, whose exceptions FastChat takes for internal errors.
            return unanswered.content()
        if name is None:
            return output
        answer = json.loads(output)
        return answer[name] if name else answer

    async def generate_completion_stream(self, payload, worker_addr):
        """Yield the contents of a worker's answer; once it has begun it is asked no more.

        An error that the worker reports gets an "error" as OpenAI has it, too: the official client
        takes FastChat's own for a chunk without choices. Asked with aiohttp: FastChat's httpx would
        go through a proxy, and load all certificates for each request, which takes 55 ms.
        """
        url = worker_addr + "/worker_generate_stream"
        async for content in self.ask_worker(contents_of_answer, url, payload):
            yield content if content["error_code"] == 0 else with_openai_error(content)

    async def get_worker_address(self, model_name):
        return await self.address_of(model_name, self.patience())

    async def check_model(self, request):
        """Refuse a model that is not there, as FastChat does, unless it was there a moment ago.

        A controller that has just restarted lists no model for some milliseconds, and a model
        whose only worker has crashed is not listed until that is back.
        """
        patience = self.patience()
        while True:
            listed = await self.ask_controller("/list_models", None, patience)
            if request.model in listed["models"]:
                return None
            if not self.seen_lately(request.model):
                return await self.refuse_unknown_model(request)
            await patience.wait(*no_worker_for(request.model))

    async def ask_controller(self, path, pload, patience):
        url = self.module.app_settings.controller_address + path
        while True:
            try:
                [output] = [whole async for whole in whole_answer(url, pload)]
                break
            except Missed as missed:
                unanswered = Unanswered(CONTROLLER_AWAY, f"The controller {missed}")
                if not missed.again:
                    raise unanswered from missed
                await patience.wait(f"{url} {missed}", unanswered)
        answer = json.loads(output)
        if path == "/list_models":
            self.saw(*answer["models"])
        return answer

    async def address_of(self, model, patience):
        """The address of a worker; one that has left a moment ago is waited for."""
        while True:
            answer = await self.ask_controller("/get_worker_address", {"model": model}, patience)
            if answer["address"]:
                return answer["address"]
            reason, unanswered = no_worker_for(model)
            if not self.seen_lately(model):
                raise unanswered
            await patience.wait(reason, unanswered)

    async def ask_worker(self, answer_of, url, pload):
        """Yield what `answer_of` does for `url`; before its first item, ask other workers as well.

        The controller says each time whom to ask, so that another replica gets the request. One
        that may have been read by a worker that then died goes to one further worker at most: it
        may be what killed it, and must not go through all replicas. A refused connection does not
        count, nor does a 503, which says that nobody has read it.
        """
        model, path = pload["model"], url[url.rindex("/") :]
        patience, died, begun = self.patience(), 0, False
        while True:
            try:
                async for item in answer_of(url, pload):
                    begun = True
                    yield item
                return
            except Missed as missed:
                reason = f"{url} {missed}"
                unanswered = Unanswered(WORKER_AWAY, f"The worker of {model!r} {missed}")
                died += missed.read
                if begun or died == 2 or not missed.again:
                    self.module.logger.warning(f"{reason}; asks no more")
                    raise unanswered from missed
                await patience.wait(reason, unanswered)
            self.saw(model)  # that worker was there for FastChat a moment ago
            url = await self.address_of(model, patience) + path

    def patience(self):
        return Patience(self.seconds, self.module.logger)

    def saw(self, *models):
        self.last_seen.update(dict.fromkeys(models, time.monotonic()))

    def seen_lately(self, model):
        return time.monotonic() - self.last_seen.get(model, float("-inf")) < REMEMBER_SECONDS


async def whole_answer(url, pload):
    """Yield the body of an answer at once, when all of it is there: what was cut off is no news."""
    # As long as FastChat waits.
    timeout = aiohttp.ClientTimeout(total=3 * 3600, sock_connect=CONNECT_SECONDS)
    yield b"".join([piece async for piece in pieces_of_answer(url, pload, timeout)])


async def contents_of_answer(url, pload):
    """Yield what a worker streams: JSON, each ended by a NUL."""
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=WORKER_API_TIMEOUT)
    begun = b""
    async for piece in pieces_of_answer(url, pload, timeout):
        *ended, begun = (begun + piece).split(b"\0")
        for content in filter(None, ended):
            yield json.loads(content)


async def pieces_of_answer(url, pload, timeout):
    """Ask once and yield the body of the answer as it comes, or raise Missed."""
    try:
        async with aiohttp.request("POST", url, json=pload, timeout=timeout) as answer:
            if answer.status != 200:
                again = answer.status in AWAY
                raise Missed(f"answers HTTP {answer.status}", again, read=answer.status != 503)
            async for piece in answer.content.iter_any():
                yield piece
    except NOT_CONNECTED as error:
        raise Missed("cannot be reached", read=False) from error
    except asyncio.TimeoutError as error:  # noqa: UP041  # another one before Python 3.11
        raise Missed("did not answer in time", again=False) from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise Missed("broke off before its answer was complete") from error
    except aiohttp.ClientError as error:
        raise Missed("cannot be talked to", again=False) from error


def no_worker_for(model):
    """The reason to wait for a worker, and what the client gets if none comes."""
    reason = f"No worker serves {model!r} at the moment"
    return reason, Unanswered(CONTROLLER_AWAY, reason)


def with_openai_error(content):
    """The error `content`, FastChat's way, with the "error" that the official client looks for."""
    code = content["error_code"]
    kind = "server_error" if code >= ErrorCode.INTERNAL_ERROR else "invalid_request_error"
    return {**content, "error": {"message": content["text"], "type": kind, "code": code}}


def answer_absence_with_503(module):
    """Answer 503 with `Retry-After`, in FastChat's shape, where somebody is away.

    FastChat answers a plain 500 or, for an error in a generation, a 400 as if the client were to
    blame, so that no client tries again.
    """
    answer = module.create_error_response

    def create_error_response(code, message):
        response = answer(code, message)
        if code in (CONTROLLER_AWAY, WORKER_AWAY):
            response.status_code = 503
            response.headers["Retry-After"] = "1"
        return response

    async def answer_unanswered(request, unanswered):
        return create_error_response(unanswered.code, str(unanswered))

    module.create_error_response = create_error_response
    module.app.add_exception_handler(Unanswered, answer_unanswered)


def end_every_stream_with_a_word(module):
    """End a stream that cannot go on with an error and [DONE].

    FastChat lets go of the connection, which many clients take for the end of the answer.
    """
    for name in ("chat_completion_stream_generator", "generate_completion_stream_generator"):
        setattr(module, name, ending_with_a_word(getattr(module, name), module.logger))


def ending_with_a_word(events, logger):
    async def events_and_a_word(*args):
        try:
            async for event in events(*args):
                yield event
            return
        except Unanswered as unanswered:
            content = unanswered.content()
        except Exception as error:
            logger.exception("cannot go on with a stream")
            content = {
                "text": f"The answer cannot go on ({type(error).__name__}); {TELL}.",
                "error_code": ErrorCode.INTERNAL_ERROR,
            }
        yield f"data: {json.dumps(with_openai_error(content), ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"

    return events_and_a_word
