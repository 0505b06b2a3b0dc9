"""The one way in: a cluster file on disk -> a validated ``Cluster``, or every reason why not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.spec.document import Document, parse
from supervisor.spec.model import Cluster
from supervisor.spec.named import named_files, with_named_files
from supervisor.spec.problems import Path as Place
from supervisor.spec.problems import Problem, SpecError
from supervisor.spec.validate import validate
from supervisor.spec.warnings import warnings

MAX_BYTES = 4 * 1024 * 1024
MAX_PROBLEMS = 100


@dataclass(frozen=True)
class ClusterFile:
    """A valid cluster file: its path as given, what it says, and where each value stands."""

    path: Path
    cluster: Cluster
    document: Document
    text: str = field(repr=False)  # may hold secrets

    @classmethod
    def none(cls, path: Path) -> ClusterFile:
        """In place of a file that cannot be read now."""
        return cls(path, Cluster(), parse("{}", str(path), {}), "")

    @property
    def base(self) -> Path:
        """The folder that relative paths in the file start from."""
        return Path(os.path.abspath(self.path)).parent

    @property
    def named(self) -> list[Path]:
        """Files that it names, and that are read with it."""
        return named_files(self.cluster, self.base)

    @property
    def warnings(self) -> list[Problem]:
        """What is allowed, and should be known all the same."""
        found = [self.document.problem(path, text) for path, text in warnings(self.cluster)]
        return sorted(set(found))

    def error(self, findings: Iterable[tuple[Place, str]]) -> SpecError:
        """Findings that came later, such as a port in use, as errors of this file."""
        return SpecError(self.document.problem(path, message) for path, message in findings)


def load(path: Path, environ: Mapping[str, str]) -> ClusterFile:
    """Read and validate. Raises ``SpecError`` with all problems; nothing else."""
    return load_text(read_text(path), path, environ)


def load_text(text: str, path: Path, environ: Mapping[str, str]) -> ClusterFile:
    """The same for a text that stands, or is about to stand, in ``path``."""
    document = parse(text, str(path), environ)
    if document.problems and document.values is None:
        raise SpecError(document.problems)
    file_base = Path(os.path.abspath(path)).parent
    cluster, problems = validate(document, file_base)
    problems = [*document.problems, *problems]
    if cluster is not None:
        cluster, more = with_named_files(cluster, document, file_base, read_text)
        problems += more
    if problems or cluster is None:
        named = named_files(cluster, file_base) if cluster is not None else ()
        raise SpecError(_most_useful(problems, str(path)), named)
    return ClusterFile(path, cluster, document, text)


def _most_useful(problems: list[Problem], file: str) -> list[Problem]:
    """The first so many; a file with more errors is no cluster file."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    text = f"{len(problems)} errors or more; here are the first {MAX_PROBLEMS}"
    return [Problem(file, 0, 0, "", text), *sorted(problems)[:MAX_PROBLEMS]]


def read_text(path: Path) -> str:
    """A file's text. Raises ``SpecError`` where it is missing, too large, or no text."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _unreadable(path, "is a directory; name the file in it")
        if not stat.S_ISREG(mode):
            raise _unreadable(path, "is not a regular file; name a YAML file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file; name one with -c FILE") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise _unreadable(path, f"is larger than {MAX_BYTES >> 20} MiB; no cluster file is")
    if b"\0" in raw:
        raise _unreadable(path, "is binary; name a YAML file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        problem = Problem(str(path), line, column, "", "is not UTF-8 text; save it as UTF-8")
        raise SpecError([problem]) from None


def _unreadable(path: Path, message: str) -> SpecError:
    return SpecError([Problem(str(path), 0, 0, "", message)])
