"""A server whose end no client notices that can go elsewhere."""

from __future__ import annotations

import asyncio
import time

import uvicorn

IDLE_SECONDS = 1  # enough for a request that is on its way


class GentleServer(uvicorn.Server):
    """Takes leave of its clients when it ends.

    uvicorn closes each idle connection at once, and a client that is just sending its next request
    there sees a reset. Here answers say `Connection: close` first, and an idle connection is
    closed only if it still is idle a second later. Running answers are finished, without a bound
    of ours. A second signal of any kind ends that: uvicorn hurries on a second SIGINT only.
    """

    async def shutdown(self, sockets=None):
        for listener in [*self.servers, *(sockets or [])]:
            listener.close()
        # In place, because answers that have not begun hold this list. It is replaced every second
        # while the server runs, which it does no more.
        self.server_state.default_headers.append((b"connection", b"close"))
        deadline = time.monotonic() + IDLE_SECONDS
        while self.server_state.connections and not self.force_exit:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def handle_exit(self, sig, frame):
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)
