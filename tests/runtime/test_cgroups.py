"""Control groups of instances, in a real hierarchy: a group of the test's own, and no other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from harness import NOT_POSSIBLE, alive, cgroup2, die_with_parent, until

from supervisor.runtime import tree
from supervisor.runtime.cgroups import DELEGATED, Cgroups, enter

SLEEP = "import signal\nwhile True: signal.pause()"
SHEDS_EVERYTHING = f"""
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve({sys.executable!r}, ["python", "-S", "-I", "-c", {SLEEP!r}], {{}})
    os._exit(0)
os.wait()
{SLEEP}
"""


@pytest.fixture
def group() -> Iterator[Path]:
    root = cgroup2()
    if root is None or os.geteuid() != 0:
        pytest.skip(f"{NOT_POSSIBLE}no cgroup v2 that we may write in")
    one = root / f"llm-supervisor-test-groups-{os.getpid()}"
    one.mkdir()
    yield one
    for folder, _, _ in os.walk(one, topdown=False):
        for pid in Path(folder, "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        until(lambda f=folder: not Path(f, "cgroup.procs").read_text().strip(), "it is empty")
        os.rmdir(folder)


@contextlib.contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    one = subprocess.Popen([sys.executable, "-S", "-I", "-c", code], preexec_fn=die_with_parent)
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def test_what_sheds_mark_session_and_parent_is_still_a_member(group: Path) -> None:
    groups = Cgroups(group)
    with process(f"import time; time.sleep(0.2)\n{SHEDS_EVERYTHING}") as leader:
        groups.place("vicuna-0", leader.pid)

        def strays() -> set[int]:
            members = groups.members("vicuna-0")
            own = {leader.pid, *tree.descendants(leader.pid)}
            return {pid for pid in members if pid not in own and alive(pid)}

        (stray,) = until(strays, "there is a stray")
        leader.kill()
        leader.wait()
        assert groups.members("vicuna-0") == [stray]
        groups.kill("vicuna-0")
        until(lambda: not groups.members("vicuna-0"), "the stray is gone")
        assert not alive(stray)
        groups.remove("vicuna-0")
        assert list((group / "instances").glob("@*")) == []


def test_who_enters_before_exec_has_no_time_to_leave_anything_elsewhere(group: Path) -> None:
    groups = Cgroups(group)
    entry = groups.open_entry("one")
    assert entry is not None
    with subprocess.Popen(
        [sys.executable, "-S", "-I", "-c", SHEDS_EVERYTHING], preexec_fn=lambda: enter(entry)
    ):
        os.close(entry)
        until(lambda: len(groups.members("one")) == 2, "it has left a stray")
        groups.kill("one")
    until(lambda: not groups.members("one"), "all are gone")


def test_what_was_forked_before_it_was_placed_comes_along(group: Path) -> None:
    groups = Cgroups(group)
    with process(f"import os\nfor _ in range(3): os.fork()\n{SLEEP}") as leader:
        until(lambda: len(tree.descendants(leader.pid)) == 7, "it has forked")
        groups.place("one", leader.pid)
        assert len(groups.members("one")) == 8
        groups.kill("one")
        until(lambda: not groups.members("one"), "all are gone")


def test_members_of_others_are_left_alone(group: Path) -> None:
    groups = Cgroups(group)
    with process(SLEEP) as first, process(SLEEP) as second:
        groups.place("vicuna-0", first.pid)
        groups.place("vicuna-0.b", second.pid)
        assert sorted(groups.instances()) == sorted([first.pid, second.pid])
        groups.kill("vicuna-0")
        until(lambda: first.poll() is not None, "the first is gone")
        assert groups.members("vicuna-0.b") == [second.pid]
        assert second.poll() is None


def test_a_group_within_a_group_belongs_to_the_instance(group: Path) -> None:
    groups = Cgroups(group)
    with process(SLEEP) as leader:
        groups.place("one", leader.pid)
        inner = group / "instances" / "@one" / "its-own"
        inner.mkdir()
        (inner / "cgroup.procs").write_text(str(leader.pid))
        assert groups.members("one") == [leader.pid]
        groups.remove("one")
        assert groups.members("one") == [leader.pid], "one that is in use stays"
        groups.kill("one")
        leader.wait()
        groups.remove("one")
        assert not inner.parent.exists()


def test_without_cgroup_kill_each_is_killed(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 5.14."""
    groups = Cgroups(group)
    write = Path.write_text

    def old(path: Path, text: str) -> int:
        if path.name == "cgroup.kill":
            raise FileNotFoundError(path)
        return write(path, text)

    with process(SLEEP) as leader:
        groups.place("one", leader.pid)
        monkeypatch.setattr(Path, "write_text", old)
        groups.kill("one")
        assert leader.wait() == -9


def test_what_is_gone_or_was_never_there_is_no_error(group: Path) -> None:
    groups = Cgroups(group)
    with process(SLEEP) as leader:
        pass
    groups.place("one", leader.pid)
    assert groups.members("one") == []
    assert groups.members("two") == []
    groups.kill("two")
    groups.remove("two")


def test_a_name_like_a_file_of_the_kernels_is_no_trouble(group: Path) -> None:
    groups = Cgroups(group)
    with process(SLEEP) as leader:
        groups.place("cgroup.procs", leader.pid)
        assert groups.members("cgroup.procs") == [leader.pid]


# ---------------------------------------------------------------- where we are

LOOK = """
import json, os, sys
from supervisor.runtime.cgroups import Cgroups
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
found = Cgroups.find(os.environ)
settled = found.settle() if found else None
again = Cgroups.find(os.environ)
own = open("/proc/self/cgroup").read().strip().splitlines()[-1]
print(json.dumps([str(found.base) if found else None, settled, str(again.base) if again else None,
                  own]))
"""


def look(group: Path, **environ: str) -> tuple[str | None, bool | None, str | None, str]:
    """From a process in that group: what it finds, and again once it has settled; where it is."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(group)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    found: tuple[str | None, bool | None, str | None, str] = tuple(json.loads(done.stdout))
    return found


def test_a_group_that_was_not_delegated_is_not_touched(group: Path) -> None:
    before = sorted(os.listdir(group))
    found, _, _, own = look(group)
    assert found is None
    assert own.endswith(f"/{group.name}")
    assert sorted(os.listdir(group)) == before


@pytest.mark.parametrize("attribute", ["trusted.delegate", "user.delegate"])
def test_a_delegated_group_is_ours_and_we_move_out_of_the_way(group: Path, attribute: str) -> None:
    os.setxattr(group, attribute, b"1")
    found, settled, again, own = look(group)
    assert (found, settled, again) == (str(group), True, str(group))
    assert own.endswith(f"/{group.name}/supervisor")


def test_a_delegated_group_above_an_ordinary_one_is_not_ours(group: Path) -> None:
    os.setxattr(group, "user.delegate", b"1")
    inner = group / "somebody"
    inner.mkdir()
    assert look(inner)[0] is None


@pytest.mark.parametrize("ours", [True, False])
def test_a_unit_may_say_so_of_itself_and_of_no_other(group: Path, ours: bool) -> None:
    name = group.name if ours else "another.service"
    assert look(group, **{DELEGATED: name})[0] == (str(group) if ours else None)


def test_what_is_forked_from_a_template_leaves_its_group_for_one_of_its_own(
    group: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroups, "find", lambda environ: Cgroups(group))
    monkeypatch.setattr(Cgroups, "settle", lambda groups: True)
    house, kind = warm.House(tmp_path), warm.template()
    groups = Cgroups(group)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            pid = await house.warm(house.spec("one", template=kind))
            assert groups.members("one") == [pid]
            assert groups.members("server~template") == house.started
            house.templates.keep([])
            left = group / "instances" / "@server~template"
            await warm.until(lambda: not left.exists())

    warm.run(story)


# ---------------------------------------------------------------- beside groups

OOM = """
import subprocess, sys
from supervisor.runtime import tree
with open("/proc/self/oom_score_adj", "w") as own:
    own.write("-500")
with subprocess.Popen(["sleep", "1000"]) as child:
    tree.take_usual_oom_score(child.pid)
    print(open(f"/proc/{child.pid}/oom_score_adj").read().strip())
    child.kill()
"""


def test_what_a_supervisor_starts_does_not_go_last_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", OOM], capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr:
        pytest.skip(f"{NOT_POSSIBLE}lowering the own OOM score takes CAP_SYS_RESOURCE")
    assert done.stdout == "0\n", done.stderr
