"""The run directory: one supervisor at a time, its control socket, what it remembers.

Mode 0700 and owned by us, checked at every start: whoever may open the socket may stop models.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

_SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path, without the final NUL (sun_path in unix(7))."""


class RunDirError(Exception):
    """The run directory cannot be used; the text says why and what to do."""


class AlreadyRunning(RunDirError):
    """Another supervisor owns the run directory."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"a supervisor already runs here ({owner}, run directory {path}); "
            "use `llm-supervisor status`, or stop it with `llm-supervisor down`"
        )


def default_run_dir(config: Path, environ: Mapping[str, str]) -> Path:
    """One per user and cluster file, in the place meant for such things."""
    folder, base = os.path.split(os.path.abspath(config))
    # Its folder by whatever way, but a link to a file stays a name of its own.
    absolute = os.path.join(os.path.realpath(folder), base)
    digest = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:8]
    name = f"{Path(absolute).stem[:24]}-{digest}"
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "llm-supervisor" / name
    if os.geteuid() == 0:
        return Path("/run/llm-supervisor") / name
    return Path(f"/tmp/llm-supervisor-{os.geteuid()}") / name


class RunDir:
    """Paths in a run directory; ``claim`` makes it ours."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self._lock: int | None = None

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    def claim(self) -> None:
        """Create it, check who owns it, and lock it for as long as we live. Raises RunDirError."""
        self._create()
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_MAX:
            raise RunDirError(
                f"the path {self.socket} is too long for a socket "
                f"({_SOCKET_PATH_MAX} bytes at most); give a shorter --run-dir"
            )
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 100, 0).decode(errors="replace").strip()
            os.close(lock)
            raise AlreadyRunning(self.path, owner or "just starting") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()}".encode(), 0)
        self._lock = lock
        self.socket.unlink(missing_ok=True)  # of a supervisor that was killed

    def release(self) -> None:
        """Remove the socket and let others in."""
        self.socket.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def owner(self) -> str | None:
        """Who runs here (``pid 123``), None if nobody."""
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(lock, 100, 0).decode(errors="replace").strip() or "just starting"
        finally:
            os.close(lock)
        return None

    # ------------------------------------------------------------ ports, which outlive a run

    def remembered_ports(self) -> dict[str, int]:
        """The ports of the last run, by instance; none if the file is missing or damaged."""
        try:
            ports = json.loads((self.path / "ports.json").read_text("utf-8"))
            return {str(name): int(port) for name, port in ports.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def remember_ports(self, ports: Mapping[str, int]) -> None:
        """Written whole or not at all."""
        new = self.path / "ports.json.new"
        new.write_text(json.dumps(dict(ports), indent=1), "utf-8")
        os.replace(new, self.path / "ports.json")

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.mkdir(mode=0o700, exist_ok=True)
            found = os.lstat(self.path)
        except OSError as error:
            raise RunDirError(
                f"cannot create the run directory {self.path}: {error.strerror}; "
                "name another one with --run-dir"
            ) from None
        if not stat.S_ISDIR(found.st_mode):
            raise RunDirError(f"{self.path} is no directory; name another one with --run-dir")
        if found.st_uid != os.geteuid():
            raise RunDirError(
                f"the run directory {self.path} belongs to user {found.st_uid}, not to you; "
                "name another one with --run-dir"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.chmod(self.path, 0o700)
