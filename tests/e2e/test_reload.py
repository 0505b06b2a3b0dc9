"""The file is edited while its cluster runs: what happens to whom, and to whom nothing does.

All with trivial commands, whose processes tell what they were started with.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Cluster, alive, until

from supervisor.cli.client import Client

NOTHING = "nothing has changed\n"
NOTHING_TO_DO = "cluster.yaml is applied: nothing to do"
SLEEP = "import signal; signal.pause()"
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n"
DEAF += "while True: signal.pause()"


def python(code: str) -> str:
    return json.dumps([sys.executable, "-u", "-S", "-I", "-c", code])


def sleep(name: str, seconds: int = 1000, more: str = "") -> str:
    return f"  {name}: {{command: [sleep, '{seconds}']{more and ', '}{more}}}\n"


TWO = "services:\n" + sleep("one") + sleep("two")


class Desk:
    """Somebody who edits the file of a cluster and looks at what runs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def save(self, text: str) -> None:
        draft = self.cluster.folder / "draft"
        draft.write_text(text)
        draft.replace(self.cluster.file)

    def ask(self, path: str, **query: Any) -> Any:
        """As the verbs do, without a process of its own for each look."""
        places = {
            "config": str(self.cluster.file),
            "run_dir": str(self.cluster.run_dir),
            "log_dir": None,
        }
        return Client(argparse.Namespace(**places)).get(path, **query)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/v1/status")
        return found

    def instance(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.status()["instances"]
        return next((one for one in found if one["name"] == name), {})

    def pids(self) -> dict[str, int | None]:
        return {one["name"]: one["pid"] for one in self.status()["instances"]}

    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/v1/events")["events"]
        return found

    def told(self) -> list[str]:
        """What the events say of the file."""
        return [one["reason"] for one in self.events() if one["state"] == "file"]

    def of(self, name: str) -> list[str]:
        return [one["state"] for one in self.events() if one["instance"] == name]

    def until(self, name: str, state: str) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            one = self.instance(name)
            return one if one.get("state") == state else None

        found: dict[str, Any] = until(there, f"{name} is {state}")
        return found

    def until_told(self, text: str) -> str:
        """An event of the file with this in it."""
        found: str = until(
            lambda: next((one for one in self.told() if text in one), None), f"{text!r} is told"
        )
        return found

    def save_without_effect(self, text: str) -> None:
        """Save, and wait until that has been applied."""
        before = self.told().count(NOTHING_TO_DO)
        self.save(text)
        until(lambda: self.told().count(NOTHING_TO_DO) > before, "it is applied without effect")

    def reload(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.run("reload", *arguments)

    def reloaded(self, text: str) -> str:
        """Save a file that is not watched, or may be noticed twice; what `reload` printed."""
        self.save(text)
        done = self.reload()
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self, text: str) -> Desk:
        self.cluster.write(text).up().ready()
        return self

    def log(self, name: str) -> list[str]:
        return self.cluster.log(name).splitlines()


@pytest.fixture
def desk(cluster: Cluster) -> Desk:
    return Desk(cluster)


def command_line(pid: int | None) -> list[str]:
    assert pid is not None
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


# ---------------------------------------------------------------- who tells that it is to be read


def hang_up(desk: Desk) -> None:
    assert desk.cluster.process is not None
    desk.cluster.process.send_signal(signal.SIGHUP)


def reload(desk: Desk) -> None:
    assert desk.reload().returncode == 0


@pytest.mark.parametrize("how", [hang_up, reload])
def test_a_file_that_is_not_watched_is_applied_when_told(
    desk: Desk, how: Callable[[Desk], None]
) -> None:
    desk.running("watch: false\n" + TWO)
    before = desk.pids()
    desk.save("watch: false\n" + TWO + sleep("three"))
    how(desk)
    desk.until("three", "ready")
    pids = desk.pids()
    assert {name: pids[name] for name in before} == before


def test_watching_is_turned_off_and_on(desk: Desk) -> None:
    """While it is off, two saves and a reload are one change: the first save was never read."""
    desk.running(TWO)
    before = desk.pids()
    desk.save_without_effect("watch: false\n" + TWO)
    desk.save("watch: false\n" + TWO + sleep("unseen"))
    assert "start    unseen" in desk.cluster.run("plan").stdout
    desk.save("watch: false\n" + TWO + sleep("seen"))
    assert desk.reload().returncode == 0
    desk.until("seen", "ready")
    assert desk.of("unseen") == []
    assert "unseen" not in "".join(desk.told())
    desk.reloaded(TWO)  # which turns it on again
    desk.save(TWO + sleep("watched"))
    desk.until("watched", "ready")
    pids = desk.pids()
    assert {name: pids[name] for name in before} == before
    assert pids.keys() == {"one", "two", "watched"}


def test_reload_says_what_it_does_and_waits_for_it(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    assert desk.reload().stdout == NOTHING
    slow = python("import signal; signal.pause()")
    third = (
        f"  three: {{command: {slow}, ready: {{command: [test, -e, {desk.cluster.folder}/go]}}}}\n"
    )
    desk.save("watch: false\n" + TWO + third)
    done = desk.reload("--timeout", "1")
    assert done.returncode == 1
    assert "three is starting" in done.stderr
    assert desk.reload("--no-wait").returncode == 0
    (desk.cluster.folder / "go").touch()
    done = desk.reload()
    assert (done.returncode, desk.instance("three")["state"]) == (0, "ready")


def test_without_a_supervisor_reload_says_so(cluster: Cluster) -> None:
    done = cluster.write(TWO).run("reload")
    assert done.returncode == 3
    assert "no supervisor is running" in done.stderr


# ---------------------------------------------------------------- what changes nothing


@pytest.mark.parametrize(
    "text",
    [
        "description: of the file\n" + TWO,
        TWO.replace("'1000']", "'1000'], description: of a service", 1),
        "x-mine: anything\n" + TWO,
        "services:\n" + sleep("two") + sleep("one"),
        TWO.replace("{command: [sleep, '1000']}", "&a {command: [sleep, '1000']}", 1).replace(
            "two: {command: [sleep, '1000']}", "two: *a"
        ),
        "x-a: &a [sleep, '1000']\n" + TWO.replace("[sleep, '1000']", "*a"),
        TWO.replace("'1000'", "1000"),
        TWO.replace("[sleep,", '["${NOT_SET_AT_ALL:-sleep}",'),
        TWO.replace("'1000']", "'1000'], env: {}, depends_on: [], enabled: true"),
    ],
)
def test_what_says_the_same_harms_nobody(desk: Desk, text: str) -> None:
    desk.running(TWO)
    before = desk.status()["instances"]
    desk.save(text)
    assert desk.reload().stdout.startswith(NOTHING)
    desk.save_without_effect("logs: {keep: 4}\n" + text)  # so that all before has been looked at
    after = desk.status()["instances"]
    assert sorted(after, key=str) == sorted(before, key=str)
    assert [e for e in desk.events() if e["state"] in ("updated", "new", "removed")] == []


def test_a_value_that_moves_to_the_top_or_into_an_anchor_is_the_same(desk: Desk) -> None:
    one = TWO.replace("'1000']", "'1000'], env: {A: x, B: y}")
    desk.running(one)
    before = desk.pids()
    assert desk.reloaded("env: {B: y, A: x}\n" + TWO).startswith(NOTHING)
    merged = TWO.replace("'1000']", "'1000'], env: {<<: *e, B: y}")
    assert desk.reloaded("x-env: &e {A: x, B: other}\n" + merged).startswith(NOTHING)
    assert desk.pids() == before


# ---------------------------------------------------------------- what is live


def test_a_restart_policy_is_live(desk: Desk) -> None:
    head = "watch: false\nservices:\n"
    desk.running(head + sleep("one", more="restart: {backoff: 10ms}"))
    pid = desk.instance("one")["pid"]
    text = head + sleep("one", more="restart: never")
    assert "its process goes on" in desk.reloaded(text)
    assert desk.instance("one")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    assert "never" in desk.until("one", "failed")["reason"]


def test_a_restart_limit_is_live_in_a_crash_loop(desk: Desk) -> None:
    crash = f"  one: {{command: {python('raise SystemExit(3)')}, restart: {{backoff: 10ms%s}}}}\n"
    desk.cluster.write("services:\n" + sleep("two") + crash % ", backoff_max: 20ms").up()
    until(lambda: desk.instance("one")["restarts"] > 2, "it crashes on and on")
    desk.save("services:\n" + sleep("two") + crash % ", limit: 1")
    desk.until("one", "failed")


def test_probes_are_live(desk: Desk) -> None:
    flag = desk.cluster.folder / "well"
    flag.touch()
    probe = f"readiness: {{command: [test, -e, {flag}], interval: 20ms, failures: 1}}"
    plain, probed = (
        "services:\n" + sleep("one", more=more)
        for more in ("ready: {command: ['true']}", f"probes: {{{probe}}}")
    )
    desk.running(plain)
    pid = desk.instance("one")["pid"]
    desk.reloaded(probed)
    flag.unlink()
    desk.until("one", "unready")
    flag.touch()
    desk.until("one", "ready")
    flag.unlink()
    desk.until("one", "unready")
    desk.save(plain)  # what it fails is not asked any more
    desk.until("one", "ready")
    assert desk.instance("one")["pid"] == pid


def test_a_liveness_probe_is_live(desk: Desk) -> None:
    desk.running("services:\n" + sleep("one") + sleep("two"))
    before = desk.pids()
    probe = "probes: {liveness: {command: ['false'], interval: 20ms, failures: 2}}"
    desk.save("services:\n" + sleep("one", more=probe) + sleep("two"))
    until(lambda: desk.instance("one")["restarts"] > 0, "it is restarted")
    assert any("liveness failed 2 times" in e["reason"] for e in desk.events())
    assert desk.pids()["two"] == before["two"]


def test_a_startup_probe_is_live_while_it_starts(desk: Desk) -> None:
    text = "services:\n" + sleep("one", more="ready: {command: ['false']}")
    desk.cluster.write(text).up()
    pid = until(lambda: desk.instance("one")["pid"], "it starts")
    assert desk.instance("one")["state"] == "starting"
    desk.save(text.replace("'false'", "'true'"))
    assert desk.until("one", "ready")["pid"] == pid


def test_a_stop_grace_is_live(desk: Desk) -> None:
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n"
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    desk.reloaded(text.replace("1h", "10ms"))
    assert desk.instance("one")["pid"] == pid
    assert desk.cluster.run("stop", "one").returncode == 0
    assert not alive(pid)


def test_dependencies_are_live(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.reloaded(TWO.replace("two: {", "two: {depends_on: [one], "))
    assert desk.pids() == before
    assert desk.cluster.run("stop", "one", "two").returncode == 0
    done = desk.cluster.run("start", "two", "--no-wait")
    assert done.returncode == 0
    until(lambda: "waiting for one" in desk.instance("two")["reason"], "it waits")
    desk.save(TWO)  # which it need not any more
    desk.until("two", "ready")
    assert desk.instance("one")["state"] == "stopped"


def test_a_dependency_that_is_new_is_heeded_at_the_end(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    desk.reloaded("watch: false\n" + TWO.replace("one: {", "one: {depends_on: [two], "))
    assert desk.cluster.run("down").returncode == 0
    output = desk.cluster.output.read_text().splitlines()
    assert [line.split()[1] for line in output if " stopped " in line] == ["one", "two"]


def test_log_sizes_are_live(desk: Desk) -> None:
    code = "import sys\nfor line in open(sys.argv[1]): print(line, end='')"
    pipe = desk.cluster.folder / "pipe"
    os.mkfifo(pipe)
    argv = json.dumps([sys.executable, "-u", "-S", "-I", "-c", code, str(pipe)])
    text = f"services:\n  one: {{command: {argv}, restart: never}}\n"
    desk.running(text)
    pid = desk.instance("one")["pid"]
    desk.reloaded("logs: {max_size: 1KiB, keep: 2}\n" + text)
    assert desk.instance("one")["pid"] == pid
    with pipe.open("w") as stream:
        stream.write(("x" * 99 + "\n") * 100)
    desk.until("one", "stopped")
    folder = desk.cluster.log_dir
    until(lambda: (folder / "one.log.2").exists(), "it is rotated")
    assert not (folder / "one.log.3").exists()
    assert all(path.stat().st_size <= 1024 for path in folder.glob("one.log.*"))


@pytest.mark.parametrize("name", ["run_dir", "log_dir"])
def test_folders_count_at_the_next_up(desk: Desk, name: str) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(f"{name}: elsewhere\n{TWO}")
    text = desk.until_told("it counts when the supervisor starts the next time")
    assert text.startswith(f"{name}: none -> elsewhere")
    assert desk.pids() == before
    assert not (desk.cluster.folder / "elsewhere").exists()


# ---------------------------------------------------------------- what is restarted


def test_a_changed_command_restarts_that_one_only(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(TWO.replace("two: {command: [sleep, '1000']", "two: {command: [sleep, '2000']"))
    until(lambda: desk.pids()["two"] not in (before["two"], None), "it is another process")
    desk.until("two", "ready")
    assert command_line(desk.pids()["two"]) == ["sleep", "2000"]
    assert not alive(before["two"] or 0)
    assert desk.pids()["one"] == before["one"]
    assert desk.instance("two")["restarts"] == 0  # it has not failed
    text = desk.until_told("restart two")
    assert text == "cluster.yaml is applied: restart two"
    reasons = [e["reason"] for e in desk.events() if e["instance"] == "two"]
    assert any("services.two.command changed (cluster.yaml:3)" in one for one in reasons), reasons


def test_a_variable_for_all_restarts_all(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    before = desk.pids()
    out = desk.reloaded("watch: false\nenv: {A_SECRET: never-shown}\n" + TWO)
    after = desk.pids()
    assert all(after[name] not in (before[name], None) for name in before)
    for pid in after.values():
        assert b"A_SECRET=never-shown" in Path(f"/proc/{pid}/environ").read_bytes()
    assert "env.A_SECRET changed" in out
    assert "never-shown" not in out + json.dumps(desk.events()) + desk.cluster.output.read_text()


def test_a_variable_of_one_that_shadows_that_for_all_keeps_it(desk: Desk) -> None:
    text = "env: {A: all}\nservices:\n" + sleep("one", more="env: {A: own}") + sleep("two")
    desk.running(text)
    before = desk.pids()
    desk.reloaded(text.replace("A: all", "A: others"))
    after = desk.pids()
    assert after["one"] == before["one"]
    assert after["two"] != before["two"]


def test_a_file_of_variables_restarts_those_that_read_it(desk: Desk) -> None:
    """It is watched as the file itself; what it holds is not told."""
    variables = desk.cluster.folder / "vars"
    variables.write_text("A_SECRET=never-shown\n")
    desk.running("services:\n" + sleep("one") + sleep("two", more="env_file: vars"))
    before = desk.pids()
    variables.write_text("A_SECRET=not-shown-either\n")
    until(lambda: desk.pids()["two"] not in (before["two"], None), "it is another process")
    environ = Path(f"/proc/{desk.until('two', 'ready')['pid']}/environ").read_bytes()
    assert b"A_SECRET=not-shown-either" in environ
    assert desk.pids()["one"] == before["one"]
    told = json.dumps(desk.events()) + desk.cluster.output.read_text()
    assert "services.two.env.A_SECRET changed" in told
    assert "shown" not in told


def test_a_working_directory_restarts(desk: Desk) -> None:
    (desk.cluster.folder / "sub").mkdir()
    desk.running(TWO)
    before = desk.pids()
    desk.reloaded("services:\n" + sleep("one") + sleep("two", more="cwd: sub"))
    after = desk.pids()
    assert after["one"] == before["one"]
    assert os.readlink(f"/proc/{after['two']}/cwd") == str(desk.cluster.folder / "sub")


def test_a_restart_waits_for_the_end_of_the_old_one(desk: Desk) -> None:
    code = DEAF.replace("deaf", "new deaf")
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 50ms}}\n"
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    desk.save(text.replace(json.dumps(DEAF), json.dumps(code)))
    until(lambda: "new deaf" in desk.log("one"), "the new one runs")
    lines = [line for line in desk.log("one") if line.startswith("===")]
    order = ["starting" if " starting " in line else "ended" for line in lines]
    assert order == ["starting", "ended", "starting"]


# ---------------------------------------------------------------- who comes and goes


def test_services_come_and_go(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(TWO + sleep("three", more="depends_on: [one]"))
    desk.until("three", "ready")
    three = desk.pids()["three"]
    desk.save("services:\n" + sleep("two") + sleep("three"))
    until(lambda: "one" not in desk.pids(), "it is forgotten")
    assert not alive(before["one"] or 0)
    assert desk.pids() == {"two": before["two"], "three": three}
    assert [e["state"] for e in desk.events() if e["instance"] == "one"][-1] == "removed"
    assert desk.cluster.run("why", "one").returncode == 2
    desk.save(TWO)  # and back
    desk.until("one", "ready")
    until(lambda: "three" not in desk.pids(), "it is forgotten")
    assert desk.pids()["two"] == before["two"]
    assert list(desk.pids()) == ["one", "two"]


def test_a_disabled_service_is_left_out(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(TWO.replace("two: {", "two: {enabled: false, "))
    until(lambda: "two" not in desk.pids(), "it is gone")
    assert not alive(before["two"] or 0)
    assert desk.pids() == {"one": before["one"]}
    desk.save(TWO)
    desk.until("two", "ready")
    assert desk.pids()["one"] == before["one"]


def test_a_renamed_service_is_another_one(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(TWO.replace("two:", "deux:"))
    desk.until("deux", "ready")
    until(lambda: "two" not in desk.pids(), "it is gone")
    assert desk.pids()["one"] == before["one"]


def test_what_is_removed_stops_after_what_depended_on_it(desk: Desk) -> None:
    tail = sleep("three")
    desk.running("services:\n" + sleep("one") + sleep("two", more="depends_on: [one]") + tail)
    desk.save("services:\n" + tail)
    until(lambda: list(desk.pids()) == ["three"], "both are gone")
    ended = [e["instance"] for e in desk.events() if e["state"] == "stopped"]
    assert ended == ["two", "one"]


# ---------------------------------------------------------------- what a person has decided


def test_what_a_person_has_stopped_stays_stopped(desk: Desk) -> None:
    desk.running(TWO)
    assert desk.cluster.run("stop", "two").returncode == 0
    one = desk.pids()["one"]
    for text in (
        TWO.replace("two: {command: [sleep, '1000']", "two: {command: [sleep, '2000']"),
        TWO.replace("two: {", "two: {restart: never, "),
        "env: {A: x}\n" + TWO,
        TWO + sleep("three"),
        TWO.replace("two: {command: [sleep, '1000']", "two: {command: [sleep, '3000']"),
    ):
        desk.reloaded(text)
        two = desk.instance("two")
        assert (two["state"], two["desired"], two["pid"]) == ("stopped", "stopped", None)
    assert one != desk.pids()["one"]  # for `env`
    assert desk.cluster.run("start", "two").returncode == 0
    assert command_line(desk.instance("two")["pid"]) == ["sleep", "3000"]


def test_what_has_finished_is_not_run_again(desk: Desk) -> None:
    text = "services:\n" + sleep("one") + "  job: {command: [echo, first], restart: never}\n"
    desk.cluster.write(text).up()
    desk.until("job", "stopped")
    desk.reloaded(text.replace("first", "second"))
    assert desk.instance("job")["state"] == "stopped"
    assert "second" not in desk.log("job")
    assert desk.cluster.run("start", "job", "--no-wait").returncode == 0
    until(lambda: "second" in desk.log("job"), "it is run as the file says now")


def test_what_has_failed_is_tried_again_when_it_changes(desk: Desk) -> None:
    text = "services:\n" + sleep("one")
    bad = "  two: {command: [/nonexistent/program], restart: {backoff: 1ms}}\n"
    desk.cluster.write(text + bad).up()
    desk.until("two", "failed")
    one = desk.pids()["one"]
    desk.save(text + sleep("two"))
    desk.until("two", "ready")
    assert desk.pids()["one"] == one


def test_reload_tries_again_what_has_failed(desk: Desk) -> None:
    """The file is as before; what it names is there now."""
    program = desk.cluster.folder / "program"
    entry = f"  two: {{command: [{program}], restart: {{backoff: 1ms}}}}\n"
    desk.cluster.write("services:\n" + sleep("one") + entry).up()
    desk.until("two", "failed")
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    done = desk.reload()
    assert done.returncode == 0, done.stderr
    assert desk.until("two", "ready")


# ---------------------------------------------------------------- plan


PLANNED = """\
env: {}
services:
  kept: {command: [sleep, '1000']}
  told: {command: [sleep, '1000'], stop_grace: 7s}
  again:
    command: [sleep, '2000']
  come: {command: [sleep, '1000']}
"""


def test_plan_shows_everything_and_touches_nothing(desk: Desk) -> None:
    names = ("kept", "told", "again", "gone")
    desk.running("watch: false\nservices:\n" + "".join(map(sleep, names)))
    before, events = desk.status(), desk.events()
    desk.save("watch: false\n" + PLANNED)
    done = desk.cluster.run("plan")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "update told: services.told.stop_grace: 30 -> 7 (cluster.yaml:5)",
        "restart again: services.again.command changed (cluster.yaml:7)",
        "start come: services.come changed (cluster.yaml:8)",
        "keep kept",
    ):
        assert line in lines, done.stdout
    assert any(line.startswith("stop gone: services.gone changed") for line in lines), done.stdout
    found = json.loads(desk.cluster.run("plan", "--json").stdout)["changes"]
    assert {one["instance"]: one["action"] for one in found} == {
        "kept": "keep",
        "told": "update",
        "again": "restart",
        "come": "start",
        "gone": "stop",
    }
    by_name = {one["instance"]: one for one in found}
    assert [(c["field"], c["line"]) for c in by_name["told"]["causes"]] == [
        ("services.told.stop_grace", 5)
    ]
    assert by_name["again"]["command"] == ["sleep", "2000"]
    assert by_name["gone"]["command"] == by_name["gone"]["env"] == []
    after = desk.status()
    assert (after, desk.events()) == (before, events)


def test_plan_of_a_broken_file_is_refused(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    before = desk.status()
    desk.save("watch: false\n" + TWO.replace("command", "comand"))
    done = desk.cluster.run("plan")
    assert done.returncode == 2
    assert "cluster.yaml:3:" in done.stderr
    assert "did you mean 'command'" in done.stderr
    assert desk.status() == before  # nobody has tried to apply it


def test_plan_says_what_reload_does(desk: Desk) -> None:
    desk.running("watch: false\nservices:\n" + sleep("kept") + sleep("again"))
    desk.save("watch: false\n" + PLANNED)
    found = json.loads(desk.cluster.run("plan", "--json").stdout)["changes"]
    assert desk.reload().returncode == 0
    planned = {one["instance"]: one["action"] for one in found if one["action"] != "keep"}
    text = desk.until_told("is applied: ")
    assert text == "cluster.yaml is applied: " + ", ".join(f"{a} {n}" for n, a in planned.items())
    assert desk.cluster.run("plan").stdout.split() == [
        "keep",
        "kept,",
        "told,",
        "again,",
        "come:",
        "nothing",
        "to",
        "do",
    ]


# ---------------------------------------------------------------- what cannot be started


BAD = TWO.replace("two: {command: [sleep, '1000']}", "two: {command: [/nonexistent/program]}")


def test_a_new_command_that_cannot_run_is_taken_back(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(BAD)
    until(lambda: "given up" in desk.of("two"), "it is given up")
    assert command_line(desk.until("two", "ready")["pid"]) == ["sleep", "1000"]
    (failed,) = until(lambda: desk.status()["cluster"]["failed"], "status says so")
    assert failed.startswith("the rollout of two failed: ")
    assert "there is no program /nonexistent/program" in failed
    assert failed.endswith("; two goes on as it was")
    assert f"! {failed}" in desk.cluster.run("status").stdout
    why = desk.cluster.run("why", "two").stdout
    assert "It runs as it was before the last change: two could not be started" in why
    assert "there is no program /nonexistent/program" in why
    assert desk.status()["cluster"]["problems"] == []  # the file is good
    assert desk.pids()["one"] == before["one"]
    # The same again is not tried again ...
    two = desk.instance("two")["pid"]
    applied = len(desk.told())
    desk.save("description: the same\n" + BAD)
    until(lambda: len(desk.told()) > applied, "it is applied")
    assert desk.cluster.run("wait").returncode == 0
    assert (desk.instance("two")["pid"], desk.of("two").count("given up")) == (two, 1)
    # ... but something else is.
    desk.save(TWO.replace("two: {command: [sleep, '1000']", "two: {command: [sleep, '2000']"))
    until(lambda: not desk.status()["cluster"]["failed"], "that is forgotten")
    until(lambda: desk.instance("two")["state"] == "ready", "it runs")
    assert command_line(desk.instance("two")["pid"]) == ["sleep", "2000"]
    assert desk.pids()["one"] == before["one"]


def test_reload_of_what_cannot_run_fails_with_the_reason(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    desk.save("watch: false\n" + BAD)
    done = desk.reload()
    assert done.returncode == 1
    assert "there is no program /nonexistent/program" in done.stderr
    desk.until("two", "ready")
    # It is tried again, and still cannot be.
    done = desk.reload()
    assert done.returncode == 1
    assert desk.of("two").count("given up") == 2
    desk.until("two", "ready")
    desk.save("watch: false\n" + TWO)
    assert desk.reload().returncode == 0
    assert desk.status()["cluster"]["failed"] == []


def test_the_file_goes_back_to_what_runs(desk: Desk) -> None:
    desk.running(TWO)
    desk.save(BAD)
    until(lambda: "given up" in desk.of("two"), "it is given up")
    pid = desk.until("two", "ready")["pid"]
    desk.save(TWO)
    until(lambda: not desk.status()["cluster"]["failed"], "that is forgotten")
    assert desk.instance("two")["pid"] == pid


def test_a_program_that_appears_is_found_by_reload(desk: Desk) -> None:
    program = desk.cluster.folder / "program"
    text = TWO.replace("two: {command: [sleep, '1000']}", f"two: {{command: [{program}]}}")
    desk.running(TWO)
    desk.save(text)
    until(lambda: "given up" in desk.of("two"), "it is given up")
    desk.until("two", "ready")
    program.write_text("#!/bin/sh\nexec sleep 4000\n")
    program.chmod(0o755)
    done = desk.reload()
    assert done.returncode == 0, done.stdout + done.stderr
    assert command_line(desk.instance("two")["pid"]) == ["sleep", "4000"]
    assert desk.status()["cluster"]["failed"] == []


def test_one_that_never_worked_has_nothing_to_go_back_to(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    bad = "  three: {command: [/nonexistent/program], restart: {backoff: 1ms}}\n"
    desk.save(TWO + bad)
    desk.until("three", "failed")
    (failed,) = desk.status()["cluster"]["failed"]
    assert "three cannot be started" in failed
    assert {name: desk.pids()[name] for name in before} == before
    desk.save(TWO)
    until(lambda: "three" not in desk.pids(), "it is gone")
    assert desk.status()["cluster"]["failed"] == []
    assert desk.pids() == before


# ---------------------------------------------------------------- edits upon edits


def test_an_edit_during_a_restart_supersedes_it(desk: Desk) -> None:
    """The old process is still stopping when the next edit comes."""
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n"
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    desk.save("services:\n" + sleep("one", 1111))
    desk.until("one", "stopping")
    applied = len(desk.told())
    desk.save("services:\n" + sleep("one", 2222))
    until(lambda: len(desk.told()) > applied, "it is applied")
    os.kill(pid, signal.SIGKILL)
    assert command_line(desk.until("one", "ready")["pid"]) == ["sleep", "2222"]
    assert "sleep 1111" not in desk.cluster.log("one")


def test_an_edit_is_taken_back_while_it_waits(desk: Desk) -> None:
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n"
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    desk.save("services:\n" + sleep("one", 1111))
    desk.until("one", "stopping")
    applied = len(desk.told())
    desk.save(text)
    until(lambda: len(desk.told()) > applied, "it is applied")
    os.kill(pid, signal.SIGKILL)
    until(lambda: desk.log("one").count("deaf") == 2, "it is started as it was")
    desk.until("one", "ready")
    assert "sleep 1111" not in desk.cluster.log("one")


def test_an_edit_during_a_start_supersedes_it(desk: Desk) -> None:
    desk.running("services:\n" + sleep("two"))
    two = desk.pids()["two"]
    desk.save("services:\n" + sleep("two") + sleep("one", 1111, "ready: {command: ['false']}"))
    desk.until("one", "starting")
    desk.save("services:\n" + sleep("two") + sleep("one", 2222, "ready: {command: ['true']}"))
    assert command_line(desk.until("one", "ready")["pid"]) == ["sleep", "2222"]
    desk.save("services:\n" + sleep("two") + sleep("one", 3333, "ready: {command: ['false']}"))
    desk.until("one", "starting")
    desk.save("services:\n" + sleep("two"))
    until(lambda: list(desk.pids()) == ["two"], "it is gone")
    assert desk.pids()["two"] == two


def test_removed_and_back_before_it_has_stopped(desk: Desk) -> None:
    deaf = f"  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n"
    desk.running("services:\n" + deaf + sleep("two"))
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    desk.save("services:\n" + sleep("two"))
    desk.until("one", "stopping")
    applied = len(desk.told())
    desk.save("services:\n" + deaf + sleep("two"))
    until(lambda: len(desk.told()) > applied, "it is applied")
    os.kill(pid, signal.SIGKILL)
    until(lambda: desk.log("one").count("deaf") == 2, "it is back")
    desk.until("one", "ready")


def test_a_stop_during_a_restart_by_an_edit_wins(desk: Desk) -> None:
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n" + sleep("two")
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    desk.save("services:\n" + sleep("one", 1111) + sleep("two"))
    desk.until("one", "stopping")
    assert desk.cluster.run("stop", "one", "--no-wait").returncode == 0
    os.kill(pid, signal.SIGKILL)
    until(lambda: desk.instance("one").get("state") == "stopped", "it has stopped")
    assert desk.reload().returncode == 0
    assert desk.instance("one")["state"] == "stopped"
    assert "sleep 1111" not in desk.cluster.log("one")


def test_down_during_a_restart(desk: Desk) -> None:
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 50ms}}\n" + sleep("two")
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    desk.save("services:\n" + sleep("one", 1111) + sleep("two"))
    desk.until("one", "stopping")
    assert desk.cluster.run("down").returncode == 0
    assert desk.cluster.process is not None
    assert desk.cluster.process.wait() == 0
    assert desk.cluster.processes() == []


def test_an_edit_while_it_goes_down_starts_nothing(desk: Desk) -> None:
    text = f"services:\n  one: {{command: {python(DEAF)}, stop_grace: 1h}}\n"
    desk.running(text)
    until(lambda: "deaf" in desk.log("one"), "it ignores SIGTERM")
    pid = desk.instance("one")["pid"]
    assert desk.cluster.run("down", "--no-wait").returncode == 0
    desk.until("one", "stopping")
    desk.save(text + sleep("new"))
    done = desk.reload()
    assert done.returncode == 1
    assert "the cluster is stopping" in done.stderr
    os.kill(pid, signal.SIGKILL)
    assert desk.cluster.process is not None
    assert desk.cluster.process.wait(DEADLINE) == 0
    assert desk.cluster.processes() == []
    assert desk.cluster.log("new") == ""


# ---------------------------------------------------------------- the file itself


def test_down_works_without_the_file(desk: Desk) -> None:
    desk.running(TWO)
    desk.cluster.file.unlink()
    until(lambda: desk.status()["cluster"]["problems"], "its absence shows")
    assert desk.cluster.run("status").returncode == 0
    assert desk.cluster.run("stop", "one").returncode == 0
    assert desk.cluster.run("down").returncode == 0
    assert desk.cluster.process is not None
    assert desk.cluster.process.wait() == 0
    assert desk.cluster.processes() == []


def test_a_bad_file_is_refused_at_the_next_up(desk: Desk) -> None:
    desk.running(TWO)
    desk.save(TWO.replace("command", "comand", 1))
    (*_, problem) = until(lambda: desk.status()["cluster"]["problems"], "it shows")
    assert desk.cluster.run("down").returncode == 0
    done = desk.cluster.run("up")
    assert done.returncode == 2
    assert problem in done.stderr
    assert desk.cluster.processes() == []


def test_the_next_up_starts_what_the_file_says_by_then(desk: Desk) -> None:
    desk.running("watch: false\n" + TWO)
    desk.save("services:\n" + sleep("one", 2222))
    assert desk.cluster.run("down").returncode == 0
    assert desk.cluster.process is not None
    assert desk.cluster.process.wait() == 0
    desk.cluster.up().ready()
    assert command_line(desk.pids()["one"]) == ["sleep", "2222"]
    assert list(desk.pids()) == ["one"]


def test_edits_leak_nothing(desk: Desk) -> None:
    """Neither descriptors nor processes."""
    desk.running(TWO + sleep("three"))
    assert desk.cluster.process is not None
    descriptors = Path(f"/proc/{desk.cluster.process.pid}/fd")
    desk.reloaded(TWO)
    before = len(list(descriptors.iterdir())), len(desk.cluster.processes())
    for i in range(10):
        desk.reloaded(TWO + sleep("three", 2000 + i) + sleep(f"four-{i}"))
        desk.reloaded(TWO)

    def as_before() -> bool:
        now = len(list(descriptors.iterdir())), len(desk.cluster.processes())
        return now <= before

    until(as_before, "all is closed and ended")


def test_a_file_that_is_named_before_it_is_there_is_applied_when_it_comes(desk: Desk) -> None:
    desk.running(TWO)
    before = desk.pids()
    desk.save(TWO + sleep("three", more="env_file: three.env"))
    until(lambda: "three.env" in str(desk.status()["cluster"]["problems"]), "it is missing")
    assert desk.pids() == before
    (desk.cluster.folder / "three.env").write_text("A=first\n")
    first = desk.until("three", "ready")["pid"]
    (desk.cluster.folder / "three.env").write_text("A=second\n")
    until(lambda: desk.instance("three")["pid"] not in (None, first), "it has the other variable")
    assert desk.status()["cluster"]["problems"] == []
