"""The web page's entry module. It needs the `web` extra."""

from __future__ import annotations

import importlib.util
import signal

import httpx
import pytest


@pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="gradio is not installed")
def test_it_shows_its_page_and_ends_on_sigterm(start, controller):
    page = start("gradio_web_server", "--controller-url", controller.url)
    page.wait_until_served("GET", "/")

    assert httpx.get(page.url + "/").status_code == 200
    assert page.exit_status_after(signal.SIGTERM) == -signal.SIGTERM
