"""Every way to save a file badly, against one running cluster: nothing that runs is harmed, what is
wrong is said wherever somebody looks, and a good file mends it all."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from harness import COMMAND, DEADLINE, ROOT, Cluster, free_ports, until

from supervisor.cli.client import Client

NOT_APPLIED = "the file is not applied; the cluster goes on with the last good one"
VALID_AGAIN = "the file is valid again"

SERVICES = """\
services:
  base: {command: [sleep, "1000"]}
  top:
    command: [sleep, "1001"]
    depends_on: [base]
    restart: {policy: on_failure, backoff: 10ms}
  once: {command: ["true"], restart: never}
  last: {command: [sleep, "1002"], env: {TOKEN: secret-token}}
"""
HEAD = """\
env_file: vars  # a good file
api_server: {enabled: false, api_keys_file: keys}
"""
GOOD = HEAD + SERVICES
EXTRA = '  extra: {command: [sleep, "1003"]}\n'
OTHER = '  other: {command: [sleep, "1004"]}\n'
RUNNING = ("base", "top", "last")


# ---------------------------------------------------------------- the cluster that all share


@dataclass
class Desk:
    """The cluster, its file, and who saves it."""

    cluster: Cluster
    seen: int = 0
    """Number of the last event before the story."""
    drafts: Iterator[int] = field(default_factory=count)

    @property
    def file(self) -> Path:
        return self.cluster.file

    @property
    def folder(self) -> Path:
        return self.cluster.folder

    # ------------------------------------------------------------ saving

    def clear(self) -> None:
        """Remove whatever is in the file's place."""
        if self.file.is_dir() and not self.file.is_symlink():
            shutil.rmtree(self.file)
        else:
            self.file.unlink(missing_ok=True)

    def save(self, content: str | bytes) -> None:
        """As most editors do: a new file takes the place of the old one."""
        draft = self.folder / f"draft-{next(self.drafts)}"
        draft.write_bytes(content if isinstance(content, bytes) else content.encode())
        if self.file.is_dir() and not self.file.is_symlink():
            self.clear()
        draft.replace(self.file)

    def restore(self) -> None:
        self.save(GOOD)

    # ------------------------------------------------------------ looking

    def ask(self, path: str) -> Any:
        """As the verbs do, without a process of its own for each look."""
        places = {"config": str(self.file), "run_dir": str(self.cluster.run_dir), "log_dir": None}
        return Client(argparse.Namespace(**places)).get(path)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/v1/status")
        return found

    def problems(self) -> list[str]:
        found: list[str] = self.status()["cluster"]["problems"]
        return found

    def events(self) -> list[dict[str, Any]]:
        """Those of this story."""
        return [one for one in self.ask("/v1/events")["events"] if one["number"] > self.seen]

    def told(self) -> list[str]:
        """What the events of this story say of the file."""
        return [one["reason"] for one in self.events() if one["state"] == "file"]

    def instances(self) -> dict[str, tuple[Any, ...]]:
        """What must not change: who is there, in which state, in which process."""
        return {
            one["name"]: (one["state"], one["pid"], one["restarts"], one["since"])
            for one in self.status()["instances"]
        }

    def wait_for_mark(self) -> None:
        """A last good save, and its own event: all that was saved before has been looked at, and
        the file is still watched."""
        mark = f"mark {next(self.drafts)}"
        before = len(self.nothing_to_do())
        self.save(f"description: {mark}\n{GOOD}")
        until(lambda: len(self.nothing_to_do()) > before, f"{mark} is applied")

    def nothing_to_do(self) -> list[str]:
        return [text for text in self.told() if text == "cluster.yaml is applied: nothing to do"]


def write_named_files(cluster: Cluster) -> None:
    (cluster.folder / "keys").write_text("sk-secret-key\n")
    (cluster.folder / "vars").write_text("A_TOKEN=secret-token\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("saves"))
    write_named_files(cluster)
    cluster.write(GOOD).up().ready()
    yield cluster
    cluster.down()


@pytest.fixture
def desk(shared: Cluster) -> Iterator[Desk]:
    """The cluster with its good file, whatever the story before has done."""
    write_named_files(shared)
    one = Desk(shared)
    one.restore()
    assert shared.run("reload").returncode == 0
    shared.ready()
    until(lambda: shared.instance("once")["state"] == "stopped", "what runs once has ended")
    one.seen = max(event["number"] for event in one.events())
    yield one
    for name in ("sub", "cluster.yaml.away"):
        shutil.rmtree(shared.folder / name, ignore_errors=True)


# ---------------------------------------------------------------- stories that break the file


def saved(content: str | bytes) -> Callable[[Desk], None]:
    return lambda desk: desk.save(content)


def written_in_place(content: bytes) -> Callable[[Desk], None]:
    """As `echo > file` does."""
    return lambda desk: void(desk.file.write_bytes(content))


def void(_: object) -> None:
    pass


def deleted(desk: Desk) -> None:
    desk.file.unlink()


def directory(desk: Desk) -> None:
    desk.file.rename(desk.folder / "cluster.yaml.away")
    desk.file.mkdir()
    (desk.file / "cluster.yaml").write_text(GOOD)


def directory_gone(desk: Desk) -> None:
    shutil.rmtree(desk.file)
    (desk.folder / "cluster.yaml.away").rename(desk.file)


def fifo(desk: Desk) -> None:
    desk.file.unlink()
    os.mkfifo(desk.file)


def endless(desk: Desk) -> None:
    desk.file.unlink()
    desk.file.symlink_to("/dev/zero")


def dangling(desk: Desk) -> None:
    desk.file.unlink()
    desk.file.symlink_to(desk.folder / "nowhere.yaml")


def loop(desk: Desk) -> None:
    desk.file.unlink()
    desk.file.symlink_to(desk.file)


def swapped_link(desk: Desk) -> None:
    """The file is a link, and now it leads somewhere else."""
    folder = desk.folder / "sub"
    folder.mkdir()
    (folder / "bad.yaml").write_text(GOOD.replace("command", "comand", 1))
    new = folder / "link"
    new.symlink_to(folder / "bad.yaml")
    new.replace(desk.file)


def config_map(desk: Desk) -> None:
    """As Kubernetes mounts one: the file is a link through `..data`, which is swapped."""
    folder = desk.folder / "sub"
    for name, text in (("one", GOOD), ("two", GOOD.replace("sleep, ", "sleep: ", 1))):
        (folder / name).mkdir(parents=True)
        (folder / name / "cluster.yaml").write_text(text)
    (folder / "..data").symlink_to("one")
    link = folder / "link"
    link.symlink_to(folder / "..data" / "cluster.yaml")
    link.replace(desk.file)
    swap(folder, "two")


def swap(folder: Path, name: str) -> None:
    (folder / "..data_tmp").symlink_to(name)
    (folder / "..data_tmp").replace(folder / "..data")


def config_map_back(desk: Desk) -> None:
    swap(desk.folder / "sub", "one")


def keys_deleted(desk: Desk) -> None:
    (desk.folder / "keys").unlink()


def keys_emptied(desk: Desk) -> None:
    (desk.folder / "keys").write_text("# none left\n")


def named_files_restored(desk: Desk) -> None:
    write_named_files(desk.cluster)


def variables_deleted(desk: Desk) -> None:
    (desk.folder / "vars").unlink()


def variables_misspelt(desk: Desk) -> None:
    (desk.folder / "vars").write_text("# mine\nA-TOKEN=secret-token\n")


def variables_directory(desk: Desk) -> None:
    (desk.folder / "vars").rename(desk.folder / "cluster.yaml.away")
    (desk.folder / "vars").mkdir()


def variables_back(desk: Desk) -> None:
    (desk.folder / "vars").rmdir()
    (desk.folder / "cluster.yaml.away").rename(desk.folder / "vars")


def chmod(mode: int) -> Callable[[Desk], None]:
    return lambda desk: desk.file.chmod(mode)


BOMB = 'x-a: &a ["x","x","x","x","x","x","x","x","x"]\n' + "".join(
    f"x-{one}: &{one} [{','.join([f'*{below}'] * 9)}]\n"
    for below, one in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = f"x-deep: {'[' * 100}{']' * 100}\n"
MERGE = SERVICES.replace("  once", "<<<<<<< HEAD\n  once").replace("  last", "=======\n  last")
CIRCLE = GOOD.replace('base: {command: [sleep, "1000"]}', "base: {command: [a], depends_on: [top]}")


@dataclass(frozen=True)
class Story:
    name: str
    spoil: Callable[[Desk], None]
    problem: str
    """A regular expression of all problems, a line each, without the path of the file."""
    mend: Callable[[Desk], None] = Desk.restore


def place(line: int, column: int) -> str:
    return rf":{line}:{column}: "


BROKEN = [
    Story(
        "truncated",
        saved(GOOD[: GOOD.index("on_failure")]),
        r":9:1: not YAML: .*\(while parsing a flow node that begins in line 9\); check the",
    ),
    Story(
        "truncated within a key",
        saved(GOOD[: GOOD.index('ommand: [sleep, "1002')]),
        r":11:1: not YAML: .*flow mapping that begins in line 10\); check the",
    ),
    Story("empty", saved(""), place(1, 1) + "the file is empty; describe a cluster in it"),
    Story("emptied in place", written_in_place(b""), place(1, 1) + "the file is empty"),
    Story("nothing but comments", saved("# soon\n\n"), place(1, 1) + "the file is empty"),
    Story("nothing but a text", saved("hello\n"), place(1, 1) + "the file must be a mapping"),
    Story(
        "a duplicated key",
        saved(GOOD + '  base: {command: [sleep, "7"]}\n'),
        place(11, 3) + r"services\.base: key 'base' stands here a second time \(first in line 4\)",
    ),
    Story(
        "a duplicated section",
        saved(GOOD + "services: {base: {command: [a]}}\n"),
        place(11, 1) + r"services: key 'services' stands here a second time \(first in line 3\)",
    ),
    Story(
        "tabs",
        saved(GOOD.replace("    command", "\tcommand")),
        place(6, 1) + "not YAML: .*indent with spaces, YAML forbids tabs",
    ),
    Story(
        "not UTF-8",
        saved(GOOD.encode() + b"# caf\xe9\n"),
        place(11, 6) + "is not UTF-8 text; save it as UTF-8",
    ),
    Story("UTF-16", saved(GOOD.encode("utf-16")), r":\S* ?is (binary|not UTF-8 text)"),
    Story("NUL bytes", saved(GOOD.encode() + b"\0" * 64), r": is binary; name a YAML file"),
    Story("a program", saved(Path("/bin/true").read_bytes()), r": is binary; name a YAML file"),
    Story("a bell", saved(GOOD + "# \a\n"), place(11, 3) + r"holds a control character \(U\+0007"),
    Story("10 MB", saved(b"#" * 10**7), r": is larger than 4 MiB; no cluster file is"),
    Story("5 MB of YAML", saved(GOOD + "# valid\n" * 625_000), r": is larger than 4 MiB"),
    Story(
        "a swapped link",
        swapped_link,
        r":4:3: .* is required; .*\n.*:4:10: .*did you mean 'command'",
    ),
    Story(
        "a ConfigMap",
        config_map,
        place(4, 20) + r"services\.base\.command\[0\]: must be a text",
        config_map_back,
    ),
    Story("left away", deleted, ": there is no such file; name one with -c FILE"),
    Story("a directory in its place", directory, ": is a directory; name the file in it"),
    Story("a directory, moved back", directory, ": is a directory", directory_gone),
    Story("a FIFO", fifo, ": is not a regular file; name a YAML file"),
    Story("a device", endless, ": is not a regular file; name a YAML file"),
    Story("a dangling link", dangling, ": there is no such file"),
    Story("a link to itself", loop, ": cannot be read: Too many levels of symbolic links"),
    Story("a YAML bomb", saved(BOMB + GOOD), r":\d+:\d+: x-.*: more than 50000 values; .*anchors"),
    Story("too deep", saved(DEEP + GOOD), place(1, 58) + "nested deeper than 50 levels"),
    Story(
        "an anchor in itself",
        saved("x-a: &a {b: *a}\n" + GOOD),
        place(1, 6) + r"x-a\.b: an anchor contains itself; remove the alias",
    ),
    Story(
        "an unset variable",
        saved(GOOD.replace("secret-token", '"${NOT_SET_AT_ALL}"')),
        place(10, 49) + r"services\.last\.env\.TOKEN: environment variable NOT_SET_AT_ALL is",
    ),
    Story(
        "an unknown key",
        saved(GOOD.replace("depends_on", "depend_on")),
        place(7, 5) + r"services\.top\.depend_on: unknown key 'depend_on'; did you mean 'dep",
    ),
    Story(
        "a circle",
        saved(CIRCLE),
        place(4, 36) + r"services\.base\.depends_on: runs in a circle: base -> top -> base",
    ),
    Story(
        "an unknown dependency",
        saved(GOOD.replace("[base]", "[bse]")),
        place(7, 18) + r"services\.top\.depends_on\[0\]: there is no service 'bse'",
    ),
    Story("nothing to run", saved(HEAD), place(1, 1) + "nothing to run; list a model"),
    Story(
        "all disabled",
        saved(HEAD + "services: {base: {command: [a], enabled: false}}\n"),
        place(1, 1) + "nothing to run; .*enable one",
    ),
    Story(
        "merge conflict",
        saved(HEAD + MERGE),
        r":\d+:\d+: not YAML: ",
    ),
    Story(
        "two documents",
        saved(GOOD + "---\n" + GOOD),
        place(11, 1) + "not YAML: .*one file is one cluster; remove the `---`",
    ),
    Story(
        "half good",
        saved(GOOD.replace('"1000"', '"7"').replace("on_failure", "sometimes") + EXTRA),
        place(8, 23) + r"services\.top\.restart\.policy: must be one of always, on_failure",
    ),
    Story(
        "two mistakes",
        saved(GOOD.replace("on_failure", "sometimes").replace("env:", "evn:")),
        place(8, 23)
        + r"services\.top\.restart\.policy: .*\n.*"
        + place(10, 36)
        + r"services\.last\.evn: unknown key 'evn'; did you mean 'env'\?",
    ),
    Story(
        "keys deleted",
        keys_deleted,
        place(2, 45) + r"api_server\.api_keys_file: cannot read the keys in \S*/keys: there is no",
        named_files_restored,
    ),
    Story(
        "keys emptied",
        keys_emptied,
        place(2, 45) + r"api_server\.api_keys_file: \S*/keys holds no key, which would open",
        named_files_restored,
    ),
    Story(
        "variables deleted",
        variables_deleted,
        place(1, 11) + r"env_file: cannot read the variables in \S*/vars: there is no such file",
        named_files_restored,
    ),
    Story(
        "variables misspelt",
        variables_misspelt,
        place(1, 11) + r"env_file: line 2 of \S*/vars is no variable; write it as NAME=value",
        named_files_restored,
    ),
    Story(
        "a directory for the variables",
        variables_directory,
        place(1, 11) + r"env_file: cannot read the variables in \S*/vars: is a directory",
        variables_back,
    ),
]


@pytest.mark.parametrize("story", BROKEN, ids=lambda story: story.name)
def test_a_bad_save_is_told_and_harms_nothing(desk: Desk, story: Story) -> None:
    before = desk.instances()
    story.spoil(desk)
    problems = until(desk.problems, "the problem shows in status")
    assert re.match(f"{re.escape(str(desk.file))}{story.problem}", "\n".join(problems)), problems
    told = until(lambda: NOT_APPLIED in desk.told() and desk.told(), "it shows in events")
    assert told == [*problems, NOT_APPLIED]
    assert desk.cluster.status()["cluster"]["problems"] == problems
    assert "\n".join(f"  {one}" for one in problems) in desk.cluster.run("status").stdout
    lines = desk.cluster.run("events").stdout.splitlines()
    assert [line.partition(" file ")[2].strip() for line in lines][-len(told) :] == told
    done = desk.cluster.run("reload")
    assert (done.returncode, done.stderr, done.stdout) == (2, "\n".join(problems) + "\n", "")
    assert told == desk.told()  # once is enough
    assert desk.instances() == before
    assert all("secret" not in text for text in told)

    story.mend(desk)
    until(lambda: not desk.problems(), "it is mended")
    until(lambda: VALID_AGAIN in desk.told(), "that is told")
    assert desk.instances() == before
    desk.wait_for_mark()
    assert desk.instances() == before
    mended = desk.told()[len(told) :]
    assert [text for text in mended if text not in desk.nothing_to_do()] == [VALID_AGAIN]


def test_a_port_that_a_stranger_holds(desk: Desk) -> None:
    before = desk.instances()
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        port = stranger.getsockname()[1]
        top = f"web_server: {{port: {port}}}\ncontroller: {{port: {free_ports(1)[0]}}}\n"
        desk.save(top + GOOD)
        (problem,) = until(desk.problems, "the problem shows")
        assert f"{desk.file}:1:20: web_server.port: port {port} is in use by" in problem
        assert f"(pid {os.getpid()})" in problem
        assert problem in desk.told()
        done = desk.cluster.run("reload")
        assert (done.returncode, done.stderr) == (2, f"{problem}\n")
    assert desk.instances() == before
    desk.restore()
    until(lambda: not desk.problems(), "it is mended")
    desk.wait_for_mark()
    assert desk.instances() == before


def test_without_permission_nothing_breaks(desk: Desk) -> None:
    """Root may read it all the same; nobody else may."""
    before = desk.instances()
    desk.file.chmod(0)
    if os.geteuid() != 0:
        (problem,) = until(desk.problems, "the problem shows")
        assert problem == f"{desk.file}: cannot be read: Permission denied"
    else:
        assert desk.cluster.run("reload").returncode == 0
        assert desk.problems() == []
    assert desk.instances() == before
    desk.file.chmod(0o600)
    until(lambda: not desk.problems(), "it is mended")
    desk.wait_for_mark()
    assert desk.instances() == before


def test_one_problem_after_another_is_told_each(desk: Desk) -> None:
    before = desk.instances()
    desk.save("")
    until(lambda: "empty" in "".join(desk.problems()), "the first shows")
    desk.save(GOOD.replace("depends_on", "depend_on"))
    until(lambda: "depend_on" in "".join(desk.problems()), "the second shows")
    desk.clear()
    until(lambda: "no such file" in "".join(desk.problems()), "the third shows")
    desk.restore()
    until(lambda: not desk.problems(), "it is mended")
    assert desk.told().count(NOT_APPLIED) == 3
    assert desk.told()[-1] == VALID_AGAIN
    assert desk.instances() == before


def test_a_signal_tells_a_problem_that_is_known_once_only(desk: Desk) -> None:
    desk.save("")
    until(desk.problems, "the problem shows")
    assert desk.cluster.process is not None
    for _ in range(3):
        desk.cluster.process.send_signal(signal.SIGHUP)
    desk.restore()
    until(lambda: not desk.problems(), "it is mended")
    assert desk.told().count(NOT_APPLIED) == 1


# ---------------------------------------------------------------- saves that change nothing


def touched(desk: Desk) -> None:
    desk.file.touch()


def deleted_and_rewritten(desk: Desk) -> None:
    desk.file.unlink()
    desk.file.write_text(GOOD)


def moved_away_and_back(desk: Desk) -> None:
    desk.file.rename(desk.folder / "moved")
    (desk.folder / "moved").rename(desk.file)


def editors_files(desk: Desk) -> None:
    names = (".cluster.yaml.swp", "cluster.yaml~", "4913", "#cluster.yaml#", ".#cluster.yaml")
    for name in names:
        (desk.folder / name).write_text("services: {nobody: {command: [false]}}")
    for name in names:
        (desk.folder / name).unlink()


def backup_kept(desk: Desk) -> None:
    """vim with `backupcopy=yes`, and what sed -i does."""
    shutil.copy2(desk.file, desk.folder / "cluster.yaml.bak")
    desk.restore()


def linked(desk: Desk) -> None:
    (desk.folder / "sub").mkdir()
    (desk.folder / "sub" / "real.yaml").write_text(GOOD)
    link = desk.folder / "sub" / "link"
    link.symlink_to(desk.folder / "sub" / "real.yaml")
    link.replace(desk.file)


def saved_ten_times(desk: Desk) -> None:
    for _ in range(10):
        desk.restore()


HARMLESS: list[tuple[str, Callable[[Desk], None]]] = [
    ("touch", touched),
    ("the same again", Desk.restore),
    ("ten times", saved_ten_times),
    ("written in place", written_in_place(GOOD.encode())),
    ("deleted and rewritten", deleted_and_rewritten),
    ("moved away and back", moved_away_and_back),
    ("an editor's files beside it", editors_files),
    ("a backup beside it", backup_kept),
    ("a link to the same", linked),
    ("a mode", chmod(0o644)),
    ("a byte order mark", saved(b"\xef\xbb\xbf" + GOOD.encode())),
    ("Windows lines", saved(GOOD.replace("\n", "\r\n"))),
    ("no last line feed", saved(GOOD.rstrip("\n"))),
    ("comments", saved(f"# more\n\n{GOOD}# and more\n")),
    ("3 MB of comments", saved(GOOD + "# comment\n" * 300_000)),
    ("JSON style", saved(GOOD.replace("once:", '"once":'))),
    ("a variable with a default", saved(GOOD.replace("sleep", '"${NOT_SET_AT_ALL:-sleep}"'))),
    ("an anchor", saved(GOOD.replace("[sleep,", "[&s sleep,", 1).replace("[sleep,", "[*s ,"))),
    ("another order", saved(SERVICES + HEAD)),
]


@pytest.mark.parametrize("save", [one for _, one in HARMLESS], ids=[name for name, _ in HARMLESS])
def test_a_save_without_a_change_is_none(desk: Desk, save: Callable[[Desk], None]) -> None:
    before = desk.instances()
    save(desk)
    done = desk.cluster.run("reload")
    # A file that is away for a moment may be noticed; whatever else is noticed is no change.
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing has changed\n")
    desk.wait_for_mark()
    assert desk.instances() == before
    assert desk.problems() == []
    away = [text for text in desk.told() if "there is no such file" in text]
    expected = [*away, NOT_APPLIED, VALID_AGAIN] if away else []
    assert [text for text in desk.told() if text not in desk.nothing_to_do()] == expected


# ---------------------------------------------------------------- saves upon saves


def is_ready(desk: Desk, name: str) -> bool:
    return any(
        one["name"] == name and one["state"] == "ready" for one in desk.status()["instances"]
    )


def back_to_good(desk: Desk, before: dict[str, Any]) -> None:
    desk.restore()
    until(lambda: desk.instances() == before, "all is as before")
    assert desk.problems() == []


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "renamed"])
def test_of_two_saves_at_once_the_last_counts(desk: Desk, in_place: bool) -> None:
    before = desk.instances()
    for text in (SERVICES.replace("  last", "  first") + EXTRA, SERVICES + OTHER):
        if in_place:
            desk.file.write_text(HEAD + text)
        else:
            desk.save(HEAD + text)
    until(lambda: is_ready(desk, "other"), "the last one is applied")
    until(lambda: desk.status()["cluster"]["state"] == "ready", "all is as it should be")
    after = desk.instances()
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"other"}
    back_to_good(desk, before)


def test_of_many_saves_the_last_counts(desk: Desk) -> None:
    """Good ones, bad ones, and a file that is away in between."""
    before = desk.instances()
    for i in range(20):
        desk.save(GOOD + EXTRA.replace("1003", f"2{i:03}"))
        desk.save(GOOD[: -10 * i] if i else "")
        desk.clear()
    desk.save(GOOD + OTHER)
    until(lambda: is_ready(desk, "other"), "the last one is applied")
    until(lambda: desk.instances().keys() - before.keys() == {"other"}, "nothing else is left")
    after = desk.instances()
    assert {name: after[name] for name in RUNNING} == {name: before[name] for name in RUNNING}
    back_to_good(desk, before)


def test_a_file_that_is_being_written_is_not_read(desk: Desk) -> None:
    """The half of it is a valid file, too, with fewer services."""
    before = desk.instances()
    half = GOOD[: GOOD.index("  top:")]
    with desk.file.open("r+b") as stream:
        stream.truncate()
        stream.write(half.encode())
        stream.flush()
        os.fsync(stream.fileno())
        # Somebody looks meanwhile, which takes longer than a save takes to be noticed.
        assert desk.cluster.run("status").returncode == 0
        assert desk.instances() == before
        stream.write((GOOD[len(half) :] + OTHER).encode())
    until(lambda: is_ready(desk, "other"), "the whole is applied")
    after = desk.instances()
    assert {name: after[name] for name in before} == before
    stopped = [e for e in desk.events() if e["instance"] in before]
    assert stopped == []
    back_to_good(desk, before)


BULK = "x-bulk: [" + ", ".join(map(str, range(45_000))) + "]\n"
"""A valid file takes a while to be read with it."""


def test_a_save_during_another_reload(desk: Desk) -> None:
    before = desk.instances()
    desk.save(BULK + GOOD + EXTRA)
    with subprocess.Popen(
        [*COMMAND, "reload", "--no-wait", *desk.cluster.places],
        stdout=subprocess.DEVNULL,
        env=desk.cluster.environ,
        cwd=ROOT,
    ) as reload:
        desk.save(GOOD + OTHER)
        assert reload.wait(DEADLINE) == 0
    until(lambda: is_ready(desk, "other"), "the last one is applied")
    until(lambda: "extra" not in desk.instances(), "the first one is not")
    after = desk.instances()
    assert {name: after[name] for name in before} == before
    back_to_good(desk, before)


def test_reloads_at_once_do_it_once(desk: Desk) -> None:
    before = desk.instances()
    desk.save(GOOD + OTHER)
    reloads = [
        subprocess.Popen(
            [*COMMAND, "reload", *desk.cluster.places],
            stdout=subprocess.DEVNULL,
            env=desk.cluster.environ,
            cwd=ROOT,
        )
        for _ in range(4)
    ]
    assert [one.wait(DEADLINE) for one in reloads] == [0] * 4
    assert is_ready(desk, "other")
    started = [e for e in desk.events() if e["instance"] == "other" and e["state"] == "new"]
    assert len(started) == 1
    back_to_good(desk, before)


def test_the_whole_folder_is_moved_away_and_back(tmp_path: Path) -> None:
    """Or a mount that comes and goes."""
    folder = tmp_path / "etc"
    folder.mkdir()
    cluster = Cluster(tmp_path)
    cluster.file = folder / "cluster.yaml"
    cluster.write(SERVICES).up().ready()
    try:
        desk = Desk(cluster)
        before = desk.instances()
        folder.rename(tmp_path / "away")
        (problem,) = until(desk.problems, "the problem shows")
        assert problem == f"{cluster.file}: there is no such file; name one with -c FILE"
        (tmp_path / "away").rename(folder)
        until(lambda: not desk.problems(), "it is mended")
        assert desk.instances() == before
        cluster.write(SERVICES + OTHER)
        until(lambda: is_ready(desk, "other"), "it is still watched")
    finally:
        cluster.down()
