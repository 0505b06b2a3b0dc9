"""A process that has imported what FastChat's processes need: `template.py KIND`.

Others are forked from it (`LLM_SUPERVISOR_TEMPLATE` is the number of its socket) and so need not
import it again: seconds of processor time and hundreds of megabytes each. Between its imports and
its end it runs nothing of FastChat and nothing of torch.

KIND is `worker` or `server`: what it imports is found in the source of FastChat's modules.

The socket keeps messages apart (SOCK_SEQPACKET). The template says first, once:

  {"ready": true}            it can be forked
  {"unfit": "why"}           it must not be forked, and ends

and then answers each request, one after the other:

  {"pid": PID}               the process is there, and waits (below)
  {"stale": "why"}           what it has imported has changed on disk; it ends. Unasked, too,
                             once pip has noted something and been quiet for a while

A request is one byte with descriptors: a file with JSON {"argv", "env", "cwd", "numbered"} (texts
stand for bytes, as Latin-1), a pipe, stdin, output, and those whose numbers the variables named in
"numbered" are to tell. The process begins its program when a byte comes through the pipe; where
that is closed instead it ends.

It looks as if it had been started: a session of its own, its environment and command line as
`/proc` shows them, and its parent is not the template but the next subreaper. In `/proc` only, its
environment says LLM_SUPERVISOR_LEADER=PID: what it forks inherits that with another pid.
"""

from __future__ import annotations

import array
import ast
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import mmap
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading

MODULES = {
    "worker": ("model_worker", "multi_model_worker"),
    "server": ("controller", "openai_api_server"),
}
"""Modules of fastchat.serve that are run in processes forked from a template of this kind."""
ENTRY = {"worker": (), "server": ("asking_again", "asking_itself", "gentle_server")}
"""Our own modules that are imported by theirs."""
QUIET = 5.0
"""Seconds after which pip is not in the middle of something any more."""
USES_CUDA = "an import has touched CUDA, which does not survive a fork"
LATE = ("transformers.trainer_utils", "peft")
"""What loading any model imports besides, where it is installed."""

IN_CLOEXEC, IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
IN_NAMES = 0x40 | 0x80 | 0x100 | 0x200  # moved from and to, created, deleted (inotify(7))
PR_SET_PDEATHSIG = 1
PR_SET_MM = 35
PR_SET_MM_MAP = 14
MM_MAP = struct.Struct("11QQII")
"""struct prctl_mm_map (the kernel's include/uapi/linux/prctl.h)."""

folder = os.path.dirname(os.path.abspath(__file__))


def main():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    channel = socket.socket(fileno=int(os.environ.pop("LLM_SUPERVISOR_TEMPLATE")))
    channel.set_inheritable(False)
    job = serve(channel, sys.argv[1])
    if job is not None:  # this is a forked process, with nothing left of what is above
        runpy.run_path(job["argv"][1], run_name="__main__")


def serve(channel, kind):
    """Answer requests until the other side has closed; None. In a forked process: its job."""
    packages = Packages()
    import_all(kind)
    why = unfitness() or harm_of_a_fork()
    if why:
        say(channel, unfit=why)
        return None
    imported = Imported()
    gc.collect()
    gc.freeze()  # a collection would copy every page that it looks at
    say(channel, ready=True)
    while True:
        changed = packages.what_changed_before(channel)
        if changed:
            say(channel, stale=changed + " has changed on disk")
            return None
        request, descriptors = receive(channel)
        if not request:
            return None
        job = read_job(descriptors.pop(0))
        changed = packages.what_changed() or imported.what_changed()
        if changed:
            say(channel, stale=changed + " has changed on disk")
            return None
        import_models(job["argv"])
        why = unfitness() or (harm_of_a_fork() if imported.note() else None)
        if why:
            say(channel, unfit=why)
            return None
        pid, line = fork(channel)
        if not pid:
            packages.close()
            become(job, descriptors, line)
            return job
        say(channel, pid=pid)
        for descriptor in descriptors:
            os.close(descriptor)


# ---------------------------------------------------------------- imports


def import_all(kind):
    """An import makes no garbage; looking for some takes a fifth of the time of all imports."""
    gc.disable()
    sys.path.insert(0, folder)
    for name in ENTRY[kind]:
        importlib.import_module(name)
    mending = importlib.import_module("mending")  # takes this folder off the path
    if kind == "worker":
        mending.prepare_worker()
    for name in MODULES[kind]:
        import_what_it_imports("fastchat.serve." + name, set())
    if kind == "worker":
        for name in LATE:
            try_to_import(name)
        read_how_weights_are_named()


def import_what_it_imports(name, seen):
    """A module of fastchat.serve is a program: it opens its log when it is imported, and draws the
    name of its worker. So only what it imports is imported."""
    if name in seen:
        return
    seen.add(name)
    with open(importlib.util.find_spec(name).origin, "rb") as stream:
        statements = ast.parse(stream.read()).body
    for imported, names in imports(statements):
        if imported.startswith("fastchat.serve."):
            with contextlib.suppress(ImportError, AttributeError, OSError):
                import_what_it_imports(imported, seen)
        else:
            try_to_import(imported, names)


def imports(statements):
    """Modules and names that these statements import, and those in a `try`; not the functions'."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name, ()
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield statement.module, [alias.name for alias in statement.names]
        elif isinstance(statement, ast.Try):
            yield from imports(statement.body)


def try_to_import(name, names=()):
    """What cannot be imported here fails in the process that wants it, which says so."""
    with contextlib.suppress(Exception):
        module = importlib.import_module(name)
        for one in names:
            getattr(module, one, None)  # some modules import what they are asked for


def read_how_weights_are_named():
    """transformers 5 compiles some thousand patterns for that when the first model is loaded."""
    with contextlib.suppress(Exception):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")


def import_models(argv):
    """The modules of transformers for the models that a worker is about to load from a folder."""
    for path in [argv[i + 1] for i, flag in enumerate(argv[:-1]) if flag == "--model-path"]:
        with contextlib.suppress(Exception):
            with open(os.path.join(path, "config.json"), encoding="utf-8") as stream:
                kind = json.load(stream)["model_type"]
            from transformers.models.auto.configuration_auto import model_type_to_module_name

            name = model_type_to_module_name(kind)
            importlib.import_module(f"transformers.models.{name}.modeling_{name}")


# ---------------------------------------------------------------- what must be so


def unfitness():
    """Why a copy of this process could not work; None if it can."""
    others = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    if others:
        return "an import has started threads ({})".format(", ".join(others))
    if touches_gpus():
        return USES_CUDA
    if not mm_map(0, 0, 0, 0, only_try=True):
        return "this kernel does not let a process set its command line (CHECKPOINT_RESTORE)"
    return None


def touches_gpus():
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return True
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self/fd/" + descriptor).startswith("/dev/nvidia-uvm"):
                return True
    return False


def harm_of_a_fork():
    """What only a fork shows; None if it does no harm.

    Threads that a library has started and does not end for a fork, as OpenBLAS does; a driver that
    was only asked for its devices, after which torch lets no forked process use them.
    """
    pid = os.fork()
    if not pid:
        torch = sys.modules.get("torch")
        os._exit(torch is not None and torch.cuda._is_in_bad_fork())
    _, status = os.waitpid(pid, 0)
    if status != 0:
        return USES_CUDA
    threads = os.listdir("/proc/self/task")
    if len(threads) == 1:
        return None
    return f"a library has started {len(threads) - 1} threads"


# ---------------------------------------------------------------- changes on disk


class Packages:
    """The folders that packages are imported from, and what pip has noted there."""

    def __init__(self):
        paths = [path for path in sys.path if os.path.isdir(path) and path != folder]
        libc = ctypes.CDLL(None)
        self.watch = libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        for path in paths:
            libc.inotify_add_watch(self.watch, os.fsencode(path), IN_NAMES)
        self.notes = {path: notes(path) for path in paths}

    def what_changed(self):
        """The folder in which something else is noted now; None if there is none."""
        return next((path for path, was in self.notes.items() if notes(path) != was), None)

    def what_changed_before(self, channel):
        """Wait for a message on `channel`: None. The folder, if something else is noted there."""
        poll = select.poll()
        for descriptor in (channel.fileno(), self.watch):
            if descriptor >= 0:  # without inotify, it is found out at the next request
                poll.register(descriptor, select.POLLIN)
        quiet = None
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(quiet)]
            if channel.fileno() in ready:
                return None
            if not ready:
                changed = self.what_changed()
                if changed:
                    return changed
            quiet = QUIET * 1000 if ready else None
            with contextlib.suppress(BlockingIOError):
                while os.read(self.watch, 1 << 16):
                    pass

    def close(self):
        if self.watch >= 0:
            os.close(self.watch)


def notes(path):
    marks = (".dist-info", ".egg-info", ".egg-link", ".pth")
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return sorted((e.name, e.stat().st_mtime_ns) for e in entries if e.name.endswith(marks))
    return []


class Imported:
    """The files of all that is imported, and how they were then.

    In few objects: whatever is only looked at is written to, for its count of references, and the
    page that it is on is then no longer shared with the forked processes.
    """

    def __init__(self):
        self.modules = 0
        self.paths = ""
        self.states = array.array("q")
        self.note()

    def note(self):
        """Also what has been imported since; whether anything has."""
        if len(sys.modules) == self.modules:
            return False
        self.modules = len(sys.modules)
        known = set(self.paths.split("\0"))
        # Not as attributes: some modules import when they are asked for one.
        found = {getattr(one, "__dict__", {}).get("__file__") for one in sys.modules.values()}
        for path in found:
            if isinstance(path, str) and path not in known:
                self.paths += path + "\0"
                self.states.extend(state(path))
        return True

    def what_changed(self):
        """The first file that is not as it was; None if there is none."""
        for i, path in enumerate(self.paths.split("\0")[:-1]):
            if state(path) != tuple(self.states[3 * i : 3 * i + 3]):
                return path
        return None


def state(path):
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_ino, status.st_size, status.st_mtime_ns


# ---------------------------------------------------------------- messages


def say(channel, **what):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(what).encode())


def receive(channel):
    """One message and its descriptors; no message if the other side has closed."""
    numbers = array.array("i")
    room = socket.CMSG_SPACE(16 * numbers.itemsize)
    message, ancillary, _, _ = channel.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return message, list(numbers)


def read_job(descriptor):
    """Its words are bytes (as Latin-1): in which encoding Python has them is its own affair."""
    with os.fdopen(descriptor, "rb") as stream:
        job = json.loads(stream.read())

    def word(text):
        return os.fsdecode(text.encode("latin-1"))

    return {
        "argv": [word(one) for one in job["argv"]],
        "env": {word(name): word(value) for name, value in job["env"].items()},
        "cwd": word(job["cwd"]),
        "numbered": job["numbered"],
    }


# ---------------------------------------------------------------- a forked process


def fork(channel):
    """Fork a process that is no child of this one. Here its pid, once it has closed its end of a
    line: what it is told from then on it must not miss. In that process 0, and its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    middle = os.fork()
    if middle:
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            pid = int(stream.read())
        os.waitpid(middle, 0)
        return pid, None
    os.close(reader)
    pid = os.fork()
    if pid:
        os.write(writer, str(pid).encode())
        os._exit(0)  # the process has the next subreaper for a parent now
    channel.close()
    return 0, writer


def become(job, descriptors, line):
    """Take on what another process would have been started with, and wait until it may begin."""
    pipe, stdin, output, *numbered = descriptors
    os.setsid()
    for descriptor, number in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    for descriptor in (stdin, output):
        os.close(descriptor)
    env = job["env"]
    for name in job["numbered"]:
        descriptor = numbered.pop(0)
        os.set_inheritable(descriptor, True)
        env[name] = str(descriptor)
    coerced = os.environ.get("LC_CTYPE")  # by Python itself, where the locale is C (PEP 538)
    os.environ.clear()
    os.environ.update(env)
    if coerced is not None:
        os.environ.setdefault("LC_CTYPE", coerced)
    show(job["argv"], dict(env, LLM_SUPERVISOR_LEADER=str(os.getpid())))
    os.close(line)
    if not os.read(pipe, 1):
        os._exit(0)
    os.close(pipe)
    try:
        os.chdir(job["cwd"])
    except OSError as error:
        sys.exit(f"cannot start: the working directory is gone: {error}")
    sys.argv[:] = job["argv"][1:]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = job["argv"]
    draw_anew()
    gc.enable()


def draw_anew():
    """Random numbers and a secret that no other process has; the `random` module does it itself."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    if "multiprocessing" in sys.modules:
        sys.modules["multiprocessing"].current_process().authkey = os.urandom(32)


def show(argv, env):
    """Have `/proc` show this as the command line and environment of this process."""
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    variables = b"".join(os.fsencode("=".join(item)) + b"\0" for item in env.items())
    size = len(words) + len(variables)
    show.room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    show.room.write(words + variables)
    start = ctypes.addressof(ctypes.c_char.from_buffer(show.room))
    middle = start + len(words)
    if not mm_map(start, middle, middle, start + size):
        sys.exit("cannot start: PR_SET_MM_MAP is refused; set `launch: cold`")


def mm_map(*ends, only_try=False):
    """prctl(PR_SET_MM, PR_SET_MM_MAP): no privilege needed, but CONFIG_CHECKPOINT_RESTORE is.

    ``ends``: of the command line and the environment in memory. Whether it could be done.
    """
    with open("/proc/self/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    # Numbers as in proc_pid_stat(5), where the first of `fields` is the third.
    code, data, stack = [[int(fields[n - 3]) for n in ns] for ns in ((26, 27), (45, 46, 47), (28,))]
    if only_try:
        ends = [int(fields[n - 3]) for n in (48, 49, 50, 51)]
    content = MM_MAP.pack(*code, *data, libc.sbrk(0), *stack, *ends, 0, 0, 0xFFFFFFFF)
    size = ctypes.c_ulong(len(content))
    return libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.c_char_p(content), size, 0) == 0


if __name__ == "__main__":
    main()
