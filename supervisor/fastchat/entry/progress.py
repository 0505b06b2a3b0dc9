"""What a worker has to show for itself, noted in a file that can be read without asking it.

FastChat answers a status question in the event loop, which says nothing of its generations: a CUDA
error, a leaked semaphore slot (#3328, #3389) or a deadlock leaves the status fine, while an
embedding runs in the event loop, too, and keeps a healthy worker from answering (#3793).

LLM_SUPERVISOR_PROGRESS is the path of the file; without it nothing is noted. The file holds one
line of JSON, always of the same length and overwritten in place:

  n, end        the number of the record; they differ while it is being written
  pid
  began         when the process began to serve
  in_flight     requests that have begun and not ended
  embeddings    those of them that are embeddings
  oldest        when the oldest of those in flight began, or null
  progress      when anything was produced last: a piece of an answer, or a whole one
  success       when a request succeeded last, or null
  failures      failures in a row since then: errors of the worker's own (50000 and above),
                HTTP 500, and requests that ended with nothing produced
  error         the last failure, in a few words

Times are seconds of CLOCK_MONOTONIC, which is the same for all processes of a machine.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import os
import threading
import time

LENGTH = 1024  # bytes of a record
PAUSE = 0.1  # seconds between two records that differ in `progress` only
SMALL = 65536  # bytes: an answer that is larger is no error
EMBEDDINGS = "/worker_get_embeddings"
WORK = ("/worker_generate_stream", "/worker_generate", EMBEDDINGS)
OWN_FAULT = 50000  # FastChat's codes from here on blame the worker, those below the request


def watched(app):
    """`app`, a worker's ASGI application, with its progress noted if the environment asks for it.

    The engine's own pieces are noted as well: a whole answer shows nothing of itself to ASGI
    before its end.
    """
    path = os.environ.pop("LLM_SUPERVISOR_PROGRESS", None)
    if not path:
        return app
    notes = Notes(path)
    note_pieces(notes)
    return Watched(app, notes)


class Notes:
    """The file. Nothing that is wrong with it harms a request.

    Engines call `produced` from threads of their own.
    """

    def __init__(self, path):
        self.path = path
        self.descriptor = None
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()
        self.written = 0.0
        self.began = self.progress = time.monotonic()
        self.success = None
        self.failures = 0
        self.error = ""
        self.in_flight = {}  # request -> when it began; the oldest comes first
        self.embeddings = 0
        self.write()

    def request_began(self, request):
        self.in_flight[request] = time.monotonic()
        self.embeddings += request.is_embedding
        self.write()

    def produced(self):
        """A piece of an answer: noted at once, written now and then."""
        self.progress = now = time.monotonic()
        if now - self.written > PAUSE:
            self.write()

    def request_ended(self, request, failure):
        """`failure` is None for a success, "" where the worker is not to be judged by it."""
        del self.in_flight[request]
        self.embeddings -= request.is_embedding
        if failure is None:
            self.success, self.failures = time.monotonic(), 0
        elif failure:
            self.failures += 1
            self.error = failure
        self.write()

    def write(self):
        with self.lock:
            self.written = time.monotonic()
            try:
                os.pwrite(self.opened(), self.record(), 0)
            except OSError:
                # An old record would look like a hang; none says that nothing is known.
                with contextlib.suppress(OSError, TypeError):
                    os.ftruncate(self.descriptor, 0)

    def opened(self):
        """The descriptor; the file is made anew if somebody has removed it."""
        if self.descriptor is not None and os.fstat(self.descriptor).st_nlink == 0:
            os.close(self.descriptor)
            self.descriptor = None
        if self.descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.descriptor = os.open(self.path, flags, 0o600)
        return self.descriptor

    def record(self):
        number = next(self.numbers)
        oldest = next(iter(self.in_flight.values()), None)
        fields = {
            "n": number,
            "pid": os.getpid(),
            "began": self.began,
            "in_flight": len(self.in_flight),
            "embeddings": self.embeddings,
            "oldest": oldest,
            "progress": self.progress,
            "success": self.success,
            "failures": self.failures,
            "error": self.error,
            "end": number,
        }
        return json.dumps(fields).ljust(LENGTH - 1).encode() + b"\n"


class Watched:
    """An ASGI application that notes what becomes of the requests that mean work."""

    def __init__(self, app, notes):
        self.app = app
        self.notes = notes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] not in WORK:
            await self.app(scope, receive, send)
            return
        request = Request(scope["path"])

        async def send_and_note(message):
            # Noted before it is sent, since a client that reads slowly is no fault of the worker's.
            if message["type"] == "http.response.start":
                request.status = message["status"]
            elif message["type"] == "http.response.body":
                request.answer(message.get("body", b""), message.get("more_body", False))
                self.notes.produced()
            await send(message)

        self.notes.request_began(request)
        error = None
        try:
            await self.app(scope, receive, send_and_note)
        except Exception as raised:
            error = raised
            raise
        finally:  # also when it is cancelled
            self.notes.request_ended(request, request.failure(error))


class Request:
    """One request and what is known of its answer; compared by identity."""

    def __init__(self, path):
        self.is_embedding = path == EMBEDDINGS
        self.status = None
        self.last = b""  # piece of the answer
        self.is_whole = False

    def answer(self, piece, more):
        self.last = piece or self.last
        self.is_whole = not more

    def failure(self, error):
        """None for a success, "" for what says nothing of the worker, or else what failed."""
        if error is not None and not is_absence(error):
            return brief(repr(error))
        if self.status is None or not (self.last or self.is_whole):
            return "ended before anything was produced"
        if self.status >= 400:
            return f"HTTP {self.status}" if self.status >= 500 else ""
        code, text = code_and_text(self.last)
        if code:
            return f"error {code}: {brief(text)}" if code >= OWN_FAULT else ""
        return None if self.is_whole else ""


def is_absence(error):
    """Whether it means that the client has gone, as starlette and uvicorn tell it."""
    return isinstance(error, OSError) or type(error).__name__ == "ClientDisconnect"


def code_and_text(piece):
    """FastChat's error code in the last piece of an answer, and its text; (0, "") for none."""
    if len(piece) > SMALL:
        return 0, ""
    try:
        content = json.loads(piece.rstrip(b"\0").rpartition(b"\0")[2])
        return int(content.get("error_code") or 0), content.get("text")
    except (AttributeError, TypeError, ValueError):
        return 0, ""


def brief(text):
    """In one line, without FastChat's banner before the cause, and short enough for a record.

    In ASCII, too, since JSON makes twelve bytes of some letters.
    """
    line = " ".join(str(text).rpartition("**")[2].split())[:120]
    return line.encode("ascii", "replace").decode()


def note_pieces(notes):
    """Have every piece that an engine makes noted, whether or not it is streamed.

    Engines make them in a generator, plain or asynchronous, of the worker's class; a whole answer
    is made of the same ones (fastchat/serve/model_worker.py, generate_gate).
    """
    from fastchat.serve.base_model_worker import BaseModelWorker

    for kind in subclasses(BaseModelWorker):
        for name in ("generate_stream", "generate_stream_gate"):
            method = vars(kind).get(name)
            if inspect.isgeneratorfunction(method):
                setattr(kind, name, noting(method, notes))
            elif inspect.isasyncgenfunction(method):
                setattr(kind, name, noting_async(method, notes))


def subclasses(kind):
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def noting(method, notes):
    @functools.wraps(method)
    def pieces(*args, **kwargs):
        with contextlib.closing(method(*args, **kwargs)) as made:
            for piece in made:
                notes.produced()
                yield piece

    return pieces


def noting_async(method, notes):
    @functools.wraps(method)
    async def pieces(*args, **kwargs):
        made = method(*args, **kwargs)
        try:
            async for piece in made:
                notes.produced()
                yield piece
        finally:
            await made.aclose()

    return pieces
