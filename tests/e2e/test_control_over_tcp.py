"""The control API over TCP, as curl sees it, and the warnings of open doors, as people see them."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest
from certificates import make_certificate
from harness import Cluster, free_ports, until

TOKEN = "0123456789abcdef-of-a-test"


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def with_control(cluster: Cluster, port: int, more: str = "") -> Cluster:
    (cluster.folder / "token").write_text(TOKEN + "\n")
    (cluster.folder / "token").chmod(0o600)
    return cluster.write(f"""
services:
  one: {{command: [sleep, '1000']}}
control: {{port: {port}, token_file: token{more}}}
""")


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-sS", "-m", "60", *arguments], capture_output=True, text=True, check=False
    )


def events(cluster: Cluster) -> str:
    return cluster.run("events").stdout


def bearing(token: str = TOKEN) -> list[str]:
    return ["-H", f"Authorization: Bearer {token}"]


def test_who_has_the_token_may_do_what_the_command_line_can(cluster: Cluster, port: int) -> None:
    with_control(cluster, port).up().ready()
    until(lambda: f"the control API listens on 127.0.0.1:{port}" in events(cluster), "it listens")
    url = f"http://127.0.0.1:{port}"
    status = json.loads(curl(*bearing(), f"{url}/v1/status").stdout)
    assert [one["name"] for one in status["instances"]] == ["one"]
    pid = cluster.instance("one")["pid"]
    curl(*bearing(), "-X", "POST", f"{url}/v1/services/one/restart")
    until(lambda: cluster.instance("one")["pid"] not in (pid, None), "it is restarted")
    for given in ([], bearing("wrong"), ["-u", f"x:{TOKEN}"]):
        refused = curl(*given, "-i", f"{url}/v1/status").stdout
        assert refused.startswith("HTTP/1.1 401")
        assert refused.endswith('{"error": "unauthorized"}')
        assert "aiohttp" not in refused
    curl(*bearing(), "-X", "POST", f"{url}/v1/down")
    assert cluster.process is not None
    assert cluster.process.wait(60) == 0


def test_over_tls(cluster: Cluster, port: int) -> None:
    cert, _ = make_certificate(cluster.folder)
    with_control(cluster, port, ", tls_cert: tls.crt, tls_key: tls.key").up().ready()
    until(lambda: "the control API listens" in events(cluster), "it listens")
    trusting = ["--cacert", str(cert), f"https://127.0.0.1:{port}/v1/status"]
    assert '"name": "one"' in curl(*bearing(), *trusting).stdout
    assert "unauthorized" in curl(*trusting).stdout
    assert curl(*bearing(), f"http://127.0.0.1:{port}/v1/status").returncode != 0


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_without_a_private_token_nothing_starts(cluster: Cluster, port: int, mode: int) -> None:
    with_control(cluster, port)
    (cluster.folder / "token").chmod(mode)
    for verb in ("validate", "up"):
        done = cluster.run(verb)
        assert done.returncode == 2
        assert "control.token_file: others may read or write the token" in done.stderr
        assert done.stderr.startswith(f"{cluster.file}:4:")
        assert TOKEN not in done.stderr + done.stdout
    assert cluster.processes() == []


def test_a_port_that_is_taken_stops_nobody_and_is_told(cluster: Cluster, port: int) -> None:
    """Supervision comes first: the listener is opened when that is possible."""
    with socket.create_server(("127.0.0.1", port)):
        with_control(cluster, port).up().ready()
        until(
            lambda: (
                f"cannot listen on 127.0.0.1:{port}: port {port} is in use by" in events(cluster)
            ),
            "it is told",
        )
        assert cluster.instance("one")["state"] == "ready"
    until(lambda: f"the control API listens on 127.0.0.1:{port}" in events(cluster), "it listens")
    assert curl(*bearing(), f"http://127.0.0.1:{port}/v1/status").stdout


def test_a_door_in_a_running_file_waits_for_the_next_up(cluster: Cluster, port: int) -> None:
    with_control(cluster, port)
    text = cluster.file.read_text()
    cluster.write("watch: false\n" + text.partition("control:")[0]).up().ready()
    cluster.write("watch: false\n" + text)
    assert cluster.run("reload").returncode == 0
    until(lambda: "control changed: it counts when" in events(cluster), "it is told")
    assert curl(f"http://127.0.0.1:{port}/").returncode == 7  # refused
    assert cluster.run("upgrade").returncode == 0
    until(lambda: "the control API listens" in events(cluster), "it listens")


OPEN = """\
watch: false
services: {one: {command: [sleep, '1000']}}
controller: {host: 0.0.0.0}
"""


def test_what_stands_open_is_told_by_validate_up_and_a_reload(cluster: Cluster) -> None:
    closed = OPEN.partition("controller")[0]
    (controller,) = free_ports(1)
    wide = OPEN.replace("0.0.0.0}", f"0.0.0.0, port: {controller}}}")
    told = f"warning: {cluster.file}:3:20: controller.host: 0.0.0.0 is reached from other machines"
    cluster.write(wide)
    done = cluster.run("validate")
    assert done.returncode == 0
    assert done.stderr.startswith(told)
    assert "is valid: 2 services" in done.stdout
    cluster.write(closed)
    assert cluster.run("validate").stderr == ""
    cluster.up().ready()
    cluster.write(wide)
    for _ in range(2):  # told once, and not again with every save
        assert cluster.run("reload").returncode == 0
    assert events(cluster).count(f"warning: {cluster.file}:3:20") == 1
    assert cluster.run("down").returncode == 0
    assert cluster.process is not None
    cluster.process.wait()
    cluster.up().ready()
    assert told in cluster.output.read_text()


def test_an_upgrade_opens_the_listener_again(cluster: Cluster, port: int) -> None:
    with_control(cluster, port).up().ready()
    until(lambda: "the control API listens" in events(cluster), "it listens")
    (cluster.folder / "token").write_text("another-token-from-now-on\n")
    assert cluster.run("upgrade").returncode == 0
    url = f"http://127.0.0.1:{port}/v1/status"
    until(lambda: curl(*bearing("another-token-from-now-on"), url).stdout, "it listens again")
    assert "unauthorized" in curl(*bearing(), url).stdout
    assert Path(f"/proc/{cluster.instance('one')['pid']}").exists()
