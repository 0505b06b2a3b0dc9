"""From the file to instances: names, GPUs, addresses, ports, environments, dependencies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from writer import Writer

from supervisor.core.instance import Ask, InstanceSpec, Progress, Question, Role
from supervisor.fastchat import roles
from supervisor.fastchat.gpus import deal
from supervisor.spec.model import WORKER_KINDS


def expand(
    folder: Path, text: str, environ: dict[str, str] | None = None
) -> dict[str, InstanceSpec]:
    writer = Writer(folder)
    file = writer.load(text)
    ports = {name: 21100 + i for i, name in enumerate(roles.without_port(file.cluster))}
    return roles.expand(file, ports, environ or {})


def env(spec: InstanceSpec) -> dict[str, str]:
    return dict(spec.env)


# ---------------------------------------------------------------- names


def test_workers_are_numbered_and_the_rest_keeps_its_name(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        workers:
          owl: {model_path: x, replicas: 2}
          fox: {model_path: x, model_names: [fox-1b, gpt-4]}
          off: {model_path: x, enabled: false}
          none: {model_path: x, replicas: 0}
        api_server: {}
        web_server: {}
        services: {page: {command: [serve]}, later: {command: [x], enabled: false}}
        """,
    )
    assert {name: (spec.service, spec.role) for name, spec in specs.items()} == {
        "controller": ("controller", Role.CONTROLLER),
        "owl-0": ("owl", Role.WORKER),
        "owl-1": ("owl", Role.WORKER),
        "fox-0": ("fox", Role.WORKER),
        "api_server": ("api_server", Role.API_SERVER),
        "web_server": ("web_server", Role.WEB_SERVER),
        "page": ("page", Role.COMMAND),
    }
    assert specs["owl-1"].models == ("owl",)
    assert specs["fox-0"].models == ("fox-1b", "gpt-4")


def test_a_worker_of_several_models_serves_all_their_names(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(
        json.dumps(
            {
                "meta/llama": {"model_path": "x"},
                "b": {"model_names": ["c", "d"]},
                "e": {"model_names": "f"},
            }
        )
    )
    specs = expand(
        tmp_path,
        """
        workers:
          some:
            kind: multi_model_worker
            models:
              - {model_path: x, model_names: [a, b]}
              - {model_path: y, model_names: [c]}
          api: {kind: huggingface_api_worker, model_info_file: info.json}
        """,
    )
    assert specs["some-0"].models == ("a", "b", "c")
    assert specs["api-0"].models == ("llama", "c", "d", "f")  # as FastChat names them


@pytest.mark.parametrize("content", ["", "[]", "3", '{"a": 1}', '{"a": {}'])
def test_a_broken_file_of_models_is_for_fastchat_to_complain_about(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "info.json").write_text(content)
    text = "workers: {api: {kind: huggingface_api_worker, model_info_file: info.json}}"
    assert expand(tmp_path, text)["api-0"].models == ("api",)


def test_every_kind_has_a_module_to_start_it_with() -> None:
    modules = {*WORKER_KINDS, "controller", "openai_api_server", "gradio_web_server"}
    assert [name for name in modules if not (roles.ENTRY / f"{name}.py").is_file()] == []


# ---------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ("gpus: [0, 1, 2, 3], replicas: 2", ["0,1", "2,3"]),
        ("gpus: [0, 1], replicas: 2", ["0", "1"]),
        ("gpus: [0], replicas: 2", ["0", "0"]),
        ("gpus: [5], replicas: 1", ["5"]),
        ("gpus: [0, 1, 2], num_gpus: 2, replicas: 2", ["0,1", "2,0"]),
        ("gpus: [3, 1], replicas: 1", ["3,1"]),
        ("gpus: [GPU-aa, MIG-b/1], replicas: 2", ["GPU-aa", "MIG-b/1"]),
        ("device: cpu, replicas: 2", ["", ""]),
    ],
)
def test_each_instance_sees_its_own_gpus(tmp_path: Path, options: str, seen: list[str]) -> None:
    specs = expand(tmp_path, f"workers: {{owl: {{model_path: x, {options}}}}}")
    workers = [spec for spec in specs.values() if spec.role is Role.WORKER]
    assert [env(spec)["CUDA_VISIBLE_DEVICES"] for spec in workers] == seen
    assert [",".join(spec.gpus) for spec in workers] == seen


@given(gpus=st.lists(st.integers(0, 15), min_size=1, max_size=8, unique=True), data=st.data())
def test_gpus_are_dealt_fairly(gpus: list[int], data: st.DataObject) -> None:
    share = data.draw(st.integers(1, len(gpus)))
    replicas = data.draw(st.integers(1, 9))
    hands = [deal(gpus, share, i) for i in range(replicas)]
    assert all(len(set(hand)) == share for hand in hands)
    uses = [sum(str(gpu) in hand for hand in hands) for gpu in gpus]
    assert max(uses) - min(uses) <= 1
    if share * replicas <= len(gpus):
        assert max(uses) == 1


def test_gpus_are_counted_as_nvidia_smi_counts_them(tmp_path: Path) -> None:
    spec = expand(tmp_path, "workers: {owl: {model_path: x, gpus: [1]}}")["owl-0"]
    assert env(spec)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_other_accelerators(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        workers:
          npu: {model_path: x, device: npu, gpus: [1]}
          mac: {model_path: x, device: mps}
          all: {model_path: x}
        """,
    )
    assert env(specs["npu-0"])["ASCEND_RT_VISIBLE_DEVICES"] == "1"
    for name in ("npu-0", "mac-0", "all-0"):
        assert "CUDA_VISIBLE_DEVICES" not in env(specs[name])


# ---------------------------------------------------------------- addresses and ports


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("localhost", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("'::'", "http://[::1]:9000"),
        ("'fd00::1'", "http://[fd00::1]:9000"),
        ("10.0.0.2", "http://10.0.0.2:9000"),
        ("gpu-box", "http://gpu-box:9000"),
    ],
)
def test_the_address_follows_host_and_port(tmp_path: Path, host: str, address: str) -> None:
    text = f"workers: {{owl: {{model_path: x, host: {host}, port: 9000}}}}"
    spec = expand(tmp_path, text)["owl-0"]
    assert spec.address == address
    assert spec.argv[spec.argv.index("--worker-address") + 1] == address
    assert spec.argv[spec.argv.index("--host") + 1] == host.strip("'")


def test_replicas_count_up_from_a_given_port(tmp_path: Path) -> None:
    specs = expand(tmp_path, "workers: {owl: {model_path: x, port: 9000, replicas: 3}}")
    assert [spec.port for spec in specs.values()] == [21001, 9000, 9001, 9002]


def test_the_ports_that_a_file_gives_are_known_with_their_place(tmp_path: Path) -> None:
    file = Writer(tmp_path).load(
        "workers: {owl: {model_path: x, port: 9000, replicas: 2}, fox: {model_path: x}}\n"
        "api_server: {}\nweb_server: {enabled: false}"
    )
    assert [(at.instance, at.port, at.place) for at in roles.listeners(file.cluster)] == [
        ("controller", 21001, ("controller", "port")),
        ("api_server", 8000, ("api_server", "port")),
        ("owl-0", 9000, ("workers", "owl", "port")),
        ("owl-1", 9001, ("workers", "owl", "port")),
    ]
    assert roles.without_port(file.cluster) == ["fox-0"]


# ---------------------------------------------------------------- environment


def test_the_closer_environment_wins(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        env: {A: top, B: top, LOGDIR: /tmp}
        defaults: {env: {B: default, C: default}}
        workers: {owl: {model_path: x, env: {C: own}}}
        services: {page: {command: [x]}}
        """,
    )
    owl = env(specs["owl-0"])
    assert (owl["A"], owl["B"], owl["C"], owl["LOGDIR"]) == ("top", "default", "own", "/tmp")
    assert env(specs["page"])["B"] == "top"
    assert env(specs["controller"])["A"] == "top"


@pytest.mark.parametrize(
    ("environ", "in_file", "expected"),
    [
        ({}, "", "127.0.0.1,localhost"),
        ({"NO_PROXY": "corp, 127.0.0.1"}, "", "corp,127.0.0.1,localhost"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "", "b,a,127.0.0.1,localhost"),
        ({"NO_PROXY": "*"}, "", "*"),
        ({"NO_PROXY": "a"}, "env: {NO_PROXY: c}", "c,127.0.0.1,localhost"),
    ],
)
def test_no_proxy_comes_between_the_parts(
    tmp_path: Path, environ: dict[str, str], in_file: str, expected: str
) -> None:
    text = f"workers: {{owl: {{model_path: x}}}}\n{in_file}"
    for spec in expand(tmp_path, text, environ).values():
        assert env(spec)["NO_PROXY"] == env(spec)["no_proxy"] == expected


def test_no_proxy_comes_between_two_machines(tmp_path: Path) -> None:
    text = """
    controller: {external: "http://10.0.0.1:21001"}
    workers: {owl: {model_path: x, host: 10.0.0.2}}
    """
    spec = expand(tmp_path, text)["owl-0"]
    assert env(spec)["NO_PROXY"] == "127.0.0.1,localhost,10.0.0.1,10.0.0.2"


# ---------------------------------------------------------------- what starts after what


def test_all_that_speaks_to_the_controller_waits_for_it(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        workers: {owl: {model_path: x}, fox: {model_path: x, depends_on: [owl, controller]}}
        api_server: {}
        web_server: {depends_on: [page]}
        services: {page: {command: [x], depends_on: [api_server]}, free: {command: [x]}}
        """,
    )
    assert {name: spec.depends_on for name, spec in specs.items()} == {
        "controller": (),
        "owl-0": ("controller",),
        "fox-0": ("controller", "owl"),
        "api_server": ("controller",),
        "web_server": ("controller", "page"),
        "page": ("api_server",),
        "free": (),
    }


def test_a_web_page_that_lists_models_once_waits_for_them(tmp_path: Path) -> None:
    text = """
    workers: {owl: {model_path: x}, off: {model_path: x, enabled: false}}
    web_server: {model_list_mode: once}
    """
    assert expand(tmp_path, text)["web_server"].depends_on == ("controller", "owl")


def test_an_external_controller_is_asked_and_not_started(tmp_path: Path) -> None:
    text = """
    controller: {external: "http://127.0.0.1:9/"}
    workers: {owl: {model_path: x, depends_on: [controller]}}
    api_server: {}
    """
    specs = expand(tmp_path, text)
    assert list(specs) == ["owl-0", "api_server"]
    for spec in specs.values():
        assert spec.argv[spec.argv.index("--controller-address") + 1] == "http://127.0.0.1:9"
    assert specs["api_server"].depends_on == ()


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("controller: {}", True),
        ("api_server: {}", True),
        ("workers: {owl: {model_path: x}}", True),
        ("services: {page: {command: [x]}}", False),
        ("services: {page: {command: [x]}}\nworkers: {a: {model_path: x, enabled: false}}", False),
    ],
)
def test_a_controller_runs_if_anything_needs_one(tmp_path: Path, text: str, runs: bool) -> None:
    assert ("controller" in expand(tmp_path, text)) is runs


# ---------------------------------------------------------------- interpreters, paths, probes


def test_the_interpreter_is_the_closest_one_named(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        python: envs/main/bin/python
        workers:
          owl: {model_path: x}
          fox: {model_path: x, python: /opt/vllm/bin/python}
          cat: {model_path: x, python: python3.12}
        """,
    )
    assert specs["owl-0"].argv[0] == str(tmp_path / "envs/main/bin/python")
    assert specs["fox-0"].argv[0] == "/opt/vllm/bin/python"
    assert specs["cat-0"].argv[0] == "python3.12"
    assert expand(tmp_path, "controller: {}")["controller"].argv[0] == sys.executable


def test_paths_are_made_absolute_and_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models" / "owl").mkdir(parents=True)
    text = """
    workers: {owl: {model_path: models/owl}, hub: {model_path: lmsys/vicuna-7b-v1.5}}
    services: {page: {command: [./serve], cwd: models}, here: {command: [x]}}
    """
    specs = expand(tmp_path, text)
    assert str(tmp_path / "models" / "owl") in specs["owl-0"].argv
    assert "lmsys/vicuna-7b-v1.5" in specs["hub-0"].argv
    assert specs["page"].cwd == str(tmp_path / "models")
    assert specs["here"].cwd == str(tmp_path)


def test_a_worker_has_started_when_it_has_generated(tmp_path: Path) -> None:
    text = """
    workers:
      owl: {model_path: x}
      emb: {model_path: x, probes: {startup: {fastchat: embed, deadline: 1h}}}
    """
    specs = expand(tmp_path, text)
    owl, emb = specs["owl-0"], specs["emb-0"]
    assert owl.startup is not None
    assert [q.ask for q in owl.startup.questions] == [Ask.STATUS, Ask.GENERATE]
    assert emb.startup is not None
    assert emb.startup.questions == (Question(Ask.EMBED),)
    assert emb.startup.deadline == 3600
    assert owl.liveness is not None
    assert (owl.liveness.question.ask, owl.liveness.failures) == (Ask.STATUS, 3)
    assert owl.in_rotation


def test_only_workers_are_looked_at_for_progress_and_asked_what_they_can_answer(
    tmp_path: Path,
) -> None:
    text = """
    workers:
      owl: {model_path: x}
      emb: {model_path: x, probes: {startup: {fastchat: embed}, progress: {enabled: false}}}
      odd: {model_path: x, probes: {startup: {fastchat: status}, progress: {stall_after: 9s}}}
    services: {other: {command: [x]}}
    """
    specs = expand(tmp_path, text)
    assert specs["owl-0"].progress == Progress(question=Question(Ask.GENERATE))
    assert specs["emb-0"].progress == Progress(enabled=False, question=Question(Ask.EMBED))
    assert specs["odd-0"].progress == Progress(stall_after=9.0)
    assert specs["controller"].progress is specs["other"].progress is None


def test_servers_are_asked_over_http_and_are_soon_given_up(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        "api_server: {port: 9001, probes: {readiness: {enabled: false}}}\n"
        "controller: {probes: {liveness: {failures: 7}}}",
    )
    server = specs["api_server"]
    assert server.liveness is not None
    assert server.liveness.question == Question(Ask.HEALTH)
    assert (server.liveness.timeout, server.liveness.failures) == (5.0, 3)
    assert server.readiness is None
    controller = specs["controller"].liveness
    assert controller is not None
    assert (controller.timeout, controller.failures) == (5.0, 7)


def test_a_command_is_ready_once_it_runs_unless_it_says_how_to_ask(tmp_path: Path) -> None:
    specs = expand(
        tmp_path,
        """
        services:
          plain: {command: [x]}
          asked: {command: [x], ready: {tcp: "127.0.0.1:9"}}
        """,
    )
    assert specs["plain"].startup is None
    assert specs["plain"].liveness is None
    assert specs["asked"].startup is not None
    assert specs["asked"].startup.questions == (Question(Ask.TCP, ("127.0.0.1:9",)),)


def test_a_surge_has_a_second_form_with_a_port_of_its_own(tmp_path: Path) -> None:
    file = Writer(tmp_path).load("workers: {owl: {model_path: a/b, device: cpu}}")
    owl = roles.expand(file, {"owl-0": 21002, "owl-0.b": 21003}, {})["owl-0"]
    assert owl.surge
    assert owl.beside is not None
    assert (owl.beside.name, owl.beside.slot, owl.beside.port) == ("owl-0.b", "owl-0", 21003)
    assert owl.beside.launch == owl.launch


@pytest.mark.parametrize(
    ("options", "surge"),
    [
        ("device: cpu", True),
        ("device: cuda", False),
        ("device: cuda, rollout: surge", True),
        ("device: cpu, rollout: recreate", False),
        ("device: cpu, port: 9000", False),
        ("kind: vllm_worker", False),
    ],
)
def test_a_gpu_does_not_hold_the_model_twice_unless_the_file_says_so(
    tmp_path: Path, options: str, surge: bool
) -> None:
    specs = expand(tmp_path, f"workers: {{owl: {{model_path: a/b, {options}}}}}")
    assert specs["owl-0"].surge is surge


@pytest.mark.parametrize(
    "edit",
    [
        ("controller: {port: 21001}", "controller: {port: 21999}"),
        ("device: cpu", "device: cpu, model_names: [other]"),
        ("workers:", "workers:\n  far: {model_path: a/b, device: cpu, host: 10.0.0.1}"),
        ("device: cpu", "device: cpu, restart: never, description: x"),
    ],
)
def test_what_the_supervisor_can_tell_needs_no_other_process(
    tmp_path: Path, edit: tuple[str, str]
) -> None:
    text = "controller: {port: 21001}\nworkers:\n  owl: {model_path: a/b, device: cpu}\n"
    before = expand(tmp_path, text)["owl-0"]
    after = expand(tmp_path, text.replace(*edit))["owl-0"]
    assert after.launch == before.launch


def test_names_are_part_of_the_process_where_fastchat_looks_at_them(tmp_path: Path) -> None:
    """A foreign controller asks the worker again at every refresh, and hears the old names."""
    text = (
        "controller: {external: http://127.0.0.1:21001}\n"
        "workers: {owl: {model_path: a/b, model_names: [NAME]}}"
    )
    launches = {expand(tmp_path, text.replace("NAME", n))["owl-0"].launch for n in ("a", "b")}
    assert len(launches) == 2


def test_a_command_that_is_asked_whether_it_has_started_is_asked_less_often(tmp_path: Path) -> None:
    """Each question is a process then; a port is asked for next to nothing."""
    found = expand(
        tmp_path,
        """
        services:
          port: {command: [x], ready: {tcp: 'h:1'}}
          command: {command: [x], ready: {command: ['true']}}
          own: {command: [x], ready: {command: ['true']}, probes: {startup: {interval: 20ms}}}
        """,
    )
    times = {name: spec.startup.interval for name, spec in found.items() if spec.startup}
    assert times == {"port": 0.01, "command": 0.05, "own": 0.02}
