"""How a process comes to be: what it is given, and the two ways to begin, cold and warm."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from supervisor.core.diagnosis import CauseClass
from supervisor.core.instance import InstanceSpec, Template
from supervisor.runtime import tree
from supervisor.runtime.cgroups import Cgroups, enter
from supervisor.runtime.descriptors import with_reserve
from supervisor.runtime.leftovers import BIRTH, LISTEN_FD, birth
from supervisor.runtime.listeners import Listeners, PortTaken
from supervisor.runtime.templates import SOCKET, Job, memory_file


@dataclass(frozen=True, slots=True)
class Needs:
    """What a process is given at its start; its descriptors are ours until ``close``."""

    env: Mapping[str, str] = field(repr=False)
    stdin: int
    output: int
    numbered: Mapping[str, int]
    """Descriptors that it inherits, by the variable that tells the number."""
    _opened: contextlib.ExitStack

    def as_job(self, spec: InstanceSpec) -> Job:
        return Job(spec.argv, self.env, spec.cwd, self.stdin, self.output, self.numbered)

    def close(self) -> None:
        self._opened.close()


class Launcher:
    """``mark`` is that of the cluster; ``environ`` what all processes get."""

    def __init__(self, mark: str, environ: Mapping[str, str]) -> None:
        self._mark = mark
        self._environ = environ
        self.listeners = Listeners()
        """The listening sockets that instances are given."""
        self.cgroups: Cgroups | None = None
        """None: there are none for instances."""

    def settle(self) -> None:
        """To be called before anything is started."""
        groups = Cgroups.find(self._environ)
        self.cgroups = groups if groups is not None and groups.settle() else None

    def env_of(self, spec: InstanceSpec) -> dict[str, str]:
        return {**self._environ, **dict(spec.env), tree.MARK: f"{self._mark}/{spec.name}"}

    def provide(self, spec: InstanceSpec, run: int, output: Callable[[], int]) -> Needs:
        """Raises OSError, and leaves nothing open then."""
        env = {**self.env_of(spec), BIRTH: birth(run, spec.port, spec.launch)}
        numbered = {}
        listener = None if spec.listen is None else self.listeners.open(spec.listen)
        with contextlib.ExitStack() as opened:
            if listener is not None:
                # A copy: while a template imports, it may be dropped, and its number another's.
                numbered[LISTEN_FD] = os.dup(listener)
                opened.callback(os.close, numbered[LISTEN_FD])
            sink = output()
            opened.callback(os.close, sink)
            if spec.secret_input is None:
                stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            else:
                stdin = memory_file("llm-supervisor-secret", spec.secret_input)
            opened.callback(os.close, stdin)
            return Needs(env, stdin, sink, numbered, opened.pop_all())

    def execute(self, spec: InstanceSpec, needs: Needs) -> int:
        """Start it as a program; its pid. Raises OSError."""
        entry = None if self.cgroups is None else self.cgroups.open_entry(spec.name)
        try:
            return popen(
                spec.argv,
                cwd=spec.cwd,
                env={**needs.env, **{name: str(fd) for name, fd in needs.numbered.items()}},
                stdin=needs.stdin,
                output=needs.output,
                handed_over=tuple(needs.numbered.values()),
                entry=entry,
            )
        finally:
            if entry is not None:
                os.close(entry)

    def start_template(
        self,
        name: str,
        template: Template,
        output: Callable[[], int],
        descriptor: int,
    ) -> int:
        """Start a process that inherits ``descriptor``; its pid. Raises OSError."""
        own = {tree.MARK: f"{self._mark}/{name}", SOCKET: str(descriptor)}
        env = {**self._environ, **dict(template.env), **own}

        def execute() -> int:
            sink = output()
            try:
                return popen(
                    template.argv,
                    cwd=template.cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    output=sink,
                    handed_over=(descriptor,),
                )
            finally:
                os.close(sink)

        return with_reserve(execute)

    def place(self, name: str, pid: int) -> None:
        """What can be done for a process once it is there."""
        if self.cgroups is not None:
            self.cgroups.place(name, pid)
        tree.take_usual_oom_score(pid)


def popen(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    stdin: int,
    output: int | None,
    handed_over: Collection[int] = (),
    entry: int | None = None,
) -> int:
    """Start a process in a session of its own; its pid. ``output`` None: thrown away; ``entry``:
    that of its control group."""
    sink = subprocess.DEVNULL if output is None else output
    process = subprocess.Popen(
        list(argv),
        cwd=cwd,
        env=dict(env),
        stdin=stdin,
        stdout=sink,
        stderr=sink,
        pass_fds=handed_over,
        start_new_session=True,
        preexec_fn=None if entry is None else functools.partial(enter, entry),
    )
    # We reap it ourselves; without a return code Popen would warn, and try to wait for it.
    process.returncode = 0
    return process.pid


def why_not_started(spec: InstanceSpec, error: OSError) -> str:
    if isinstance(error, PortTaken):
        return str(error.strerror)
    missing = error.filename if isinstance(error.filename, str) else spec.argv[0]
    if isinstance(error, FileNotFoundError) and missing == spec.cwd:
        return f"its working directory {spec.cwd} does not exist; create it or mend cwd"
    if isinstance(error, FileNotFoundError):
        return f"there is no program {missing}; install it or mend the path"
    return f"{error.strerror}: {missing}"


def class_of(error: OSError) -> CauseClass:
    if isinstance(error, PortTaken):
        return CauseClass.PORT_BUSY
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return CauseClass.WRONG_CONFIG
    return CauseClass.HOST_MEMORY if error.errno == errno.ENOMEM else CauseClass.UNKNOWN
