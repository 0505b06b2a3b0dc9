"""The unit that ``llm-supervisor systemd`` prints, and what it refuses. No systemd needed."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Cluster

from supervisor.cli import journald
from supervisor.cli.main import main
from supervisor.cli.systemd_cleanup import Fate, Unit, fate_of
from supervisor.cli.unit import Unit as UnitFile
from supervisor.cli.unit import text_of
from supervisor.daemon.journal import Entry

SLEEPER = "services: {sleeper: {command: [sleep, '1000']}}\n"
UNIT = UnitFile(
    name="llm-supervisor-cluster.service",
    python="/opt/llm/bin/python",
    file=Path("/srv/llm/cluster.yaml"),
    run_dir=None,
    log_dir=None,
    place="llm-supervisor/cluster-12345678",
    user="llm",
)


def line(text: str, name: str) -> str:
    """The value of a directive that is there once."""
    (found,) = [one for one in text.splitlines() if one.startswith(f"{name}=")]
    return found.removeprefix(f"{name}=")


# ---------------------------------------------------------------- its text


def test_paths_are_absolute_and_match() -> None:
    text = text_of(UNIT)
    run_dir = "%t/llm-supervisor/cluster-12345678"
    assert line(text, "ExecStart") == (
        "/opt/llm/bin/python -P -m supervisor up --config /srv/llm/cluster.yaml "
        f"--run-dir {run_dir} --log-dir %L/llm-supervisor/cluster-12345678"
    )
    assert line(text, "RuntimeDirectory") == "llm-supervisor/cluster-12345678"
    for name in ("ExecReload", "ExecStopPost"):
        assert f"--run-dir {run_dir}" in line(text, name)


def test_folders_that_somebody_has_chosen_are_not_systemds() -> None:
    text = text_of(replace(UNIT, run_dir=Path("/srv/run"), log_dir=Path("/srv/logs")))
    assert "--run-dir /srv/run --log-dir /srv/logs" in line(text, "ExecStart")
    assert "RuntimeDirectory" not in text
    assert "LogsDirectory" not in text


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("plain.yaml", "/srv/plain.yaml"),
        ("two words.yaml", '"/srv/two words.yaml"'),
        ("100%.yaml", "/srv/100%%.yaml"),
        ("$HOME.yaml", "/srv/$$HOME.yaml"),
        ('a"b\\c.yaml', '"/srv/a\\"b\\\\c.yaml"'),
        ("a;b.yaml", '"/srv/a;b.yaml"'),
    ],
)
def test_a_path_is_one_word_whatever_is_in_it(name: str, word: str) -> None:
    text = text_of(replace(UNIT, file=Path("/srv") / name))
    assert f"--config {word} --run-dir" in line(text, "ExecStart")


def test_a_home_that_is_needed_is_open() -> None:
    assert "ProtectHome" not in text_of(UNIT)
    assert line(text_of(replace(UNIT, needs_home=False)), "ProtectHome") == "yes"


def test_a_file_in_etc_can_be_edited() -> None:
    text = text_of(replace(UNIT, file=Path("/etc/llm/cluster.yaml")))
    assert line(text, "ReadWritePaths") == "/etc/llm"
    assert "ReadWritePaths" not in text_of(UNIT)


def test_only_root_has_capabilities() -> None:
    assert line(text_of(UNIT), "CapabilityBoundingSet") == ""
    assert "CapabilityBoundingSet" not in text_of(replace(UNIT, user="root"))


def test_the_setuid_helper_of_the_driver_runs_beforehand() -> None:
    text = text_of(replace(UNIT, modprobe="/usr/bin/nvidia-modprobe"))
    assert line(text, "ExecStartPre") == "-+/usr/bin/nvidia-modprobe -u -c=0"
    assert "ExecStartPre" not in text_of(UNIT)


def test_a_users_own_unit_has_nothing_that_takes_root() -> None:
    text = text_of(replace(UNIT, user=None))
    directives = {one.partition("=")[0] for one in text.splitlines() if "=" in one}
    assert not directives & {"User", "ProtectSystem", "CapabilityBoundingSet", "OOMScoreAdjust"}
    assert line(text, "WantedBy") == "default.target"
    assert line(text, "ExecStopPost").endswith("--unit %n --user")


def test_nothing_in_it_takes_the_gpu_away() -> None:
    for user in ("root", "llm", None):
        text = text_of(replace(UNIT, user=user))
        directives = {one.partition("=")[0] for one in text.splitlines()}
        taking = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"}
        assert not directives & {*taking, "MemoryDenyWriteExecute", "PrivateTmp", "PrivateUsers"}


# ---------------------------------------------------------------- the verb


def test_it_is_printed_for_the_file_and_who_asks(cluster: Cluster) -> None:
    done = cluster.write(SLEEPER).run("systemd")
    assert done.returncode == 0, done.stderr
    assert f"{sys.executable} -P -m supervisor up" in line(done.stdout, "ExecStart")
    assert f"--config {cluster.file} --run-dir {cluster.run_dir}" in line(done.stdout, "ExecStart")


def test_the_commands_find_it_by_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run directory is one of those that a command looks in."""
    from supervisor.runtime.rundir import default_run_dirs

    for name in ("LLM_SUPERVISOR_RUN_DIR", "LLM_SUPERVISOR_LOG_DIR", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "cluster.yaml"
    file.write_text(SLEEPER)
    for options, base in (((), "/run"), (("--user",), "/run/user/7")):
        assert main(["systemd", "-c", str(file), *options]) == 0
        place = line(capsys.readouterr().out, "RuntimeDirectory")
        assert Path(base, place) in default_run_dirs(file, {"XDG_RUNTIME_DIR": "/run/user/7"})


def test_an_invalid_file_gets_no_unit(cluster: Cluster) -> None:
    done = cluster.write("services: {sleeper: {comand: [sleep]}}\n").run("systemd")
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_variable_that_only_the_shell_has_is_told(cluster: Cluster) -> None:
    cluster.write("services: {sleeper: {command: [sleep, '${TEST_SECONDS}']}}\n")
    cluster.environ["TEST_SECONDS"] = "1000"
    assert cluster.run("validate").returncode == 0
    done = cluster.run("systemd")
    assert done.returncode == 2
    assert "TEST_SECONDS" in done.stderr
    assert str(cluster.file.with_suffix(".env")) in done.stderr
    cluster.file.with_suffix(".env").write_text("TEST_SECONDS=1000\n")
    assert cluster.run("systemd").returncode == 0


def test_nobody_called_that(cluster: Cluster) -> None:
    done = cluster.write(SLEEPER).run("systemd", "--run-as", "nobody-of-that-name")
    assert done.returncode == 2
    assert "no user named nobody-of-that-name" in done.stderr


def test_a_unit_of_ones_own_runs_as_nobody_else(cluster: Cluster) -> None:
    assert cluster.write(SLEEPER).run("systemd", "--user", "--run-as", "root").returncode == 2


def test_it_is_installed_and_written_anew_but_not_over_another_ones(cluster: Cluster) -> None:
    cluster.environ["XDG_CONFIG_HOME"] = str(cluster.folder / "config")
    path = cluster.folder / "config/systemd/user/llm-supervisor-cluster.service"
    for _ in range(2):
        done = cluster.write(SLEEPER).run("systemd", "--user", "--install")
        assert done.returncode == 0, done.stderr
    assert "systemctl --user enable --now llm-supervisor-cluster.service" in done.stdout
    assert path.read_text() == cluster.run("systemd", "--user").stdout
    path.write_text(path.read_text().replace(str(cluster.file), "/srv/other/cluster.yaml"))
    before = path.read_text()
    done = cluster.run("systemd", "--user", "--install")
    assert done.returncode == 1
    assert "another cluster file" in done.stderr
    assert path.read_text() == before


def test_where_it_cannot_be_written_the_reason_is_told(cluster: Cluster) -> None:
    cluster.environ["XDG_CONFIG_HOME"] = "/proc/nowhere"
    done = cluster.write(SLEEPER).run("systemd", "--user", "--install")
    assert done.returncode == 1
    assert "cannot write /proc/nowhere" in done.stderr


# ---------------------------------------------------------------- what becomes of a unit


@pytest.mark.parametrize(
    ("unit", "fate"),
    [
        (Unit("deactivating", "stop-post", 0, ""), Fate.COMING),
        (Unit("deactivating", "stop-post", 0, "stop"), Fate.DOWN),
        (Unit("deactivating", "stop-post", 0, "restart"), Fate.COMING),
        (Unit("activating", "auto-restart", 0, ""), Fate.COMING),
        (Unit("activating", "auto-restart", 0, "stop"), Fate.DOWN),
        (Unit("inactive", "dead", 0, "start"), Fate.COMING),
        (Unit("activating", "start", 42, "start"), Fate.BACK),
        (Unit("active", "running", 42, ""), Fate.BACK),
        (Unit("inactive", "dead", 0, ""), Fate.DOWN),
        (Unit("failed", "failed", 0, ""), Fate.DOWN),
    ],
)
def test_leftovers_are_ended_only_if_nobody_comes(unit: Unit, fate: Fate) -> None:
    assert fate_of(unit) is fate


# ---------------------------------------------------------------- the journal


def test_every_line_has_a_priority(capsys: pytest.CaptureFixture[str]) -> None:
    journald.print_entry(Entry(1, 0.0, "vicuna-0", "failed", "it said\nout of memory"))
    journald.print_entry(Entry(2, 0.0, "", "ready", "the cluster is ready"))
    assert capsys.readouterr().out.splitlines() == [
        "<3>vicuna-0 failed: it said",
        "<3>out of memory",
        "<5>cluster ready: the cluster is ready",
    ]


def test_output_is_for_the_journal_only_where_it_goes_there(cluster: Cluster) -> None:
    cluster.output.touch()
    place = os.stat(cluster.output)
    cluster.environ["JOURNAL_STREAM"] = f"{place.st_dev}:{place.st_ino}"
    cluster.write(SLEEPER).up().ready()
    cluster.run("down")
    assert cluster.process is not None
    cluster.process.wait()
    words = cluster.output.read_text()
    assert "<5>cluster ready: the cluster is ready" in words
    assert all(one.startswith("<") for one in words.splitlines())
    cluster.output.rename(cluster.folder / "earlier.log")
    cluster.up().ready()
    assert "<5>" not in cluster.output.read_text()
