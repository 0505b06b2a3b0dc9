"""A cluster file in a folder of its own, and what the loader says to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.spec.load import ClusterFile, load
from supervisor.spec.model import Cluster
from supervisor.spec.problems import Problem, SpecError


@dataclass
class Writer:
    """Writes ``cluster.yaml`` and loads it."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "cluster.yaml"

    def load(self, text: str | bytes) -> ClusterFile:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(self.path, self.environ)

    def cluster(self, text: str | bytes) -> Cluster:
        return self.load(text).cluster

    def problems(self, text: str | bytes) -> tuple[Problem, ...]:
        with pytest.raises(SpecError) as caught:
            self.load(text)
        return caught.value.problems

    def errors(self, text: str | bytes) -> list[str]:
        """What a user reads, without the name of the file."""
        return [str(problem).removeprefix(f"{self.path}:") for problem in self.problems(text)]
