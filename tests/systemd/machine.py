"""A machine of its own, booted by a real systemd: a container over the files of this one.

It sees this machine's files through an overlay that lives in memory, the code under test and one
shared folder; of the network only a loopback of its own. All of it is in namespaces that end with
the process that holds them, which ends with the test run, however that ends. What can remain of a
run that was killed are empty control groups, which the next one removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from harness import ROOT, cgroup2, until

_GROUP = "llm-supervisor-tests-"

_BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run  # for systemd-nspawn, which removes only what is in memory
TOP=/run/machine
mkdir "$TOP"
mkdir "$TOP/upper" "$TOP/work" "$TOP/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$TOP/upper,workdir=$TOP/work" "$TOP/root"
cd "$TOP/root"
rm -rf etc/machine-id etc/fstab etc/systemd/system var/log/journal
mkdir etc/systemd/system
echo "$MACHINE_ID" > etc/machine-id
echo "$PARENTS" | while read -r folder; do chmod a+rx "./$folder"; done
echo 0 > "$GROUP/cgroup.procs"
boot() {
    systemd-nspawn --boot --directory="$TOP/root" --register=no --keep-unit --private-network \
        --console=read-only "$@"
}
until boot "$@"; do [ $? -eq 133 ]; done  # that is what it says for a reboot
"""


def why_not() -> str | None:
    """Why no machine can be booted here; None if one can."""
    if os.geteuid() != 0:
        return "booting a systemd takes root"
    for program in ("systemd-nspawn", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"there is no {program} (Debian: apt-get install systemd-container)"
    if cgroup2() is None:
        return "there is no cgroup v2 that we may write in"
    attempt = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r"
    attempt += " && mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", attempt],
        capture_output=True,
        text=True,
        check=False,
    )
    words = done.stderr.strip().splitlines()
    return f"no namespaces, or no overlay: {words[-1:]}" if done.returncode else None


class Machine:
    """``folder`` is shared with it, under the same name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # its users are not who runs the tests
        self.console = folder / "console.log"
        _remove_old_groups()
        self._group = _new_group()
        seen = [str(folder), *sorted({str(ROOT), sys.prefix})]
        binds = [f"--bind={seen[0]}", *(f"--bind-ro={one}" for one in seen[1:])]
        environ = {
            **os.environ,
            "GROUP": str(self._group),
            "MACHINE_ID": uuid.uuid4().hex,
            # In its overlay only: its users are to get at the interpreter and the code, too.
            "PARENTS": "\n".join(str(one) for one in _parents(sys.base_prefix, *seen[1:])),
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        }
        inside = ["unshare", "--mount", "--pid", "--kill-child", "--mount-proc"]
        with self.console.open("ab") as output:
            self._process = subprocess.Popen(
                [*inside, "sh", "-c", _BOOT, "boot", *binds],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                preexec_fn=_killed_with_parent,
            )
        self.leader = 0
        self._await_boot()

    # ------------------------------------------------------------ what is done in it

    def run(self, *words: str, check: bool = True, **environ: str) -> str:
        """A command in it, as root; what it says. Fails if it fails."""
        done = subprocess.run(
            [*self._inside, "env", "-i", *_plain(environ), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def succeeds(self, *words: str) -> bool:
        done = subprocess.run(
            [*self._inside, *words],
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.returncode == 0

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", "--all", "--target", str(self.leader), "--"]

    def supervisor(self, *words: str, check: bool = True, **environ: str) -> str:
        """The command line of the code under test."""
        command = [sys.executable, "-P", "-m", "supervisor", *words]
        return self.run(*command, check=check, PYTHONPATH=str(ROOT), **environ)

    def reboot(self) -> None:
        old = self.leader
        with contextlib.suppress(AssertionError):  # it may be gone before it can answer
            self.run("systemctl", "reboot")
        self._await_boot(old)

    def close(self) -> None:
        """All of it ends with the first process of its outer namespace."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(AssertionError):
            until(lambda: _remove_group(self._group), "the machine is gone", 10)

    # ------------------------------------------------------------ booting

    def _await_boot(self, old: int = 0) -> None:
        def booted() -> bool:
            assert self._process.poll() is None, self.console.read_text(errors="replace")[-2000:]
            self.leader = _systemd_below(self._process.pid) or 0
            if self.leader in (0, old):
                return False
            done = subprocess.run(
                [*self._inside, "systemctl", "is-system-running"],
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout.strip() in ("running", "degraded")

        until(booted, "the machine has booted")


def _parents(*paths: str) -> list[Path]:
    return [parent for path in paths for parent in Path(path).resolve().parents]


def _plain(environ: dict[str, str]) -> list[str]:
    given = {"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8", **environ}
    return [f"{name}={value}" for name, value in given.items()]


def _killed_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _systemd_below(pid: int) -> int | None:
    """The container's process 1: a child of systemd-nspawn."""
    todo = [(pid, "")]
    while todo:
        one, parent = todo.pop()
        try:
            name = Path(f"/proc/{one}/comm").read_text().strip()
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        if name == "systemd" and parent == "systemd-nspawn":
            return one
        todo += [(int(child), name) for child in children]
    return None


# ---------------------------------------------------------------- its control group


def _new_group() -> Path:
    root = cgroup2()
    assert root is not None
    group = root / f"{_GROUP}{os.getpid()}"
    group.mkdir(exist_ok=True)
    return group


def _remove_old_groups() -> None:
    root = cgroup2()
    for group in root.glob(f"{_GROUP}*") if root else ():
        if not Path(f"/proc/{group.name.removeprefix(_GROUP)}").exists():
            _remove_group(group)


def _remove_group(group: Path) -> bool:
    """False while something is still in it."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not group.exists()
