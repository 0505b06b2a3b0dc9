"""Hundreds of instances in one cluster: nothing is refused, nothing is lost, nobody complains."""

from __future__ import annotations

import os
import signal

from harness import DEADLINE, Cluster, until

MANY = 400
"""More deaths at once than the socket holds through which asyncio tells of signals."""
NAMES = [f"nap-{i:03}" for i in range(MANY)]


def test_hundreds_start_restart_die_and_stop(cluster: Cluster) -> None:
    one = "{command: [sleep, '100000'], restart: {stable_after: 0s}}"
    cluster.write("services:\n" + "".join(f"  {name}: {one}\n" for name in NAMES)).up().ready()
    first = cluster.pids()
    assert sorted(first) == NAMES

    restarted = cluster.run("restart", *NAMES)
    assert restarted.returncode == 0, restarted.stderr
    second = cluster.pids()
    assert sorted(second) == NAMES
    assert not set(first.values()) & set(second.values())

    for pid in second.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(second.values()) & set(cluster.pids().values()), "all were replaced")
    cluster.ready()
    third = cluster.pids()
    assert sorted(third) == NAMES

    assert cluster.run("reload").returncode == 0
    assert cluster.pids() == third

    assert cluster.process is not None
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(DEADLINE) == 0
    assert cluster.processes() == []
    assert "Exception" not in cluster.output.read_text()


def test_of_many_names_one_that_is_wrong_keeps_all_as_they_are(cluster: Cluster) -> None:
    cluster.write(
        "services: {one: {command: [sleep, '1000']}, two: {command: [sleep, '1000']}}"
    ).up().ready()
    before = cluster.pids()
    for verb in ("restart", "stop"):
        done = cluster.run(verb, "one", "wto", "two")
        assert done.returncode == 2
        assert "there is no service or instance 'wto'; there are: one, two" in done.stderr
    assert cluster.pids() == before
    assert cluster.run("restart", "one", "two", "one").returncode == 0
    assert not set(before.values()) & set(cluster.pids().values())
