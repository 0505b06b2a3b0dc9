"""A supervisor is killed or upgraded: what it ran goes on, and the next one goes on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import COMMAND, DEADLINE, ROOT, Cluster, alive, free_ports, until
from test_supervision import FAMILY, SLEEP, listening, said, service, services

STUBBORN = textwrap.dedent("""\
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    while True: signal.pause()
    """)


def take_over(cluster: Cluster) -> Cluster:
    """What a service manager does when its main process has been killed."""
    cluster.kill_supervisor()
    return cluster.up().ready()


def state_file(cluster: Cluster) -> Path:
    return cluster.run_dir / "state.json"


def noted(cluster: Cluster, name: str) -> bool:
    """Whether the state file tells of the process that this instance has now."""
    pid = cluster.instance(name)["pid"]
    members = json.loads(state_file(cluster).read_bytes())["state"]["members"]
    return any(m["spec"]["name"] == name and m["status"]["pid"] == pid for m in members)


# ---------------------------------------------------------------- killed


def test_ten_kills_restart_nothing(cluster: Cluster) -> None:
    (port,) = free_ports(1)
    server = service("server", listening(port), ready=f"{{tcp: '127.0.0.1:{port}'}}")
    cluster.write(services(server, service("one", SLEEP), service("two", SLEEP))).up().ready()
    before = cluster.pids()
    for _ in range(10):
        take_over(cluster)
        assert cluster.pids() == before
    assert all(one["restarts"] == 0 for one in cluster.status()["instances"])
    assert len(cluster.processes()) == len(before) + 2  # the supervisor and its log writer


def test_whoever_asks_meanwhile_is_told_what_runs_on(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    cluster.kill_supervisor()
    done = cluster.run("status")
    assert done.returncode == 3
    assert "no supervisor is running" in done.stderr
    assert "one, two run on; `llm-supervisor up` goes on with them" in done.stderr


def test_what_ends_while_nobody_looks_is_started_again(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    before = cluster.pids()
    until(lambda: noted(cluster, "one"), "it is noted")
    cluster.kill_supervisor()
    os.kill(before["one"], signal.SIGKILL)
    after = cluster.up().ready().pids()
    assert after["two"] == before["two"]
    assert after["one"] != before["one"]
    assert cluster.instance("one")["restarts"] == 1


def test_an_adopted_process_is_watched_as_before(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("code", "input(); raise SystemExit(7)")))
    cluster.write(services(service("one", SLEEP))).up().ready()
    first = take_over(cluster).pids()["one"]
    os.kill(first, signal.SIGKILL)
    until(lambda: cluster.instance("one")["pid"] not in (first, None), "it is started again")
    assert cluster.instance("one")["restarts"] == 1
    assert "SIGKILL" in cluster.run("why", "one").stdout


def test_an_adopted_process_is_stopped_as_before(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    pids = take_over(cluster).pids()
    assert cluster.run("stop", "one").returncode == 0
    assert not alive(pids["one"])
    assert cluster.run("down").returncode == 0
    assert cluster.processes() == []


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_the_family_of_an_adopted_process_goes_with_it(cluster: Cluster, how: str) -> None:
    """Its strays have become children of init, and not of the new supervisor."""
    with_bystander = service("family", FAMILY) + service("bystander", FAMILY)
    cluster.write(services(with_bystander)).up().ready()

    def grandchildren(name: str) -> list[int]:
        return [int(line.split()[1]) for line in said(cluster, name, r"^grandchild \d+")]

    for name in ("family", "bystander"):
        until(lambda name=name: len(grandchildren(name)) == 3, "three grandchildren run")
    family, bystanders = grandchildren("family"), grandchildren("bystander")
    leader = take_over(cluster).pids()["family"]
    if how == "stop":
        assert cluster.run("stop", "family").returncode == 0
    else:
        os.kill(leader, signal.SIGKILL)
        until(lambda: len(grandchildren("family")) == 6, "the family is back")
    assert not any(alive(pid) for pid in (leader, *family))
    assert all(alive(pid) for pid in bystanders)


def test_strays_of_a_leader_that_died_unseen_end_before_its_successor(cluster: Cluster) -> None:
    cluster.write(services(service("family", FAMILY))).up().ready()

    def grandchildren() -> list[int]:
        return [int(line.split()[1]) for line in said(cluster, "family", r"^grandchild \d+")]

    old = until(lambda: found if len(found := grandchildren()) == 3 else None, "they run")
    leader = cluster.pids()["family"]
    cluster.kill_supervisor()
    os.kill(leader, signal.SIGKILL)
    cluster.up()
    until(lambda: len(grandchildren()) == 6, "the family is back")
    assert not any(alive(pid) for pid in old)


def test_an_edit_made_meanwhile_is_applied_as_any_other(cluster: Cluster) -> None:
    cluster.write(services(service("stays", SLEEP), service("changes", SLEEP)))
    before = cluster.up().ready().pids()
    cluster.kill_supervisor()
    changed = service("changes", SLEEP, env="{NEW: 1}")
    cluster.write(services(service("stays", SLEEP), changed, service("new", SLEEP)))
    cluster.up()
    until(
        lambda: (
            cluster.pids().get("changes") not in (None, before["changes"])
            and cluster.instance("new")["state"] == "ready"
        ),
        "the edit is in service",
    )
    assert cluster.pids()["stays"] == before["stays"]
    assert not alive(before["changes"])


def test_what_a_person_has_stopped_stays_so(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    assert cluster.run("stop", "one").returncode == 0
    until(lambda: '"asked to stop"' in state_file(cluster).read_text(), "it is noted")
    take_over(cluster)
    one = cluster.instance("one")
    assert (one["state"], one["desired"]) == ("stopped", "stopped")


def test_a_finished_job_is_not_run_again(cluster: Cluster) -> None:
    job = service("job", "print('done')", restart="on_failure")
    cluster.write(services(job, service("one", SLEEP))).up()
    # Before it starts it is stopped, too.
    note = state_file(cluster)
    until(lambda: note.exists() and "it finished" in note.read_text(), "its end is noted")
    take_over(cluster)
    assert len(said(cluster, "job", "^done$")) == 1


def test_a_stop_that_was_under_way_comes_to_its_end(cluster: Cluster) -> None:
    cluster.write(services(service("deaf", STUBBORN, stop_grace="2s"), service("one", SLEEP)))
    pid = cluster.up().ready().pids()["deaf"]
    until(lambda: said(cluster, "deaf", "^deaf$"), "it ignores SIGTERM")
    assert cluster.run("stop", "deaf", "--no-wait").returncode == 0
    until(lambda: '"stopping"' in state_file(cluster).read_text(), "it is noted")
    cluster.kill_supervisor()
    cluster.up()
    cluster.until("deaf", "stopped")
    assert not alive(pid)


def test_down_that_was_under_way_is_over(cluster: Cluster) -> None:
    """Whoever starts a supervisor wants the cluster up."""
    cluster.write(services(service("deaf", STUBBORN, stop_grace="1h"), service("one", SLEEP)))
    cluster.up().ready()
    until(lambda: said(cluster, "deaf", "^deaf$"), "it ignores SIGTERM")
    assert cluster.run("down", "--no-wait").returncode == 0
    until(lambda: '"going_down":true' in state_file(cluster).read_text(), "it is noted")
    cluster.kill_supervisor()
    cluster.up()
    cluster.until("one", "ready")
    assert cluster.instance("deaf")["desired"] == "running"


def test_one_whose_log_cannot_be_had_is_supervised_all_the_same(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    pid = cluster.pids()["one"]
    until(lambda: noted(cluster, "one"), "it is noted")
    cluster.kill_supervisor()
    (cluster.run_dir / "out" / "one").unlink()
    (cluster.run_dir / "out" / "one").mkdir()
    cluster.up().ready()
    assert cluster.pids() == {"one": pid}
    assert cluster.run("down").returncode == 0
    assert not alive(pid)


def test_a_clean_end_leaves_no_state(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    until(lambda: state_file(cluster).exists(), "it is written")
    assert state_file(cluster).stat().st_mode & 0o777 == 0o600
    assert cluster.run("down").returncode == 0
    assert not state_file(cluster).exists()


def test_output_goes_on_without_a_supervisor(cluster: Cluster) -> None:
    code = textwrap.dedent("""\
        import itertools, time
        for i in itertools.count():
            print("line", i, flush=True)
            time.sleep(0.005)
        """)
    cluster.write(services(service("talker", code))).up().ready()
    for _ in range(3):
        written = len(said(cluster, "talker", r"^line \d+$"))
        cluster.kill_supervisor()
        until(
            lambda written=written: len(said(cluster, "talker", r"^line \d+$")) > written + 20,
            "it is still logged",
        )
        cluster.up().ready()
    assert cluster.run("down").returncode == 0
    numbers = [int(line.split()[1]) for line in said(cluster, "talker", r"^line \d+$")]
    assert numbers == list(range(len(numbers)))


# ---------------------------------------------------------------- the state file is no good


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def of_another_version(path: Path) -> None:
    path.write_text(path.read_text().replace('"version":1', '"version":99', 1))


def of_another_boot(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "boot_id": "another"}))


def nonsense(path: Path) -> None:
    path.write_bytes(b"\xff\x00{]")


def stale(path: Path) -> None:
    """As if the last change had not been written: it tells of an earlier run."""
    content = json.loads(path.read_text())
    for member in content["state"]["members"]:
        member["status"]["run"] -= 1
        member["status"]["pid"] = 2**22  # more than there can be
        member["status"]["born"] = 1
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "said_of_it"),
    [
        (Path.unlink, "it is missing"),
        (truncated, "it is damaged"),
        (nonsense, "it is damaged"),
        (of_another_version, "it is of version 99"),
        (of_another_boot, "from before the last boot"),
        (stale, ""),
    ],
)
def test_without_a_usable_state_file_what_runs_is_found(
    cluster: Cluster, damage: Callable[[Path], object], said_of_it: str
) -> None:
    (port,) = free_ports(1)
    server = service("server", listening(port), ready=f"{{tcp: '127.0.0.1:{port}'}}")
    cluster.write(services(server, service("family", FAMILY))).up().ready()
    until(lambda: len(said(cluster, "family", "^grandchild")) == 3, "three grandchildren run")
    before = cluster.pids()
    until(lambda: all(noted(cluster, name) for name in before), "all is noted")
    cluster.kill_supervisor()
    damage(state_file(cluster))
    cluster.up().ready()
    assert cluster.pids() == before
    assert said_of_it in cluster.output.read_text()
    assert len(said(cluster, "family", "^grandchild")) == 3


def test_what_nobody_knows_any_more_ends_before_anything_starts(cluster: Cluster) -> None:
    """The state is lost and the file has changed: never two of a kind."""
    cluster.write(services(service("one", SLEEP))).up().ready()
    old = cluster.pids()["one"]
    cluster.kill_supervisor()
    state_file(cluster).unlink()
    cluster.write(services(service("one", SLEEP, env="{NEW: 1}"))).up().ready()
    assert not alive(old)
    assert f"one (pid {old})" in cluster.output.read_text()


def test_a_stray_is_no_leader(cluster: Cluster) -> None:
    """The state is lost and the leader dead; what it left in another session is not adopted."""
    cluster.write(services(service("family", FAMILY))).up().ready()
    until(lambda: len(said(cluster, "family", "^grandchild")) == 3, "three grandchildren run")
    leader = cluster.pids()["family"]
    cluster.kill_supervisor()
    state_file(cluster).unlink()
    os.kill(leader, signal.SIGKILL)
    cluster.up().ready()
    until(lambda: len(said(cluster, "family", "^grandchild")) == 6, "a new family runs")
    assert len(cluster.processes()) == 4 + 2


def test_a_pid_that_was_used_again_is_left_alone(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    before = cluster.pids()["one"]
    until(lambda: noted(cluster, "one"), "it is noted")
    cluster.kill_supervisor()
    os.kill(before, signal.SIGKILL)
    until(lambda: not alive(before), "it is gone")
    content = json.loads(state_file(cluster).read_text())
    (member,) = content["state"]["members"]
    member["status"]["pid"] = os.getpid()  # as if we had got its number
    state_file(cluster).write_text(json.dumps(content))
    cluster.up().ready()
    assert cluster.pids()["one"] not in (before, os.getpid())


# ---------------------------------------------------------------- the file is no good


def test_a_broken_file_leaves_nothing_unsupervised(cluster: Cluster) -> None:
    good = services(service("one", SLEEP), service("two", SLEEP))
    before = cluster.write(good).up().ready().pids()
    until(lambda: noted(cluster, "two"), "it is noted")
    cluster.kill_supervisor()
    cluster.write("services: {one: {comand: [x]}}")
    cluster.up()
    assert cluster.pids() == before
    assert any("comand" in problem for problem in cluster.status()["cluster"]["problems"])
    os.kill(before["one"], signal.SIGKILL)
    cluster.until("one", "failed")
    cluster.write(good)
    one = cluster.until("one", "ready")
    assert one["pid"] != before["one"]
    assert cluster.pids()["two"] == before["two"]


def test_a_broken_file_and_a_note_that_is_too_old_leave_nothing_unsupervised(
    cluster: Cluster,
) -> None:
    (port,) = free_ports(1)
    server = service("server", listening(port), ready=f"{{tcp: '127.0.0.1:{port}'}}")
    good = services(server, service("one", SLEEP))
    before = cluster.write(good).up().ready().pids()
    until(lambda: noted(cluster, "one") and noted(cluster, "server"), "it is noted")
    cluster.kill_supervisor()
    stale(state_file(cluster))
    cluster.write("services: {one: {comand: [x]}}")
    cluster.up()
    cluster.until("server", "ready")
    assert cluster.pids() == before
    cluster.write(good)
    until(lambda: not cluster.status()["cluster"]["problems"], "it is mended")
    cluster.ready()
    assert cluster.pids() == before


def test_a_broken_file_starts_nothing_where_nothing_runs(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    pid = cluster.pids()["one"]
    cluster.kill_supervisor()
    os.kill(pid, signal.SIGKILL)
    cluster.write("services: {one: {comand: [x]}}").up()
    assert cluster.process is not None
    assert cluster.process.wait() == 2


# ---------------------------------------------------------------- the run directory is removed


def test_a_removed_run_directory_is_made_anew(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP), service("two", SLEEP))).up().ready()
    before = cluster.pids()
    shutil.rmtree(cluster.run_dir)
    until(lambda: cluster.run("status").returncode == 0, "it answers again")
    assert cluster.pids() == before
    assert cluster.run_dir.stat().st_mode & 0o777 == 0o700
    os.kill(before["one"], signal.SIGKILL)
    until(lambda: cluster.pids().get("one") not in (None, before["one"]), "it is supervised")
    assert cluster.run("up").returncode == 1  # nobody takes our place
    take_over(cluster)
    assert cluster.pids()["two"] == before["two"]


# ---------------------------------------------------------------- upgraded


@pytest.mark.parametrize("how", ["verb", "signal"])
def test_an_upgrade_keeps_pids_and_children(cluster: Cluster, how: str) -> None:
    (port,) = free_ports(1)
    server = service("server", listening(port), ready=f"{{tcp: '127.0.0.1:{port}'}}")
    cluster.write(services(server, service("family", FAMILY))).up().ready()
    until(lambda: len(said(cluster, "family", "^grandchild")) == 3, "three grandchildren run")
    before, supervisor = cluster.pids(), cluster.status()["cluster"]["pid"]
    for i in range(1, 4):
        if how == "verb":
            done = cluster.run("upgrade")
            assert done.returncode == 0, done.stderr
        else:
            os.kill(supervisor, signal.SIGUSR2)
        until(lambda i=i: cluster.status()["cluster"]["upgrades"] == i, "it is upgraded")
        assert cluster.ready().pids() == before
    assert cluster.status()["cluster"]["pid"] == supervisor
    os.kill(before["family"], signal.SIGKILL)
    until(lambda: cluster.pids().get("family") not in (None, before["family"]), "it is back")
    assert "SIGKILL" in cluster.run("why", "family").stdout
    until(lambda: len(said(cluster, "family", "^grandchild")) == 6, "the family is back")
    assert len(cluster.processes()) == 5 + 2
    assert cluster.run("down").returncode == 0
    assert cluster.processes() == []


def test_upgrades_at_once_are_one_and_all_are_told(cluster: Cluster) -> None:
    before = cluster.write(services(service("one", SLEEP))).up().ready().pids()
    asking = [
        subprocess.Popen([*COMMAND, "upgrade", *cluster.places], env=cluster.environ, cwd=ROOT)
        for _ in range(3)
    ]
    assert [one.wait(DEADLINE) for one in asking] == [0, 0, 0]
    assert cluster.ready().pids() == before


def test_a_program_that_cannot_start_does_not_take_over(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP)))
    broken = cluster.folder / "broken"
    broken.mkdir()
    cluster.environ["PYTHONPATH"] = str(broken)
    before = cluster.up().ready().pids()
    (broken / "pydantic.py").write_text("raise RuntimeError('a broken installation')")
    done = cluster.run("upgrade")
    (broken / "pydantic.py").unlink()
    assert done.returncode == 1
    assert "a broken installation" in done.stderr
    assert cluster.pids() == before
    assert cluster.status()["cluster"]["upgrades"] == 0


def test_signals_between_two_programs_are_not_lost(cluster: Cluster) -> None:
    cluster.write(services(service("one", SLEEP))).up().ready()
    assert cluster.process is not None
    os.kill(cluster.process.pid, signal.SIGUSR2)
    until(lambda: "version" in cluster.output.read_text() or is_new(cluster), "it becomes another")
    cluster.process.terminate()
    assert cluster.process.wait() == 0
    assert cluster.processes() == []


def is_new(cluster: Cluster) -> bool:
    """Whether the new program has begun: the interpreter, and nothing imported yet."""
    assert cluster.process is not None
    environ = Path(f"/proc/{cluster.process.pid}/environ").read_bytes()
    return b"LLM_SUPERVISOR_HANDOVER=" in environ


def test_a_signal_just_before_an_upgrade_is_not_lost(cluster: Cluster) -> None:
    """The event loop hears of it a moment later, and then there is another program."""
    injected = cluster.folder / "injected"
    injected.mkdir()
    (injected / "sitecustomize.py").write_text(
        textwrap.dedent("""\
            import os, signal, sys
            def inject(path, names, target=None):
                if path == "supervisor.daemon.upgrade":
                    sys.meta_path.pop(0)
                    import supervisor.daemon.reconciler as reconciler
                    run = reconciler.Reconciler.run
                    async def run_and_signal(self):
                        over = await run(self)
                        os.kill(os.getpid(), signal.SIGTERM)
                        return over
                    reconciler.Reconciler.run = run_and_signal
            class Finder:
                find_spec = staticmethod(inject)
            if "LLM_SUPERVISOR_HANDOVER" not in os.environ:
                sys.meta_path.insert(0, Finder)
            """)
    )
    cluster.environ["PYTHONPATH"] = str(injected)
    cluster.write(services(service("one", SLEEP))).up().ready()
    assert cluster.process is not None
    os.kill(cluster.process.pid, signal.SIGUSR2)
    assert cluster.process.wait(DEADLINE) == 0
    assert "received SIGTERM" in cluster.output.read_text()
    assert cluster.processes() == []


def test_an_upgrade_while_the_file_is_broken_and_nothing_runs(cluster: Cluster) -> None:
    """What a person has stopped can be started again, as before the upgrade."""
    good = services(service("one", SLEEP))
    cluster.write(good).up().ready()
    assert cluster.run("stop", "one").returncode == 0
    cluster.write("services: {one: {comand: [x]}}")
    until(lambda: cluster.status()["cluster"]["problems"], "it is noticed")
    done = cluster.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert cluster.status()["cluster"]["problems"]
    assert cluster.instance("one")["state"] == "stopped"
    assert cluster.run("start", "one").returncode == 0
    pids = cluster.pids()
    cluster.write(good)
    until(lambda: not cluster.status()["cluster"]["problems"], "it is mended")
    assert cluster.ready().pids() == pids


def test_an_upgrade_stays_in_its_folders_whatever_the_file_says(tmp_path: Path) -> None:
    """What runs bears the mark of the run directory, and writes into pipes there."""
    cluster = Placed(tmp_path)
    try:
        cluster.write(services(service("one", SLEEP), top=placed("run"))).up().ready()
        pids = cluster.pids()
        cluster.write(services(service("one", SLEEP), top=placed("elsewhere")))
        until(lambda: "the next time" in cluster.output.read_text(), "the edit is read")
        done = cluster.run("upgrade", "--run-dir", str(cluster.run_dir))
        assert done.returncode == 0, done.stderr + cluster.output.read_text()
        assert not (tmp_path / "elsewhere").exists()
        cluster.write(services(service("one", SLEEP), top=placed("run")))
        assert cluster.ready().pids() == pids
    finally:
        cluster.down()


class Placed(Cluster):
    """One whose file says where its folders are."""

    @property
    def places(self) -> list[str]:
        return ["-c", str(self.file)]


def placed(folder: str) -> str:
    return f"run_dir: {folder}\nlog_dir: {folder}/logs"


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / os.fsdecode(b"caf\xe9"))
    cluster.folder.mkdir()
    try:
        pids = cluster.write(services(service("one", SLEEP))).up().ready().pids()
        done = cluster.run("upgrade")
        assert done.returncode == 0, done.stderr
        until(lambda: noted(cluster, "one"), "it is noted")
        take_over(cluster)
        assert cluster.pids() == pids
        assert "Traceback" not in cluster.output.read_text()
    finally:
        cluster.down()
