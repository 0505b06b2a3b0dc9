"""FastChat's controller, mended. The flags are those of `fastchat.serve.controller`.

Besides FastChat's routes it answers
  GET  /workers            {"workers": {worker_name: {"model_names": [...], "speed": 1, ...}}}
  POST /deregister_worker  {"worker_name": NAME} -> {"existed": true or false}
"""

from __future__ import annotations

import dataclasses
import threading

import mending
from fastapi import Body
from fastchat.serve import controller as fastchat_controller


def main():
    keep_registrations(fastchat_controller)
    let_the_process_end(fastchat_controller)
    add_worker_list(fastchat_controller)
    add_deregistration(fastchat_controller)
    mending.keep_out_of_access_log("/test_connection", "/workers", "/receive_heart_beat")
    fastchat_controller.logger.addFilter(is_no_heart_beat)

    args, fastchat_controller.controller = fastchat_controller.create_controller()
    mending.serve(fastchat_controller.app, args)


def keep_registrations(module):
    """Make `/refresh_all_workers` answer at once and change nothing.

    FastChat forgets all workers and asks each of them again inside the event loop: one hung worker
    stops the whole controller for 5 s and loses its registration, and a worker that was taken out
    of rotation comes back. Any client's `GET /v1/models` sets this off. No upstream issue is known.
    """
    module.Controller.refresh_all_workers = lambda self: None


def let_the_process_end(module):
    """Run the expiry of stale workers in a daemon thread.

    FastChat's thread is none and never ends: SIGINT, or a port that is taken, leaves a process
    behind that serves nothing (in #1714, processes left after Ctrl+C). Where upstream makes it a
    daemon, that thread is used as it is.
    """
    expire_forever = module.heart_beat_controller

    def expire_in_daemon(controller):
        if threading.current_thread().daemon:
            expire_forever(controller)
        else:
            threading.Thread(target=expire_forever, args=(controller,), daemon=True).start()

    module.heart_beat_controller = expire_in_daemon


def add_worker_list(module):
    """Add `GET /workers`: FastChat's controller tells models, but not who serves them."""

    async def list_workers():
        # A copy, because the thread that expires workers may remove one meanwhile.
        workers = dict(module.controller.worker_info)
        return {"workers": {name: dataclasses.asdict(info) for name, info in workers.items()}}

    mending.add_route(module.app, "GET", "/workers", list_workers)


def add_deregistration(module):
    """Add `POST /deregister_worker`: FastChat's controller forgets nobody but by expiry."""

    async def deregister_worker(worker_name: str = Body(embed=True)):
        worker = module.controller.worker_info.pop(worker_name, None)
        return {"existed": worker is not None}

    mending.add_route(module.app, "POST", "/deregister_worker", deregister_worker)


def is_no_heart_beat(record):
    """A log filter: every heart beat is a line, and they come every few seconds for months."""
    return not record.getMessage().startswith("Receive heart beat.")


if __name__ == "__main__":
    main()
