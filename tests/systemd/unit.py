"""A cluster that is a unit of the machine's systemd."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from harness import ROOT, until
from machine import Machine


class Unit:
    """``user``: of that user's own service manager, instead of the machine's."""

    def __init__(self, machine: Machine, folder: Path, name: str) -> None:
        self.machine = machine
        self.folder = folder
        self.file = folder / f"{name}.yaml"
        self.name = f"llm-supervisor-{name}.service"
        self.token = f"{name}-{os.getpid()}"
        """In the command line of what must not be left."""
        self.user: str | None = None

    # ------------------------------------------------------------ its life

    def write(self, text: str) -> Unit:
        self.file.write_text(text)
        # The code under test, wherever the interpreter would find another one.
        self.file.with_suffix(".env").write_text(f"PYTHONPATH={ROOT}\n")
        return self

    def install(self, *options: str, **settings: str) -> Unit:
        """``settings`` go into a drop-in."""
        self.supervisor("systemd", "--install", *options)
        if settings:
            text = "[Service]\n" + "".join(f"{key}={value}\n" for key, value in settings.items())
            folder = f"/etc/systemd/system/{self.name}.d"
            self.machine.run("mkdir", "-p", folder)
            self.machine.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", text, f"{folder}/test.conf")
        self.systemctl("daemon-reload")
        return self

    def start(self) -> Unit:
        """Fails, with what the journal has, if systemd says that it has not started."""
        self.systemctl("start", self.name, check=False)
        state = self.show("ActiveState")
        assert state == "active", f"{state}: {[entry['MESSAGE'] for entry in self.journal()]}"
        return self

    def kill_main(self, number: str = "KILL") -> int:
        """The pid it had."""
        pid = int(self.show("MainPID"))
        self.systemctl("kill", "--kill-whom=main", f"--signal={number}", self.name)
        return pid

    def remove(self) -> None:
        self.systemctl("stop", "--no-block", self.name, check=False)
        self.systemctl("kill", "--signal=KILL", self.name, check=False)
        self.systemctl("disable", self.name, check=False)
        until(lambda: self.show("ActiveState") in ("inactive", "failed"), "it is down")
        folder = "/etc/systemd/system"
        self.machine.run("rm", "-rf", f"{folder}/{self.name}", f"{folder}/{self.name}.d")
        self.systemctl("daemon-reload", check=False)
        self.systemctl("reset-failed", check=False)

    # ------------------------------------------------------------ what it is asked

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.as_user(["systemctl", *(["--user"] if self.user else []), *words], check=check)

    def supervisor(self, verb: str, *words: str, check: bool = True) -> str:
        """A verb of the command line, which finds the cluster by its file."""
        command = [sys.executable, "-P", "-m", "supervisor", verb, "-c", str(self.file), *words]
        return self.as_user(command, check=check)

    def as_user_of(self, user: str, verb: str, *words: str) -> str:
        """A verb of the command line, by the user that a unit of the machine's runs as."""
        self.user = user
        try:
            return self.supervisor(verb, *words)
        finally:
            self.user = None

    def as_user(self, words: list[str], *, check: bool = True) -> str:
        environ = {"PYTHONPATH": str(ROOT)}
        if self.user:
            uid = self.machine.run("id", "-u", self.user).strip()
            environ |= {"XDG_RUNTIME_DIR": f"/run/user/{uid}", "HOME": f"/home/{self.user}"}
            words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", *words]
        return self.machine.run(*words, check=check, **environ)

    def show(self, name: str) -> str:
        return self.systemctl("show", f"--property={name}", "--value", self.name).strip()

    def until(self, name: str, value: str) -> None:
        """Wait until a property has this value, or a part of it."""
        until(lambda: value in self.show(name), f"{name} is {value}, not {self.show(name)}")

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.supervisor("status", "--json"))
        return answer

    def instance(self, name: str) -> dict[str, Any]:
        return next(one for one in self.status()["instances"] if one["name"] == name)

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in self.status()["instances"]}

    def journal(self) -> list[dict[str, str]]:
        text = self.machine.run("journalctl", f"--unit={self.name}", "--output=json", "--all")
        return [json.loads(line) for line in text.splitlines()]

    def left(self) -> list[str]:
        """Command lines of what runs with our token in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if self.token in words:
                    found.append(words)
        return found

    def wait_until_nothing_is_left(self) -> None:
        until(lambda: not self.left(), f"nothing is left, {self.left()} is")

    # ------------------------------------------------------------ what runs in it

    def service(self, name: str, code: str = "", **fields: str) -> str:
        """An entry of `services` that runs Python code, then pauses."""
        code += f"\nimport signal\nwhile True: signal.pause()  # {self.token}"
        more = "".join(f"    {key}: {value}\n" for key, value in fields.items())
        command = json.dumps([sys.executable, "-S", "-I", "-c", code])
        return f"  {name}:\n    command: {command}\n{more}"

    def services(self, *entries: str, top: str = "") -> str:
        return f"{top}\nservices:\n" + "".join(entries)
