"""A cluster as a unit of a real systemd."""

from __future__ import annotations

import json
import re
import sys

import pytest
from demo import demo_file
from harness import until
from machine import Machine
from unit import Unit

STRAY = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/usr/bin/python3", ["python3", "-S", "-I", "-c",
                  "import time; time.sleep(1e6) # TOKEN stray"], {})
    os._exit(0)
os.wait()
"""
"""Starts a process without mark, session and parent."""


def two(unit: Unit, **fields: str) -> str:
    return unit.services(unit.service("first", **fields), unit.service("second"))


def with_stray(unit: Unit) -> str:
    return unit.services(unit.service("first", STRAY.replace("TOKEN", unit.token)))


def strays(unit: Unit) -> list[str]:
    return [one for one in unit.left() if one.endswith("stray ")]


# ---------------------------------------------------------------- start


def test_started_means_that_it_serves(unit: Unit) -> None:
    go = unit.folder / "go"
    ready = json.dumps(["test", "-e", str(go)])
    unit.write(two(unit, ready=f"{{command: {ready}}}")).install()
    unit.systemctl("start", "--no-block", unit.name)
    unit.until("StatusText", "1 of 2 instances ready; first is starting")
    assert unit.show("ActiveState") == "activating"
    go.touch()
    unit.until("ActiveState", "active")
    assert unit.show("StatusText") == "2 of 2 instances ready"


def test_one_broken_service_does_not_keep_the_unit_from_starting(unit: Unit) -> None:
    broken = "  broken: {command: [/no/such/program]}\n"
    unit.write(unit.services(unit.service("good"), broken)).install().start()
    assert unit.show("ActiveState") == "active"
    unit.until("StatusText", "1 of 2 instances ready; broken has failed")


def test_an_invalid_file_is_told_and_tried_again_when_it_is_mended(unit: Unit) -> None:
    unit.write(two(unit)).install()
    unit.file.write_text("services: {first: {comand: [true]}}\n")
    unit.systemctl("start", "--no-block", unit.name)
    until(
        lambda: any("comand" in e["MESSAGE"] and e["PRIORITY"] == "3" for e in unit.journal()),
        "the journal has the error",
    )
    unit.write(two(unit))
    unit.until("ActiveState", "active")


# ---------------------------------------------------------------- while it runs


def test_reload_applies_the_file_and_an_invalid_one_changes_nothing(unit: Unit) -> None:
    unit.write("watch: false\n" + two(unit)).install().start()
    before = unit.pids()
    unit.write("watch: false\n" + two(unit, env="{CHANGED: 'yes'}"))
    unit.systemctl("reload", unit.name)
    unit.supervisor("wait")
    after = unit.pids()
    assert after["first"] != before["first"]
    assert after["second"] == before["second"]
    unit.file.write_text("services: {}}\n")
    with pytest.raises(AssertionError, match=unit.name):
        unit.systemctl("reload", unit.name)
    assert unit.pids() == after
    unit.until("StatusText", "is not valid, and not applied")
    assert unit.show("ActiveState") == "active"


def test_a_saved_file_is_applied(unit: Unit) -> None:
    unit.write(two(unit)).install().start()
    before = unit.pids()
    unit.write(unit.services(unit.service("second")))
    until(lambda: unit.pids() == {"second": before["second"]}, "first is gone, second goes on")
    unit.until("StatusText", "1 of 1 instances ready")
    assert unit.show("ActiveState") == "active"


def test_a_crashed_instance_is_the_supervisors_business(unit: Unit) -> None:
    unit.write(two(unit)).install().start()
    main, before = unit.show("MainPID"), unit.pids()
    unit.machine.run("kill", "-KILL", str(before["first"]))
    until(lambda: unit.instance("first")["restarts"] == 1, "first is restarted")
    unit.supervisor("wait")
    assert unit.pids()["second"] == before["second"]
    assert (unit.show("MainPID"), unit.show("NRestarts")) == (main, "0")


def test_the_journal_has_priorities_and_no_times_of_ours(unit: Unit) -> None:
    broken = "  broken: {command: [/no/such/program]}\n"
    unit.write(unit.services(unit.service("good"), broken)).install().start()
    unit.until("StatusText", "broken has failed")
    lines = {e["MESSAGE"]: e["PRIORITY"] for e in unit.journal() if e["_COMM"] != "systemd"}
    failed = [text for text in lines if text.startswith("broken failed: ")]
    assert lines[failed[0]] == "3"
    ready = [text for text in lines if text.startswith("good ready: ")]
    assert lines[ready[0]] == "5"
    assert not any(re.match(r"<\d>|\d\d:\d\d", text) for text in lines)


# ---------------------------------------------------------------- the supervisor dies


def test_killed_supervisor_is_replaced_and_the_instances_keep_their_pids(unit: Unit) -> None:
    unit.write(two(unit)).install().start()
    before = unit.pids()
    main = unit.kill_main()
    until(lambda: unit.show("MainPID") not in ("0", str(main)), "there is another supervisor")
    unit.until("ActiveState", "active")
    assert unit.pids() == before
    assert [one["restarts"] for one in unit.status()["instances"]] == [0, 0]
    assert unit.show("NRestarts") == "1"
    unit.machine.run("kill", "-KILL", str(before["first"]))
    until(lambda: unit.instance("first")["restarts"] == 1, "the adopted one is supervised")


def test_frozen_supervisor_is_replaced_by_the_watchdog(unit: Unit) -> None:
    unit.write(two(unit)).install(WatchdogSec="2").start()
    before = unit.pids()
    main = unit.kill_main("STOP")
    until(lambda: unit.show("MainPID") not in ("0", str(main)), "there is another supervisor")
    unit.until("ActiveState", "active")
    assert unit.pids() == before
    said = [entry["MESSAGE"] for entry in unit.journal()]
    assert any("Watchdog timeout" in text for text in said)
    assert any("Fatal Python error: Aborted" in text for text in said)


def test_a_quiet_supervisor_is_not_killed_by_the_watchdog(unit: Unit) -> None:
    unit.write(two(unit)).install(WatchdogSec="3").start()
    main = unit.show("MainPID")
    fed = {unit.show("WatchdogTimestampMonotonic")}
    until(lambda: fed.add(unit.show("WatchdogTimestampMonotonic")) or len(fed) > 4, "it is fed")
    assert unit.show("MainPID") == main


def test_upgrade_keeps_the_main_process_and_the_watchdog(unit: Unit) -> None:
    unit.write(two(unit)).install(WatchdogSec="15").start()
    main, before = unit.show("MainPID"), unit.pids()
    unit.supervisor("upgrade")
    until(lambda: any("upgraded" in e["MESSAGE"] for e in unit.journal()), "it is upgraded")
    fed = {unit.show("WatchdogTimestampMonotonic")}
    until(lambda: fed.add(unit.show("WatchdogTimestampMonotonic")) or len(fed) > 2, "it is fed")
    assert (unit.show("MainPID"), unit.pids()) == (main, before)
    assert unit.show("ActiveState") == "active"


# ---------------------------------------------------------------- stop


def test_nothing_is_left_after_stop(unit: Unit) -> None:
    unit.write(with_stray(unit)).install().start()
    until(lambda: strays(unit), "the stray runs")
    unit.systemctl("stop", unit.name)
    assert unit.left() == []
    assert unit.show("Result") == "success"
    assert unit.show("ActiveState") == "inactive"


def test_a_stray_that_has_shed_everything_ends_with_its_instance(unit: Unit) -> None:
    unit.write(with_stray(unit)).install().start()
    until(lambda: strays(unit), "the stray runs")
    unit.supervisor("stop", "first")
    unit.wait_until_nothing_is_left()
    assert unit.show("ActiveState") == "active"


def test_a_stray_that_an_earlier_supervisor_has_left_ends_with_its_instance(unit: Unit) -> None:
    unit.write(with_stray(unit)).install().start()
    until(lambda: strays(unit), "the stray runs")
    main = unit.kill_main()
    until(lambda: unit.show("MainPID") not in ("0", str(main)), "there is another supervisor")
    unit.until("ActiveState", "active")
    assert strays(unit)
    unit.supervisor("stop", "first")
    unit.wait_until_nothing_is_left()


def test_nothing_is_left_after_kill_and_stop_at_once(unit: Unit) -> None:
    unit.write(with_stray(unit)).install().start()
    until(lambda: strays(unit), "the stray runs")
    unit.kill_main()
    unit.systemctl("stop", unit.name)
    unit.wait_until_nothing_is_left()
    assert unit.show("ActiveState") in ("inactive", "failed")


def test_nothing_is_left_after_a_stop_while_a_restart_is_due(unit: Unit) -> None:
    """systemd runs nothing of the unit then."""
    unit.write(with_stray(unit)).install(RestartSec="1h").start()
    until(lambda: strays(unit), "the stray runs")
    unit.kill_main()
    unit.until("SubState", "auto-restart")
    assert len(unit.left()) == 2
    unit.systemctl("stop", unit.name)
    unit.wait_until_nothing_is_left()


def test_nothing_is_left_after_the_stop_of_a_frozen_supervisor(unit: Unit) -> None:
    """It is thawed by the very signal, so it has to be frozen again and again."""
    unit.write(with_stray(unit)).install(TimeoutStopSec="1", WatchdogSec="0", KillSignal="SIGSTOP")
    unit.start()
    until(lambda: strays(unit), "the stray runs")
    unit.systemctl("stop", unit.name)
    assert unit.left() == []
    assert unit.show("Result") == "timeout"


def test_what_runs_by_hand_is_not_the_units_to_end(unit: Unit) -> None:
    """Both have the same run directory, unless somebody says otherwise."""
    unit.write(two(unit)).install("--run-dir", str(unit.folder / "run"))
    folders = ["--run-dir", str(unit.folder / "run"), "--log-dir", str(unit.folder / "logs")]
    unit.supervisor("up", "--detach", *folders)
    unit.systemctl("start", "--no-block", unit.name)
    until(
        lambda: any("already runs here" in entry["MESSAGE"] for entry in unit.journal()),
        "the unit says that another one runs",
    )
    unit.systemctl("stop", unit.name)
    assert len(unit.left()) == 2
    unit.supervisor("down", *folders[:2])
    assert unit.left() == []


def test_down_is_not_undone(unit: Unit) -> None:
    unit.write(with_stray(unit)).install().start()
    unit.supervisor("down")
    unit.until("ActiveState", "inactive")
    assert unit.left() == []
    assert unit.show("NRestarts") == "0"


def test_restart_starts_everything_anew(unit: Unit) -> None:
    unit.write(two(unit)).install().start()
    before = unit.pids()
    unit.systemctl("restart", unit.name)
    assert unit.show("ActiveState") == "active"
    assert not set(before.values()) & set(unit.pids().values())
    assert len(unit.left()) == 2


# ---------------------------------------------------------------- users, and the machine


def test_reboot_brings_it_back(unit: Unit) -> None:
    unit.write(two(unit)).install()
    unit.systemctl("enable", "--now", unit.name)
    unit.machine.reboot()
    unit.until("ActiveState", "active")
    assert unit.show("StatusText") == "2 of 2 instances ready"
    assert [one["restarts"] for one in unit.status()["instances"]] == [0, 0]
    assert len(unit.left()) == 2


@pytest.fixture
def alice(machine: Machine) -> str:
    if not machine.succeeds("id", "alice"):
        machine.run("useradd", "--create-home", "alice")
    return "alice"


def test_it_runs_as_somebody_else_and_has_its_control_groups(unit: Unit, alice: str) -> None:
    unit.write(with_stray(unit)).install("--run-as", alice).start()
    until(lambda: strays(unit), "the stray runs")
    first = json.loads(unit.as_user_of(alice, "status", "--json"))["instances"][0]["pid"]
    assert unit.machine.run("stat", "-c", "%U", f"/proc/{first}").strip() == alice
    group = unit.machine.run("cat", f"/proc/{first}/cgroup").splitlines()[-1]
    assert group == f"0::/system.slice/{unit.name}/instances/@first"
    unit.as_user_of(alice, "stop", "first")
    unit.wait_until_nothing_is_left()
    unit.as_user_of(alice, "start", "first")
    until(lambda: strays(unit), "the stray runs")
    unit.kill_main()
    unit.systemctl("stop", unit.name)
    unit.wait_until_nothing_is_left()


def test_a_user_has_a_unit_of_their_own(unit: Unit, alice: str) -> None:
    unit.machine.run("loginctl", "enable-linger", alice)
    unit.write(with_stray(unit))
    unit.machine.run("chown", "-R", alice, str(unit.folder))
    unit.user = alice
    until(lambda: "running" in unit.systemctl("is-system-running", check=False), "it has booted")
    unit.install("--user").start()
    until(lambda: strays(unit), "the stray runs")
    before = unit.pids()
    main = unit.kill_main()
    until(lambda: unit.show("MainPID") not in ("0", str(main)), "there is another supervisor")
    unit.until("ActiveState", "active")
    assert unit.pids() == before
    unit.kill_main()
    unit.systemctl("stop", unit.name)
    unit.wait_until_nothing_is_left()


@pytest.mark.parametrize("options", [(), ("--run-as", "alice"), ("--user",)])
def test_systemd_has_nothing_to_say_against_it(
    unit: Unit, alice: str, options: tuple[str, ...]
) -> None:
    unit.write(two(unit))
    text = unit.supervisor("systemd", *options)
    path = f"/run/{unit.name}"
    unit.machine.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", text, path)
    scope = "--user" if "--user" in options else "--system"
    verify = f"XDG_RUNTIME_DIR=/run systemd-analyze {scope} verify {path} 2>&1"
    said = unit.machine.run("sh", "-c", verify, check=False)
    assert said == ""
    judged = unit.machine.run("systemd-analyze", "security", "--offline=yes", path, check=False)
    figure = re.search(r"Overall exposure level.*: ([\d.]+)", judged)
    assert figure is not None
    print(f"systemd-analyze security, {options}: {figure.group(1)}")
    assert float(figure.group(1)) < 8


# ---------------------------------------------------------------- the real FastChat


@pytest.mark.e2e
def test_models_answer_whatever_happens_to_the_supervisor(unit: Unit) -> None:
    """The network is the machine's own, so any ports will do."""
    unit.write(demo_file(21001, 8888)).install().start()
    assert unit.show("StatusText") == "5 of 5 instances ready"
    before = unit.pids()
    assert "tiny-owl" in chat(unit)
    unit.kill_main()
    assert "tiny-owl" in chat(unit)
    unit.until("NRestarts", "1")
    unit.until("ActiveState", "active")
    assert unit.pids() == before
    assert "tiny-owl" in chat(unit)
    unit.systemctl("stop", unit.name)
    assert unit.show("Result") == "success"
    assert not unit.machine.succeeds("pgrep", "--full", "supervisor.fastchat.entry")


def chat(unit: Unit) -> str:
    body = {"model": "tiny-owl", "messages": [{"role": "user", "content": "Who are you?"}]}
    ask = (
        "import sys, urllib.request as r; q = r.Request(sys.argv[1], sys.argv[2].encode(), "
        "{'Content-Type': 'application/json'}); print(r.urlopen(q, timeout=60).read().decode())"
    )
    url = "http://127.0.0.1:8888/v1/chat/completions"
    return unit.machine.run(sys.executable, "-c", ask, url, json.dumps(body))
