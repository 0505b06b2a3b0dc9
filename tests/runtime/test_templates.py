"""Templates in trouble: what becomes of them, and of those that wait to be forked from them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from harness import ROOT, alive, die_with_parent, free_ports, until
from warm import Gate, House, at_start, template

from supervisor.core.instance import Template
from supervisor.core.lifecycle import Spawned, SpawnFailed, Stage
from supervisor.runtime import templates, tree
from supervisor.runtime.templates import Forked, Job


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    one = Gate(tmp_path)
    yield one
    one.close()


# ---------------------------------------------------------------- what is forked


def test_a_socket_that_is_dropped_while_the_template_imports_is_handed_over_all_the_same(
    house: House, gate: Gate
) -> None:
    """Its number is another file's by then, which must not get into anybody's hands."""
    port = free_ports(1)[0]
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spec = house.spec("one", template=kind, listen=("127.0.0.1", port))
            house.processes.spawn(spec, 1, lambda: house.output("one"), house.templates)
            await gate.reached()
            house.processes.keep_listening(())
            with contextlib.ExitStack() as stack:
                for _ in range(20):  # whatever number it had, it is a secret's now
                    secret = os.open(house.folder / "gate", os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, secret)
                gate.open()
                seen = await house.seen("one")
            assert [type(event) for _, event in house.told] == [Spawned]
            (number,) = set(seen["descriptors"]) - {"0", "1", "2"}
            assert bytes.fromhex(seen["environment"]["LLM_SUPERVISOR_LISTEN_FD"]).decode() == number
            assert seen["descriptors"][number][0].startswith("socket:")
            socket.create_connection(("127.0.0.1", port)).close()
            assert len(house.started) == 1

    warm.run(story)


def test_no_free_descriptor_does_not_keep_a_process_from_being_forked(house: House) -> None:
    """The reserve is enough for it, and the template is not to blame."""
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await house.ready(kind)
            with no_free_descriptor():
                await house.warm(house.spec("one", template=kind))
            await house.seen("one")
            assert len(house.started) == 1

    warm.run(story)


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield


# ---------------------------------------------------------------- a template that does not answer


@pytest.mark.parametrize("when", ["idle", "importing"])
def test_one_that_somebody_has_stopped_goes_on_when_it_is_needed(
    house: House, gate: Gate, when: str
) -> None:
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await gate.reached()
            if when == "idle":
                gate.open()
                await house.ready(kind)
            os.kill(house.started[0], signal.SIGSTOP)
            gate.open()
            await house.warm(house.spec("one", template=kind))
            await house.seen("one")
            assert len(house.started) == 1

    warm.run(story)


def test_one_that_does_not_answer_is_replaced_and_the_process_is_started_cold(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(templates, "_FORK_PATIENCE", 0.2)
    hang = tmp_path / "hang"
    code = f"""
        if is_template:
            import time
            def hang():
                while os.path.exists({str(hang)!r}):
                    time.sleep(0.01)
            os.register_at_fork(before=hang)
    """
    kind = template(**at_start(tmp_path / "faults", code))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            first = await house.ready(kind)
            hang.touch()
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"
            hang.unlink()
            await house.seen("one")
            await warm.until(lambda: not alive(first))
            await house.ready(kind)
            await house.warm(house.spec("two", template=kind))
            assert (await house.seen("two"))["parent"] == os.getpid()

    warm.run(story)
    assert "one is started cold: it has not answered for 0.2 s" in caplog.text


def test_one_that_says_what_nobody_understands_is_done_without(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "nonsense.py"
    script.write_text(
        "import os, socket\n"
        "channel = socket.socket(fileno=int(os.environ['LLM_SUPERVISOR_TEMPLATE']))\n"
        "channel.send(b'[]')\n"
        "channel.recv(1)\n"
    )
    kind = replace(template(), argv=(sys.executable, str(script)))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"

    warm.run(story)
    assert "one is started cold: it says what nobody understands" in caplog.text


# ---------------------------------------------------------------- a stop


def test_what_is_stopped_while_its_template_imports_never_begins(house: House, gate: Gate) -> None:
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            house.processes.spawn(
                house.spec("one", template=kind), 1, lambda: house.output("one"), house.templates
            )
            await gate.reached()
            house.processes.signal("one", Stage.TERM)
            await warm.until(lambda: house.told)
            assert [type(event) for _, event in house.told] == [SpawnFailed]
            gate.open()
            await house.warm(house.spec("two", template=kind))
            assert not house.seen_file("one").exists()
            assert len(house.started) == 1

    warm.run(story)


# ---------------------------------------------------------------- as a start that is cold


def test_a_working_directory_that_is_gone_is_told_as_for_any_start(
    house: House, tmp_path: Path
) -> None:
    kind = template()
    cwd = tmp_path / "gone"

    async def story() -> list[SpawnFailed | Spawned]:
        async with house.open():
            house.templates.keep([kind])
            spec = house.spec("one", template=kind, cwd=str(cwd))
            return [await house.spawn(one) for one in (spec, replace(spec, template=None))]

    forked, started = warm.run(story)
    assert isinstance(forked, SpawnFailed)
    assert forked == started
    assert f"its working directory {cwd} does not exist" in forked.cause


def test_its_output_is_opened_once_also_if_it_is_started_cold_in_the_end(
    house: House, tmp_path: Path
) -> None:
    """With each opening the log says that it is being started."""
    opened: list[str] = []
    kind = replace(template(), argv=("/bin/false",))

    def output() -> int:
        opened.append("one")
        return house.output("one")

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spec = house.spec("one", template=kind, secret_input=b"secret")
            house.processes.spawn(spec, 1, output, house.templates)
            assert (await house.seen("one"))["stdin"] == "secret"

    warm.run(story)
    assert opened == ["one"]


# ---------------------------------------------------------------- templates that come and go


def test_one_that_is_killed_while_idle_is_replaced_and_concerns_nobody(house: House) -> None:
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            pid = await house.warm(house.spec("one", template=kind))
            os.kill(await house.ready(kind), signal.SIGKILL)
            await warm.until(lambda: len(house.started) == 2)
            assert await house.ready(kind) == house.started[1]
            await house.warm(house.spec("two", template=kind))
            assert alive(pid)
            assert [type(event) for _, event in house.told] == [Spawned, Spawned]

    warm.run(story)


def test_one_that_is_killed_while_it_imports_leaves_nobody_waiting(
    house: House, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    kind = template(**gate.env)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            waiting = asyncio.create_task(house.spawn(house.spec("one", template=kind)))
            await gate.reached()
            gate.open()
            os.kill(house.started[0], signal.SIGKILL)
            spawned = await waiting
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"
            await house.seen("one")
            await house.ready(kind)  # it is tried again by itself
            await house.warm(house.spec("two", template=kind))

    warm.run(story)
    assert "one is started cold: it has ended" in caplog.text


def test_one_that_is_killed_in_the_middle_of_a_fork_leaves_nothing_half_done(
    house: House, tmp_path: Path
) -> None:
    """Before the second fork, and after: what it has forked then waits for nobody, and ends."""
    where = tmp_path / "where"
    code = f"""
        if is_template:
            import signal
            def die(place):
                try:
                    with open({str(where)!r}) as file:
                        wanted, template = file.read().split()
                except FileNotFoundError:
                    return
                if wanted == place + str(os.getpid() == int(template)):
                    os.unlink({str(where)!r})
                    os.kill(int(template), signal.SIGKILL)
            os.register_at_fork(before=lambda: die("before"), after_in_parent=lambda: die("after"))
    """
    kind = template(**at_start(tmp_path / "faults", code))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            for i, place in enumerate(["beforeTrue", "afterTrue", "beforeFalse", "afterFalse"]):
                pid = await house.ready(kind)
                where.with_suffix(".part").write_text(f"{place} {pid}")
                where.with_suffix(".part").rename(where)
                name = f"instance-{i}"
                spawned = await house.spawn(house.spec(name, template=kind))
                assert isinstance(spawned, Spawned)
                assert not where.exists(), "it was not killed"
                seen = await house.seen(name)
                assert seen["pid"] == spawned.pid
                mark = f"{warm.MARK}/{name}"
                others = {spawned.pid}
                await warm.until(
                    lambda mark=mark, others=others: (
                        {one for one, known in tree.marked(mark).items() if known == mark} == others
                    )
                )

    warm.run(story)


def test_one_that_cannot_import_what_it_needs_is_done_without_and_says_why(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = "if is_template: sys.modules['uvicorn'] = None"
    kind = template(**at_start(tmp_path / "faults", code))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"
            await house.seen("one")
            (sight,) = house.templates.look()
            assert (sight.state, sight.pid) == ("failed", None)

    warm.run(story)
    assert "one is started cold: it has ended; server~template.log says why" in caplog.text
    assert "uvicorn" in house.log("server~template")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(1e6,), name='rogue', daemon=True).start()",
            "an import has started threads (rogue)",
        ),
        (
            "import ctypes\n"
            "libc = ctypes.CDLL(None)\n"
            "libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)",
            "a library has started 1 threads",
        ),
        (
            "import types\n"
            "torch = types.ModuleType('torch')\n"
            "torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)\n"
            "sys.modules['torch'] = torch",
            "an import has touched CUDA",
        ),
        (  # as torch is after it has counted its devices with the driver's help
            "import types\n"
            "torch = types.ModuleType('torch')\n"
            "torch.cuda = types.SimpleNamespace(\n"
            "    is_initialized=lambda: False,\n"
            "    _is_in_bad_fork=lambda own=os.getpid(): os.getpid() != own,\n"
            ")\n"
            "sys.modules['torch'] = torch",
            "an import has touched CUDA",
        ),
    ],
)
def test_one_whose_copies_could_not_work_is_not_copied(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: str, why: str
) -> None:
    indented = textwrap.indent(code, "    ")
    kind = template(**at_start(tmp_path / "faults", f"if is_template:\n{indented}"))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"

    warm.run(story)
    assert f"one is started cold: {why}" in caplog.text


def test_one_is_not_copied_either_when_a_models_own_module_starts_threads(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = template(**at_start(tmp_path / "faults", ""))
    models = tmp_path / "faults" / "transformers" / "models"
    models.mkdir(parents=True)
    for module, code in {
        "../__init__": "",
        "auto/configuration_auto": "def model_type_to_module_name(kind): return kind",
        "rogue/modeling_rogue": (
            "import ctypes\n"
            "libc = ctypes.CDLL(None)\n"
            "libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)"
        ),
    }.items():
        (models / module).parent.mkdir(parents=True, exist_ok=True)
        (models / f"{module}.py").write_text(code)
    (tmp_path / "config.json").write_text('{"model_type": "rogue"}')

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await house.warm(house.spec("one", template=kind))
            spec = house.spec("two", "--", "--model-path", str(tmp_path), template=kind)
            spawned = await house.spawn(spec)
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"

    warm.run(story)
    assert "two is started cold: a library has started 1 threads" in caplog.text


def test_a_package_that_changes_on_disk_is_the_new_one_at_the_next_start(
    house: House, tmp_path: Path
) -> None:
    env = at_start(tmp_path / "packages", "import mine")
    module, script = tmp_path / "packages" / "mine.py", tmp_path / "says.py"
    script.write_text("import mine\nprint('version', mine.VERSION, flush=True)\n")
    kind = template(**env, PYTHONDONTWRITEBYTECODE="1")

    async def version(name: str) -> str:
        spec = house.spec(name, template=kind)
        await house.warm(replace(spec, argv=(sys.executable, str(script))))
        await house.exited(name)
        return house.log(name)

    async def story() -> None:
        async with house.open():
            module.write_text("VERSION = 1\n")
            house.templates.keep([kind])
            assert await version("one") == "version 1\n"
            assert await version("two") == "version 1\n"
            assert len(house.started) == 1
            module.write_text("VERSION = 'two'\n")
            assert await version("three") == "version two\n"
            (tmp_path / "packages" / "other-1.0.dist-info").mkdir()  # as pip makes it
            assert await version("four") == "version two\n"
            assert len(house.started) == 3

    warm.run(story)


def test_packages_that_keep_changing_are_no_reason_to_wait_for_ever(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = at_start(tmp_path / "packages", "import mine")
    module = tmp_path / "packages" / "mine.py"
    code = f"""
        import mine
        if is_template:  # whatever is imported is another one when it is asked
            import gc
            gc.callbacks.append(lambda *_: open({str(module)!r}, "a").write("# more\\n"))
    """
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import os, sys\nis_template = sys.orig_argv[1].endswith('template.py')\n"
        + textwrap.dedent(code)
    )
    kind = template(**env)

    async def story() -> None:
        async with house.open():
            module.write_text("VERSION = 1\n")
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"

    warm.run(story)
    assert "one is started cold: the packages for server processes keep changing" in caplog.text


def test_what_is_not_needed_any_more_ends_and_another_environment_is_another_one(
    house: House,
) -> None:
    first, second = template(), template(SOME="VALUE")

    async def story() -> None:
        async with house.open():
            house.templates.keep([first])
            pid = await house.warm(house.spec("one", template=first))
            old = await house.ready(first)
            house.templates.keep([second])
            await warm.until(lambda: not alive(old))
            spawned = await house.spawn(house.spec("two", template=first))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"  # nobody wants it, so nobody waits for it
            await house.warm(house.spec("three", template=second))
            assert (await house.seen("three"))["environment"]["SOME"] == b"VALUE".hex()
            house.templates.keep([first, second])
            await house.warm(house.spec("four", template=first))
            assert len({one.name for one in house.templates.look()}) == 2
            house.templates.keep(())
            await warm.until(lambda: not any(map(alive, house.started)))
            assert alive(pid)
            assert house.templates.look() == []

    warm.run(story)


def test_all_that_was_ever_started_has_ended_when_templates_are_closed(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever looks for what is left would find, and name, what only has not been reaped yet."""
    caplog.set_level(logging.INFO)

    async def story() -> None:
        async with house.open():
            house.templates.keep([template(SOME="VALUE"), template()])
            await house.templates.close()
            assert not any(tree.stat_of(pid) for pid in house.started)
            house.templates.keep([template()])
            house.templates.keep([])
            await house.templates.close()
            assert not any(tree.stat_of(pid) for pid in house.started)

    warm.run(story)
    assert "killing what is left" not in caplog.text


# ---------------------------------------------------------------- forked processes in trouble


def test_what_is_killed_before_it_may_begin_is_started_cold(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = template()
    fork = house.templates.fork

    async def fork_and_kill(template: Template, job: Job) -> Forked:
        forked = await fork(template, job)
        os.kill(forked.pid, signal.SIGKILL)
        await warm.until(lambda: tree.stat_of(forked.pid) is None)  # and reaped as nobody's
        return forked

    monkeypatch.setattr(house.templates, "fork", fork_and_kill)

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            spawned = await house.spawn(house.spec("one", template=kind))
            assert isinstance(spawned, Spawned)
            assert spawned.how == "started"
            assert (await house.seen("one"))["pid"] == spawned.pid
            assert len(house.started) == 1

    warm.run(story)


def test_what_is_killed_just_before_it_begins_is_a_crash(house: House) -> None:
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await house.ready(kind)
            forked = await house.templates.fork(kind, house.job())
            os.kill(forked.pid, signal.SIGKILL)
            await warm.until(lambda: tree.stat_of(forked.pid) is None)
            forked.begin()

    warm.run(story)


def test_what_may_not_begin_ends(house: House) -> None:
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            await house.ready(kind)
            forked = await house.templates.fork(kind, house.job())
            mark = f"{warm.MARK}/one"
            await warm.until(lambda: tree.mark_of(forked.pid) == mark)
            assert not house.seen_file("one").exists()
            forked.drop()
            await warm.until(lambda: tree.stat_of(forked.pid) is None)
            assert not house.seen_file("one").exists()

    warm.run(story)


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
import warm

async def story():
    house = warm.House(Path(sys.argv[1]))
    async with house.open():
        kind = warm.template()
        house.templates.keep([kind])
        forked = await house.templates.fork(kind, house.job())
        print(*house.started, forked.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(story())
"""


def test_a_supervisor_that_is_killed_before_a_process_begins_leaves_nothing(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        preexec_fn=die_with_parent,
    )
    assert supervisor.stdout is not None
    with supervisor.stdout as output:
        pids = [int(word) for word in output.readline().split()]
        assert len(pids) == 2
        supervisor.kill()
        supervisor.wait()
    until(lambda: not any(map(alive, pids)), "both have ended")
    assert not (tmp_path / "one.json").exists()


# ---------------------------------------------------------------- many


def test_fifty_forks_leave_no_descriptor_open(house: House) -> None:
    kind = template()

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            pid = await house.ready(kind)
            counts = []
            for i in range(51):
                secret = f"secret {i}".encode() * 1000
                spec = house.spec("one", template=kind, secret_input=secret)
                house.seen_file("one").unlink(missing_ok=True)
                process = await house.warm(spec, run=i + 1)
                seen = await house.seen("one")
                assert seen["descriptors"].keys() == {"0", "1", "2"}
                os.kill(process, signal.SIGKILL)
                await house.exited("one", i + 1)
                await warm.until(lambda: not house.processes.tree_of("one"))
                counts.append([len(os.listdir(f"/proc/{one}/fd")) for one in (os.getpid(), pid)])
            assert counts[0] == counts[-1]
            assert len(house.started) == 1
            assert tree.children(pid) == []

    warm.run(story)


def test_twenty_at_once_are_twenty_different_ones(house: House) -> None:
    """Also those that ask while the template still imports."""
    kind = template()
    names = [f"one-{i}" for i in range(20)]

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            pids = await asyncio.gather(
                *(house.warm(house.spec(name, template=kind)) for name in names)
            )
            assert len(set(pids)) == 20
            seen = [await house.seen(name) for name in names]
            assert [one["pid"] for one in seen] == pids
            marks = [tree.mark_of(pid) for pid in pids]
            assert marks == [f"{warm.MARK}/{name}" for name in names]
            assert len({one["drawn"]["random"] for one in seen}) == 20
            assert len(house.started) == 1

    warm.run(story)


def test_when_it_is_told_it_is_all_that_it_has_to_be(house: House, tmp_path: Path) -> None:
    """Who signals its group at once must find one, and who looks into /proc, its own mark: also
    where it has had no processor until then."""
    told = tmp_path / "told"
    code = f"""
        if is_template:
            import time
            template = os.getpid()
            def dawdle():
                for _ in range(100):
                    if os.getppid() != template and not os.path.exists({str(told)!r}):
                        time.sleep(0.01)
            os.register_at_fork(after_in_child=dawdle)
    """
    kind = template(**at_start(tmp_path / "faults", code))

    async def story() -> None:
        async with house.open():
            house.templates.keep([kind])
            pid = await house.warm(house.spec("one", template=kind))
            assert os.getpgid(pid) == pid
            assert tree.mark_of(pid) == f"{warm.MARK}/one"
            house.processes.signal("one", Stage.TERM)
            told.touch()
            assert (await house.exited("one")).signal == "SIGTERM"

    warm.run(story)
