"""The run directory: one supervisor at a time, its control socket, what it remembers.

Owned by us and written by nobody else, checked at every start: who can put a socket there speaks
for the supervisor. Who may open the socket may stop models, so that is 0600 (``daemon/api.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM
from socket import socket as Socket

_SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path, without the final NUL (sun_path in unix(7))."""

_BACKLOG = 1024
"""A crowd of silent clients passes through it faster than anybody can ask."""
_STATE_MAX = 256 * 1024 * 1024
"""Bytes; a file that is larger was not written by us."""
_TMP = Path("/tmp")
_FLOCK = "hhqqi4x"
"""struct flock on 64-bit Linux: type, whence, start, length, pid (0 for F_OFD_*)."""


class RunDirError(Exception):
    """The run directory cannot be used; the text says why and what to do."""


class AlreadyRunning(RunDirError):
    """Another supervisor owns the run directory."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"a supervisor already runs here ({owner}, run directory {path}); "
            "use `llm-supervisor status`, or stop it with `llm-supervisor down`"
        )


def default_run_dirs(config: Path, environ: Mapping[str, str]) -> list[Path]:
    """One per user and cluster file; the place to start in, then where it may run already.

    A login shell has XDG_RUNTIME_DIR, a cron job of the same user has not.
    """
    folder, base = os.path.split(os.path.abspath(config))
    # Its folder by whatever way, but a link to a file stays a name of its own.
    absolute = os.path.join(os.path.realpath(folder), base)
    digest = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:8]
    name = f"{Path(absolute).stem[:24]}-{digest}"
    bases = [Path("/run/llm-supervisor") if os.geteuid() == 0 else _in_tmp()]
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        bases.insert(0, Path(runtime) / "llm-supervisor")
    bases.append(Path(f"/run/user/{os.geteuid()}/llm-supervisor"))
    bases.append(Path("/run/llm-supervisor"))  # of a system unit with User=
    return [base / name for base in dict.fromkeys(bases)]


def _in_tmp() -> Path:
    return _TMP / f"llm-supervisor-{os.geteuid()}"


class RunDir:
    """Paths in a run directory; ``claim`` makes it ours."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self._lock: int | None = None

    @property
    def mark(self) -> str:
        """Distinguishes this cluster's processes from those of any other supervisor."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    def check_length(self) -> None:
        """Raises RunDirError if no socket can be there."""
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_MAX:
            raise RunDirError(
                f"the path {self.socket} is too long for a socket "
                f"({_SOCKET_PATH_MAX} bytes at most); give a shorter --run-dir"
            )

    def open_socket(self) -> Socket:
        """The listening control socket, 0600 from its first moment. Raises RunDirError."""
        listener = Socket(AF_UNIX, SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self.socket.unlink(missing_ok=True)
            listener.bind(str(self.socket))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            text = f"cannot open the socket {self.socket}: {error.strerror}"
            raise RunDirError(text) from None
        finally:
            os.umask(before)
        return listener

    @property
    def lock(self) -> int:
        """The descriptor that holds it, while it is ours."""
        assert self._lock is not None
        return self._lock

    def inherit(self, lock: int) -> None:
        """It is ours already: this process has claimed it as another program."""
        os.set_inheritable(lock, False)
        self._lock = lock

    def claim(self) -> None:
        """Create it, check who owns it, and lock it for as long as we live. Raises RunDirError.

        The lock belongs to the open file, not to the process (``F_OFD_SETLK``, fcntl(2)): a second
        claim in one process is refused too, and closing another descriptor does not lose it.
        """
        self.check_length()
        self._create()
        with self._explained("use"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(self.path / "lock", flags, 0o600)
            try:
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _write_lock())
            except (BlockingIOError, PermissionError):  # POSIX leaves the choice
                owner = os.pread(lock, 100, 0).decode(errors="replace").strip()
                os.close(lock)
                raise AlreadyRunning(self.path, owner or "just starting") from None
            self._lock = lock
            try:
                os.ftruncate(lock, 0)
                with contextlib.suppress(OSError):  # the disk is full: ours all the same
                    os.pwrite(lock, f"pid {os.getpid()}".encode(), 0)
                self.socket.unlink(missing_ok=True)  # of a supervisor that was killed
            except OSError:
                self.release()
                raise

    def release(self) -> None:
        """Remove the socket and let others in."""
        with contextlib.suppress(OSError):
            self.socket.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def owner(self) -> str | None:
        """Who runs here (``pid 123``), None if nobody. Only looks: it takes no lock itself."""
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            answer = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _write_lock())
            if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
                return None
            return os.pread(lock, 100, 0).decode(errors="replace").strip() or "just starting"
        except OSError:
            return None
        finally:
            os.close(lock)

    def is_ours(self) -> bool:
        """Whether a supervisor that we find there may be trusted to be our own."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()

    # ------------------------------------------------------------ ports, which outlive a run

    def remembered_ports(self) -> dict[str, int]:
        """The ports of the last run, by instance; none if the file is missing or damaged."""
        try:
            ports = json.loads((self.path / "ports.json").read_text("utf-8"))
            return {str(name): int(port) for name, port in ports.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def remember_ports(self, ports: Mapping[str, int]) -> None:
        """Written whole or not at all. Raises RunDirError."""
        new = self.path / "ports.json.new"
        with self._explained("write in"):
            new.unlink(missing_ok=True)  # whatever it is: a link would lead elsewhere
            with new.open("x", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(ports), indent=1))
            os.replace(new, self.path / "ports.json")

    # ------------------------------------------------------------ state, for whoever comes after us

    def read_state(self) -> bytes | None:
        """None if there is none. Raises OSError."""
        try:
            with open(self._state, "rb", opener=_without_links) as stream:
                return stream.read(_STATE_MAX)
        except FileNotFoundError:
            return None

    def has_state(self) -> bool:
        """Whether a supervisor has not come to an orderly end here."""
        return self._state.is_file()

    def write_state(self, content: bytes) -> None:
        """Whole or not at all. Raises OSError.

        It is not forced to the disk: it is worth nothing after a power cut, when nothing runs.
        """
        new = self.path / "state.json.new"
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(new, self._state)

    def forget_state(self) -> None:
        """Nothing runs any more that a successor should know of."""
        with contextlib.suppress(OSError):
            self._state.unlink()

    @property
    def _state(self) -> Path:
        return self.path / "state.json"

    def is_in_place(self) -> bool:
        """False if somebody has removed it underneath us, as cleaners of /tmp do."""
        try:
            return os.path.samestat(os.stat(self.path / "lock"), os.fstat(self.lock))
        except OSError:
            return False

    def restore(self) -> None:
        """Make it anew, and keep it ours. Raises RunDirError, also if another one is there now."""
        old = self.lock
        try:
            self.claim()
        except RunDirError:
            self._lock = old
            raise
        os.close(old)

    def _create(self) -> None:
        parent = self.path.parent
        with self._explained("create"):
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if parent == _in_tmp():  # anybody may have made it before us
                _check(parent)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            _check(self.path)
            _check_way(self.path)
            _check_content(self.path)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """An OSError as a RunDirError."""
        try:
            yield
        except OSError as error:
            place = f" ({error.filename})" if error.filename not in (None, str(self.path)) else ""
            raise RunDirError(
                f"cannot {what} the run directory {self.path}: {error.strerror}{place}; "
                "name another one with --run-dir"
            ) from None


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _check(path: Path) -> None:
    """It is a directory of ours that nobody else can write in."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise RunDirError(f"{path} is no directory; name another one with --run-dir")
    if found.st_uid != os.geteuid():
        raise RunDirError(
            f"the run directory {path} belongs to user {found.st_uid}, not to you; "
            "name another one with --run-dir"
        )
    if found.st_mode & 0o022:
        raise RunDirError(
            f"others may write in the run directory {path} (mode {stat.S_IMODE(found.st_mode):o}) "
            f"and so take over the supervisor; `chmod go-w {path}`, or name another one "
            "with --run-dir"
        )


def _check_way(path: Path) -> None:
    """Nobody else can put another directory in its place after it has been looked at.

    In a folder that everybody can write in, such as /tmp, who has made a folder or a link can swap
    what is below it; and without the sticky bit, everybody can. So on the way there, also where
    links lead, what lies in such a folder has to be ours or root's.
    """
    for way in dict.fromkeys((path, Path(os.path.realpath(path)))):
        for place in (way, *way.parents):
            above = os.stat(place.parent)
            if place == place.parent or not above.st_mode & stat.S_IWOTH:
                continue
            owner = os.lstat(place).st_uid
            if above.st_mode & stat.S_ISVTX and owner in (os.geteuid(), 0):
                continue
            whose = f"{place} on the way there is user {owner}'s"
            if not above.st_mode & stat.S_ISVTX:
                whose = f"everybody may rename what is in {place.parent}"
            raise RunDirError(
                f"somebody else can put another directory in the place of the run directory "
                f"{path}: {whose}; name another one with --run-dir"
            )


def _check_content(path: Path) -> None:
    """Nobody has put anything there while others could: a link, a pipe, a state of their own."""
    for name in os.listdir(path):
        owner = os.lstat(path / name).st_uid
        if owner not in (os.geteuid(), 0):
            raise RunDirError(
                f"{path / name} belongs to user {owner}, who has no business in your run "
                "directory; remove it, or name another one with --run-dir"
            )


def _write_lock() -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
