"""Makes faults in a FastChat process, for real: on its PYTHONPATH, armed through a file.

Python imports this first of all. Where FAULTS names a file, FastChat's own functions are wrapped as
they are imported. The file holds ``PLACE FAULT [PID]`` on each line: what goes wrong where, and in
which process, if not in all. It is read each time one of the places is passed.

Places: ``generate`` (before the first piece of a generation), ``piece`` (before each), ``embed``
(in an embedding), ``status`` (in a worker's status answer), ``endpoint`` (in any route of the API
server but /health), ``chat`` (where a chat completion begins).
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import sys
import threading
import time


def strike(place):
    """Do what the file says for ``place``."""
    for line in orders():
        where, fault, *pid = line.split()
        if where == place and (not pid or int(pid[0]) == os.getpid()):
            print("a fault is made:", line, flush=True)
            FAULTS[fault.partition(":")[0]](fault.partition(":")[2])


def orders():
    try:
        with open(os.environ["FAULTS"]) as stream:
            return stream.read().splitlines()
    except FileNotFoundError:
        return []


def cuda_error(_):
    """As PyTorch raises it for a kernel that has failed; FastChat answers 50001."""
    raise RuntimeError("CUDA error: device-side assert triggered")


def out_of_memory(_):
    """FastChat answers 50002."""
    import torch

    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def leak(_):
    """What FastChat does not catch: the request ends, and its slot is never released (#3328)."""
    raise KeyError("past_key_values")


def deadlock(_):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def compute(seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        sum(range(1000))


def sleep(seconds):
    time.sleep(float(seconds))


FAULTS = {
    "cuda": cuda_error,
    "oom": out_of_memory,
    "leak": leak,
    "deadlock": deadlock,
    "compute": compute,
    "sleep": sleep,
}


# ---------------------------------------------------------------- where they are made


def in_generations(module):
    generate_stream = module.generate_stream

    @functools.wraps(generate_stream)
    def faulty(*args, **kwargs):
        strike("generate")
        for piece in generate_stream(*args, **kwargs):
            strike("piece")
            yield piece

    module.generate_stream = faulty


def in_embeddings(module):
    normalize = module.normalize

    def faulty(*args, **kwargs):
        strike("embed")
        return normalize(*args, **kwargs)

    module.normalize = faulty


def in_status(module):
    get_status = module.BaseModelWorker.get_status

    def faulty(self):
        strike("status")
        return get_status(self)

    module.BaseModelWorker.get_status = faulty


def in_endpoints(module):
    run = module.run_endpoint_function

    async def faulty(*, dependant, values, is_coroutine):
        if dependant.call.__name__ != "health":
            strike("endpoint")
        if dependant.call.__name__ == "create_chat_completion":
            strike("chat")
        return await run(dependant=dependant, values=values, is_coroutine=is_coroutine)

    module.run_endpoint_function = faulty


PLACES = {
    "fastchat.serve.inference": in_generations,
    "torch.nn.functional": in_embeddings,
    "fastchat.serve.base_model_worker": in_status,
    "fastapi.routing": in_endpoints,
}


class Finder(importlib.abc.MetaPathFinder):
    """Lets the others find a module, and has it wrapped once it has been imported."""

    looking = False  # for what is wrapped then

    def find_spec(self, name, path, target=None):
        wrap = PLACES.get(name)
        if wrap is None or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            wrap(module)

        spec.loader.exec_module = exec_module
        return spec


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, Finder())
