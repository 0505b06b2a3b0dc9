"""The demo cluster with the real FastChat, started once for all stories that share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo import demo_file
from harness import Cluster, free_ports

API_KEY = "sk-test-key-that-must-never-show"


@dataclass
class Demo:
    """Two models, one of them twice, behind one address."""

    cluster: Cluster
    url: str
    controller: str
    key: str | None = None


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    controller, api = free_ports(2)
    folder: Path = tmp_path_factory.mktemp("demo")
    cluster = Cluster(folder).write(demo_file(controller, api, key=API_KEY)).up().ready()
    yield Demo(cluster, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{controller}", API_KEY)
    cluster.down()


@pytest.fixture
def healthy_demo(demo: Demo) -> Demo:
    """The demo cluster with everything ready, whatever the story before has done to it."""
    demo.cluster.ready()
    return demo
