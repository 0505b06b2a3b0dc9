"""The text of a systemd unit for a cluster. Pure; every line that is not obvious gives its reason.

Directives are those of systemd 252 (Debian 12); a newer one knows them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.runtime.cgroups import DELEGATED


@dataclass(frozen=True)
class Unit:
    """What differs from one cluster to another. All paths are absolute."""

    name: str
    """With its suffix: `llm-supervisor-cluster.service`."""
    python: str
    file: Path
    run_dir: Path | None
    """None: where systemd keeps such things."""
    log_dir: Path | None
    place: str
    """The folder of this cluster in systemd's own: `llm-supervisor/cluster-1a2b3c4d`."""
    user: str | None
    """None: a unit of the user's own service manager."""
    modprobe: str | None = None
    """NVIDIA's setuid helper, which is not setuid under NoNewPrivileges."""
    needs_home: bool = True
    """Something that it needs is in /home, /root or /run/user."""

    @property
    def environment(self) -> Path:
        """Variables that the cluster file expands, if there are any."""
        return self.file.with_suffix(".env")


def text_of(unit: Unit) -> str:
    lines = [
        f"# Written by `llm-supervisor systemd` for {unit.file}; docs/systemd.md says more.",
        "# Own settings go into a drop-in (`systemctl edit`), so that this can be written anew.",
        *_unit_section(unit),
        *_service_section(unit),
        *_sandbox(unit),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if unit.user else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def _unit_section(unit: Unit) -> Iterator[str]:
    yield from ("", "[Unit]", f"Description=LLM cluster of {_literal(str(unit.file))}")
    if unit.user:
        yield "# Models may have to be downloaded; workers may be on other machines."
        yield "Wants=network-online.target"
        yield "After=network-online.target nvidia-persistenced.service"
    yield "# Never given up: RestartSec is what slows a crash loop down, and the models run on."
    yield "StartLimitIntervalSec=0"


def _service_section(unit: Unit) -> Iterator[str]:
    command = [unit.python, "-P", "-m", "supervisor"]
    run_dir = _path(unit.run_dir, f"%t/{unit.place}")
    log_dir = _path(unit.log_dir, f"%L/{unit.place}")
    config = _word(str(unit.file))
    yield from (
        "",
        "[Service]",
        "# Started means: the cluster serves. It says so itself, and why not yet.",
    )
    yield "Type=notify"
    if unit.user:
        yield f"User={unit.user}"
    yield "# Variables that the cluster file expands, one NAME=value a line; may be missing."
    yield f"EnvironmentFile=-{_literal(str(unit.environment))}"
    if unit.modprobe:
        yield "# CUDA's first user loads nvidia-uvm by a setuid program: not under NoNewPrivileges."
        yield f"ExecStartPre=-+{unit.modprobe} -u -c=0"
    places = f"--config {config} --run-dir {run_dir}"
    yield f"ExecStart={_words(command)} up {places} --log-dir {log_dir}"
    yield "# Read, planned, and begun; `llm-supervisor wait` waits for the rest."
    yield f"ExecReload={_words(command)} reload --no-wait {places}"
    yield "# A crash of the supervisor touches no model: the next supervisor adopts them. So only"
    yield "# the supervisor is signalled, and stops everything in order. What is left when it was"
    yield "# killed, and nobody comes to adopt it, is ended by ExecStopPost."
    yield "KillMode=process"
    cleanup = [*command[:-1], "supervisor.cli.systemd_cleanup"]
    mine = "" if unit.user else " --user"
    yield f"ExecStopPost={_words(cleanup)} --run-dir {run_dir} --unit %n{mine}"
    yield "Restart=always"
    yield "RestartSec=1"
    yield "# An orderly end (`llm-supervisor down`) is what somebody wanted."
    yield "RestartPreventExitStatus=0"
    yield "# The supervisor asks for more time while models load, and while streams end. One that"
    yield "# does not is frozen, and killed."
    yield "TimeoutStartSec=5min"
    yield "TimeoutStartFailureMode=kill"
    yield "TimeoutStopSec=2min"
    yield "# Fed by a message through the supervisor's own inbox. SIGABRT: it says where it hung."
    yield "WatchdogSec=30"
    yield "TimeoutAbortSec=10"
    yield "# A control group of its own for each instance, from which nothing escapes."
    yield "Delegate=yes"
    if unit.user is None:
        yield "# A user's own systemd does not tell it otherwise."
        yield f"Environment={DELEGATED}=%n"
    yield "# A worker that is killed for want of memory is the supervisor's business ..."
    yield "OOMPolicy=continue"
    if unit.user:
        yield "# ... which itself goes last (instances get the usual score)."
        yield "OOMScoreAdjust=-500"
    yield "# A stream is two descriptors or three; a model's threads are many; GPUs pin memory. A"
    yield "# core would be as large as its model, with API keys in it."
    yield "LimitNOFILE=65536"
    yield "TasksMax=infinity"
    yield "LimitMEMLOCK=infinity"
    yield "LimitCORE=0"
    if unit.run_dir is None:
        yield "# Sockets and state outlive a restart. After a boot they are of no use: there is no"
        yield "# StateDirectory."
        yield f"RuntimeDirectory={unit.place}"
        yield "RuntimeDirectoryMode=0700"
        yield "RuntimeDirectoryPreserve=restart"
    if unit.log_dir is None:
        yield f"LogsDirectory={unit.place}"
        yield "LogsDirectoryMode=0750"


def _sandbox(unit: Unit) -> Iterator[str]:
    yield from ("", "# What GPUs, JIT compilers and model downloads can do without.")
    yield "NoNewPrivileges=yes"
    yield "# Netlink: NCCL and Gloo ask for the network interfaces."
    yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    yield "RestrictRealtime=yes"
    yield "RestrictSUIDSGID=yes"
    yield "LockPersonality=yes"
    yield "SystemCallArchitectures=native"
    yield "# What is forbidden, not what is allowed: drivers need what no such list foresees."
    yield "SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap"
    yield "SystemCallErrorNumber=EPERM"
    if unit.user is None:
        yield "# More needs a user namespace, in which the groups that may use the GPU are lost."
        return
    yield "# Not strict: caches (Hugging Face, Triton) are in the home folder, or wherever you say."
    yield "ProtectSystem=full"
    if _is_protected(unit.file.parent):
        yield "# `llm-supervisor set` and the like edit the file."
        yield f"ReadWritePaths={_word(str(unit.file.parent))}"
    if not unit.needs_home:
        yield "ProtectHome=yes"
    yield "ProtectKernelTunables=yes"
    yield "ProtectKernelModules=yes"
    yield "ProtectHostname=yes"
    if unit.user != "root":
        yield "CapabilityBoundingSet="
    yield "# Left out on purpose:"
    yield "# - PrivateTmp: it is emptied under the models when the supervisor is restarted"
    yield "# - PrivateDevices, ProtectClock (which restricts devices, too): no GPU"
    yield "# - MemoryDenyWriteExecute: no JIT (Triton, torch.compile, CUDA)"
    yield "# - ProtectControlGroups: no control group for each instance"
    yield "# - ProtectProc, PrivateUsers: who holds a port, what a killed supervisor has left"
    yield "# - ProtectKernelLogs: the kernel's log tells of killed processes and lost GPUs"


def _is_protected(folder: Path) -> bool:
    return any(folder.is_relative_to(one) for one in ("/etc", "/usr", "/boot", "/efi"))


def _path(chosen: Path | None, otherwise: str) -> str:
    return otherwise if chosen is None else _word(str(chosen))


def _words(words: Sequence[str]) -> str:
    return " ".join(map(_word, words))


def _word(text: str) -> str:
    """One word of a command line: systemd.service(5), "Command lines"."""
    text = _literal(text).replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _literal(text: str) -> str:
    """Without specifiers: systemd.unit(5)."""
    return text.replace("%", "%%")
