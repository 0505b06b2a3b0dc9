"""What the entry modules share: running FastChat, quiet logs, and the mends of every worker."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import gc
import logging
import os
import runpy
import socket
import sys

import progress  # before the lines below, which take this folder off the path
import read_ahead
import requests
import uvicorn

_PR_SET_PTRACER = 0x59616D61

# Running an entry module by path put this folder on the path, where `controller` and its
# neighbours could shadow somebody else's module of that name.
_FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]


def run(name):
    """Run `fastchat.serve.NAME` as `python -m` does.

    `alter_sys` makes it the real `__main__`, so that the children which an engine spawns import
    FastChat's module again, and not the entry module.
    """
    with _reason_as_last_line():
        runpy.run_module("fastchat.serve." + name, run_name="__main__", alter_sys=True)


def run_worker(name):
    """Run the worker module `fastchat.serve.NAME` with the mends that every worker needs."""
    read_ahead.begin()
    # An import makes no garbage; looking for some takes a fifth of the time of all imports.
    gc.disable()
    prepare_worker()
    keep_out_of_access_log("/worker_get_status")
    if os.environ.get("LLM_SUPERVISOR_NO_REGISTER") == "1":
        leave_registration_to_the_supervisor()
    gc.enable()
    spare_collections_what_stays()
    note_progress()
    run(name)


@functools.cache  # a process that is forked from a template finds it done
def prepare_worker():
    """What needs nothing of the process: mends, and imports of all that is heavy.

    In this order, because FastChat's modules copy names from what is mended here.
    """
    read_context_length_without_factor()
    give_tokenizers_batch_encode_plus()
    import fastchat.model.model_adapter  # noqa: F401


def serve(app, args, server_class=uvicorn.Server):
    """Serve `app` as the `__main__` block of its module does, which an import leaves out.

    It listens where the flags say or, if LLM_SUPERVISOR_LISTEN_FD is set, on the listening socket
    that is inherited under that number. Its owner can start a successor on the same socket before
    this process ends, so that no connection is refused in between.
    """
    tls = {}
    if args.ssl:
        tls["ssl_keyfile"] = os.environ["SSL_KEYFILE"]
        tls["ssl_certfile"] = os.environ["SSL_CERTFILE"]
    listener = inherited_listener()
    with _reason_as_last_line():
        config = uvicorn.Config(app, host=args.host, port=args.port, log_level="info", **tls)
        server = server_class(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener] if listener else None)
        if not server.started:
            sys.exit(3)  # as uvicorn.run does


def inherited_listener():
    """The socket of LLM_SUPERVISOR_LISTEN_FD, kept from children; None if that is not set."""
    given = os.environ.pop("LLM_SUPERVISOR_LISTEN_FD", None)
    if given is None:
        return None
    try:
        listener = socket.socket(fileno=int(given))
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("it does not listen")
    except (OSError, ValueError) as error:
        sys.exit(
            f"cannot serve: LLM_SUPERVISOR_LISTEN_FD is {given!r}, which is no listening socket "
            f"({error}); hand one over, or unset it to listen on --host and --port"
        )
    listener.set_inheritable(False)
    let_the_socket_be_copied()
    return listener


def let_the_socket_be_copied():
    """Let a supervisor that comes after a killed one take its copy of the listening socket.

    It does that with pidfd_getfd(2), which asks for the rights of ptrace(2); where Yama restricts
    these, a process must agree (prctl(2), PR_SET_PTRACER). Other users never get them.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


def add_route(app, method, path, endpoint):
    """Add a route that FastChat lacks; its own, should it ever get one, goes first."""
    app.add_api_route(path, endpoint, methods=[method])


def keep_out_of_access_log(*paths):
    """Log no answered request for `paths`: the supervisor asks them every few seconds for months.

    Requests that fail are still logged.
    """

    def is_news(record):
        _client, _method, path, _http_version, status = record.args
        return path.partition("?")[0] not in paths or status >= 400

    logging.getLogger("uvicorn.access").addFilter(is_news)


def read_context_length_without_factor():
    """Let FastChat read model configurations whose `rope_scaling` has no `factor` (#3470).

    Such are Phi-3's, and with transformers 5 every Llama's: FastChat ends with a KeyError. Without
    a factor the positions are not stretched, as if there were no `rope_scaling`.
    """
    from fastchat import utils

    read = utils.get_context_length

    def get_context_length(config):
        try:
            return read(config)
        except KeyError:
            return read(_WithoutRopeScaling(config))

    utils.get_context_length = get_context_length


class _WithoutRopeScaling:
    """A view of a model configuration in which no positions are scaled."""

    rope_scaling = None

    def __init__(self, config):
        self._config = config

    def __getattr__(self, name):
        return getattr(self._config, name)


def give_tokenizers_batch_encode_plus():
    """Bring back the method that FastChat's embeddings call and transformers 5 has dropped.

    transformers says that calling the tokenizer does the same. No upstream issue is known.
    """
    from transformers import PreTrainedTokenizerBase

    if not hasattr(PreTrainedTokenizerBase, "batch_encode_plus"):
        PreTrainedTokenizerBase.batch_encode_plus = PreTrainedTokenizerBase.__call__


def leave_registration_to_the_supervisor():
    """Send nothing to the controller, whatever the worker's flags say.

    multi_model_worker and huggingface_api_worker register in spite of `--no-register`, and crash
    after loading when the controller is down; mlx_worker has no such flag. FastChat registers
    before the port is bound; the supervisor does so once the worker has answered a prompt. No
    upstream issue is known.
    """
    from fastchat.serve.base_model_worker import BaseModelWorker

    BaseModelWorker.init_heart_beat = lambda self: None

    accepted = requests.Response()
    accepted.status_code = 200
    post = requests.post

    def post_unless_registration(url, *args, **kwargs):
        if url.endswith("/register_worker"):
            return accepted
        return post(url, *args, **kwargs)

    requests.post = post_unless_registration


def spare_collections_what_stays():
    """Keep what is there before serving out of every later garbage collection.

    FastChat collects garbage at the end of each request (fastchat/serve/inference.py), and walks
    all that torch, transformers and the model ever made: 0.2 s for an answer of one token that
    takes 0.005 s without. No upstream issue is known.
    """
    serve = uvicorn.run

    def freeze_and_serve(*args, **kwargs):
        gc.collect()
        gc.freeze()
        serve(*args, **kwargs)

    uvicorn.run = freeze_and_serve


def note_progress():
    """Serve the worker's application with a record of what it does (`progress`)."""
    serve = uvicorn.run

    def watch_and_serve(app, *args, **kwargs):
        serve(progress.watched(app), *args, **kwargs)

    uvicorn.run = watch_and_serve


@contextlib.contextmanager
def _reason_as_last_line():
    """Say last why uvicorn could not start: it buries a taken port under lines of its shutdown."""
    errors = collections.deque(maxlen=1)

    def remember(record):
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())
        return True

    logging.getLogger("uvicorn.error").addFilter(remember)
    try:
        yield
    except SystemExit as end:
        if end.code and errors:
            print("cannot serve: " + errors[0], file=sys.stderr)
        raise
