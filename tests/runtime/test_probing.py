"""Probes ask real servers, and "failed" is not "could not be asked"."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import resource
import socket
import time

import aiohttp
import pytest
from aiohttp import web
from harness import DEADLINE, free_ports
from instances import instance

from supervisor.core.instance import (
    Ask,
    Probe,
    Question,
    Startup,
)
from supervisor.core.lifecycle import Check, Outcome, Probed
from supervisor.core.probing import blame
from supervisor.runtime.asking import askers
from supervisor.runtime.probing import Prober
from supervisor.runtime.processes import Processes

SPEC = instance("one", env=(("WHO", "me"),), startup=None, readiness=None, liveness=None)


def ask(question, timeout=5.0):
    """The answer to one question, asked by the real thing."""

    async def main():
        processes = Processes("test", os.environ, lambda *_: None)
        processes.prepare()
        processes.start()
        async with aiohttp.ClientSession() as session:
            return await askers(session, processes)[question.ask](SPEC, question, timeout)

    return asyncio.run(main())


def ask_server(path, timeout=5.0):
    """Ask a web server that answers /ok, refuses /bad, and never answers /slow."""

    async def main():
        async def bad(_):
            return web.Response(status=503)

        async def ok(_):
            return web.Response(text="fine")

        async def slow(_):
            await asyncio.Event().wait()

        app = web.Application()
        app.router.add_get("/ok", ok)
        app.router.add_get("/bad", bad)
        app.router.add_get("/slow", slow)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        processes = Processes("test", os.environ, lambda *_: None)
        async with aiohttp.ClientSession() as session:
            question = Question(Ask.HTTP, (f"http://127.0.0.1:{port}{path}",))
            answer = await askers(session, processes)[Ask.HTTP](SPEC, question, timeout)
        await runner.cleanup()
        return answer

    return asyncio.run(main())


def test_http_passes_below_400_and_fails_above():
    assert ask_server("/ok")[0] is Outcome.PASSED
    outcome, detail = ask_server("/bad")
    assert outcome is Outcome.FAILED
    assert "HTTP 503" in detail


def test_http_without_an_answer_fails():
    outcome, detail = ask_server("/slow", timeout=0.05)
    assert outcome is Outcome.FAILED
    assert "no answer to http within 0.05 s" in detail


def test_a_refused_connection_fails():
    (port,) = free_ports(1)
    for question in (
        Question(Ask.TCP, (f"127.0.0.1:{port}",)),
        Question(Ask.HTTP, (f"http://127.0.0.1:{port}/",)),
    ):
        assert ask(question)[0] is Outcome.FAILED


def test_an_accepted_connection_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        question = Question(Ask.TCP, (f"127.0.0.1:{server.getsockname()[1]}",))
        assert ask(question)[0] is Outcome.PASSED


def test_a_command_is_judged_by_its_exit_status_and_has_the_instances_environment():
    assert ask(Question(Ask.COMMAND, ("sh", "-c", 'test "$WHO" = me')))[0] is Outcome.PASSED
    assert ask(Question(Ask.COMMAND, ("false",)))[0] is Outcome.FAILED


def test_a_command_that_takes_too_long_fails_and_is_killed(tmp_path):
    script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
    outcome, _ = ask(Question(Ask.COMMAND, ("sh", "-c", script)), timeout=0.3)
    assert outcome is Outcome.FAILED


def test_what_cannot_be_run_could_not_be_asked():
    outcome, detail = ask(Question(Ask.COMMAND, ("/nonexistent",)))
    assert outcome is Outcome.UNASKED
    assert "/nonexistent" in detail


def test_without_descriptors_nothing_could_be_asked():
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"127.0.0.1:{server.getsockname()[1]}"

        async def main():
            processes = Processes("test", os.environ, lambda *_: None)
            async with aiohttp.ClientSession() as session:
                asker = askers(session, processes)[Ask.TCP]
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    return await asker(SPEC, Question(Ask.TCP, (target,)), 5.0)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert asyncio.run(main())[0] is Outcome.UNASKED


def test_a_port_that_no_machine_has_ends_no_probe(caplog):
    """asyncio raises OverflowError, which nobody had thought of; it is asked again all the same."""
    probe = Probe(Question(Ask.TCP, ("127.0.0.1:70000",)), 0.001, 1.0)
    spec = dataclasses.replace(SPEC, readiness=probe)
    reports = []

    async def main():
        processes = Processes("test", os.environ, lambda *_: None)
        enough = asyncio.Event()

        def report(_, probed):
            reports.append(probed)
            if len(reports) == 3:
                enough.set()

        async with aiohttp.ClientSession() as session:
            prober = Prober(askers(session, processes), report)
            prober.start(spec, 1, (Check.READINESS,))
            async with asyncio.timeout(DEADLINE):
                await enough.wait()
            await prober.close()

    asyncio.run(main())
    assert {report.outcome for report in reports} == {Outcome.UNASKED}
    assert "OverflowError" in reports[0].detail


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EADDRNOTAVAIL])
def test_what_we_lack_is_nobody_elses_fault(number):
    outcome, text = blame(OSError(number, os.strerror(number)))
    assert (outcome, text) == (Outcome.UNASKED, os.strerror(number))


def test_what_has_no_number_is_the_fault_of_the_one_asked():
    assert blame(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))[0] is Outcome.FAILED
    assert blame(ValueError("nonsense")) == (Outcome.FAILED, "nonsense")
    assert blame(aiohttp.ServerTimeoutError()) == (Outcome.FAILED, "ServerTimeoutError")


# ---------------------------------------------------------------- the prober


@pytest.fixture
def story():
    """Scripted answers to questions, and the reports that come of them."""

    class Story:
        def __init__(self):
            self.answers = {}
            self.reports: list[Probed] = []

        async def asker(self, spec, question, timeout):
            queue = self.answers[question.target[0]]
            return (queue.pop(0) if len(queue) > 1 else queue[0]), "said"

        def run(self, spec, checks, enough):
            async def main():
                done = asyncio.Event()

                def report(_, probed):
                    self.reports.append(probed)
                    if enough(self.reports):
                        done.set()

                prober = Prober({Ask.HTTP: self.asker}, report)
                prober.start(spec, 7, checks)
                await done.wait()
                await prober.close()

            asyncio.run(main())
            return [report.outcome for report in self.reports]

    return Story()


def test_startup_asks_every_question_in_order_and_reports_the_last_pass(story):
    passed, failed = Outcome.PASSED, Outcome.FAILED
    story.answers = {"first": [failed, failed, passed], "second": [passed]}
    questions = (Question(Ask.HTTP, ("first",)), Question(Ask.HTTP, ("second",)))
    spec = dataclasses.replace(SPEC, startup=Startup(questions, 0.001, 1.0, 10.0))
    outcomes = story.run(spec, (Check.STARTUP,), lambda r: r[-1].outcome is passed)
    assert outcomes == [failed, failed, passed]
    assert {report.run for report in story.reports} == {7}


def test_readiness_is_asked_again_and_again(story):
    story.answers = {"ready": [Outcome.PASSED]}
    probe = Probe(Question(Ask.HTTP, ("ready",)), 0.001, 1.0, 3)
    spec = dataclasses.replace(SPEC, readiness=probe)
    outcomes = story.run(spec, (Check.READINESS, Check.LIVENESS), lambda r: len(r) >= 5)
    assert outcomes == [Outcome.PASSED] * len(outcomes)
    assert {report.check for report in story.reports} == {Check.READINESS}


def test_a_defect_of_an_asker_is_told_once_and_asked_again(caplog):
    """One log line for a row of equal misfortunes, and another one after it has worked."""
    script = [KeyError("x"), KeyError("x"), Outcome.PASSED, KeyError("x"), Outcome.PASSED]

    async def asker(spec, question, timeout):
        now = script.pop(0) if script else Outcome.PASSED
        if isinstance(now, Exception):
            raise now
        return now, "said"

    reports = []

    async def main():
        enough = asyncio.Event()

        def report(_, probed):
            reports.append(probed)
            if len(reports) == 5:
                enough.set()

        prober = Prober({Ask.HTTP: asker}, report)
        probe = Probe(Question(Ask.HTTP, ("ready",)), 0.001, 1.0)
        prober.start(dataclasses.replace(SPEC, readiness=probe), 1, (Check.READINESS,))
        async with asyncio.timeout(DEADLINE):
            await enough.wait()
        await prober.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    unasked, passed = Outcome.UNASKED, Outcome.PASSED
    assert [r.outcome for r in reports[:5]] == [unasked, unasked, passed, unasked, passed]
    assert "KeyError('x')" in reports[0].detail
    assert len([record for record in caplog.records if record.exc_info]) == 2


@pytest.mark.parametrize(
    ("held_up", "expected"), [(0.0, Outcome.FAILED), (1.0, Outcome.UNASKED)], ids=["here", "away"]
)
def test_silence_while_we_were_held_up_ourselves_is_held_against_nobody(held_up, expected):
    """The whole process was suspended, so that its timeout came long after its time."""

    async def silent(spec, question, timeout):
        await asyncio.sleep(timeout)
        time.sleep(held_up)  # noqa: ASYNC251  (that nothing else runs is the point)
        return Outcome.FAILED, "no answer"

    async def main():
        answers = asyncio.Queue()
        prober = Prober({Ask.STATUS: silent}, lambda _, probed: answers.put_nowait(probed))
        probe = Probe(Question(Ask.STATUS), interval=0.001, timeout=0.01)
        prober.start(dataclasses.replace(SPEC, liveness=probe), 1, (Check.LIVENESS,))
        async with asyncio.timeout(DEADLINE):
            answer = await answers.get()
        await prober.close()
        return answer

    assert asyncio.run(main()).outcome is expected


def test_a_long_timeout_that_passes_is_a_failure_and_no_lateness_of_ours():
    """aiohttp lets timeouts of over 5 s end at a whole second, unless it is told otherwise."""

    async def main():
        def silent(_reader, writer):
            silents.append(writer)

        silents, answers = [], asyncio.Queue()
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        processes = Processes("test", os.environ, lambda *_: None)
        async with aiohttp.ClientSession() as session:
            asking = askers(session, processes)
            prober = Prober(asking, lambda _, probed: answers.put_nowait(probed))
            probe = Probe(Question(Ask.HTTP, (url,)), interval=0.001, timeout=5.1)
            clock = asyncio.get_running_loop().time
            while not 0.0 < clock() % 1 < 0.5:  # it would be rounded up by 0.4 s and more
                await asyncio.sleep(0.01)
            prober.start(dataclasses.replace(SPEC, liveness=probe), 1, (Check.LIVENESS,))
            async with asyncio.timeout(DEADLINE):
                answer = await answers.get()
            await prober.close()
        for writer in silents:
            writer.close()
        server.close()
        return answer

    assert asyncio.run(main()).outcome is Outcome.FAILED
