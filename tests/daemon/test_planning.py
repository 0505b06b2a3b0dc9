"""Every field of the file: a change of it does to what runs exactly what the field declares.

``SAMPLES`` has a change for each field. From each place where a model of the schema can stand, the
field is changed in a small cluster, and the plan is held against the field's class.
"""

from __future__ import annotations

import copy
import json
import shutil
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificate

from supervisor.core.instance import InstanceSpec
from supervisor.core.plan import Action, plan
from supervisor.daemon import prepare as preparing
from supervisor.daemon.planning import at_next_up, changes_of, planned
from supervisor.daemon.prepare import ports_of, prepare
from supervisor.daemon.views import ChangeView, PlanView
from supervisor.spec import model as spec
from supervisor.spec.diff import impact_of
from supervisor.spec.impact import Impact
from supervisor.spec.load import ClusterFile, load_text
from supervisor.spec.problems import SpecError

Values = dict[str, Any]
Place = tuple[str | int, ...]

ABSENT: Any = object()
"""The field is left out."""


# ---------------------------------------------------------------- a change of each field


@dataclass(frozen=True)
class Sample:
    """From one value to another. ``beside`` are fields of the same service that it needs."""

    before: Any
    after: Any
    beside: Mapping[str, Any] | None = None


def to(after: Any, **beside: Any) -> Sample:
    return Sample(ABSENT, after, beside)


MODEL = {"model_path": "owner/other", "model_names": ["second"]}
QUESTION = {"tcp": "127.0.0.1:9999"}
PROBE_KINDS = ("StartupProbe", "ReadinessProbe", "LivenessProbe")

SAMPLES: dict[str, Sample] = {
    "Restart.policy": to("never"),
    "Restart.backoff": to("7s"),
    "Restart.backoff_max": to("7s"),
    "Restart.jitter": to(0.5),
    "Restart.stable_after": to("7s"),
    "Restart.limit": to(7),
    "Question.http": to("http://127.0.0.1:9998/"),
    "Question.tcp": to("127.0.0.1:9998"),
    "Question.command": to(["true"]),
    "Question.fastchat": to("embed"),
    **{f"{probe}.interval": to("7s") for probe in PROBE_KINDS},
    **{f"{probe}.timeout": to("7s") for probe in PROBE_KINDS},
    **{f"{probe}.failures": to(7) for probe in PROBE_KINDS[1:]},
    **{f"{probe}.enabled": to(False) for probe in PROBE_KINDS[1:]},
    "StartupProbe.deadline": to("7s"),
    "ProgressProbe.enabled": to(False),
    "ProgressProbe.interval": to("7s"),
    "ProgressProbe.stall_after": to("7s"),
    "ProgressProbe.idle_after": to("7s"),
    "ProgressProbe.failures": to(7),
    "WorkerProbes.progress": to({"interval": 8}),
    "Probes.startup": to({"deadline": 8}),
    "Probes.readiness": to({"interval": 8}),
    "Probes.liveness": to({"interval": 8}),
    "Logs.max_size": to("1MiB"),
    "Logs.keep": to(7),
    "Service.description": to("for people"),
    "Service.enabled": to(False),
    "Service.env": to({"A_NAME": "a value"}),
    "Service.env_file": Sample("one.env", "two.env"),
    "Service.depends_on": to(["bystander"]),
    "Service.restart": to("never"),
    "Service.probes": to({"liveness": {"interval": 8}}),
    "Service.stop_grace": to("7s"),
    "PythonService.python": to("/opt/other/bin/python"),
    "PythonService.args": to(["--more"]),
    "PythonService.launch": to("cold"),
    "Controller.host": to("127.0.0.2"),
    "Controller.port": to(21999),
    "Controller.dispatch_method": to("lottery"),
    "ApiServer.host": to("0.0.0.0"),
    "ApiServer.port": to(8999),
    "ApiServer.allow_credentials": to(True),
    "ApiServer.allowed_origins": to(["http://one"]),
    "ApiServer.allowed_methods": to(["GET"]),
    "ApiServer.allowed_headers": to(["X-One"]),
    "ApiServer.api_keys": Sample(["sk-one"], ["sk-two"]),
    "ApiServer.drain_timeout": to("7s"),
    "ApiServer.retry_for": to("7s"),
    "ApiServer.api_keys_file": to("keys"),
    "WebServer.host": to("0.0.0.0"),
    "WebServer.port": to(7999),
    "WebServer.share": to(True),
    "WebServer.concurrency_count": to(7),
    "WebServer.model_list_mode": to("once"),
    "Gptq.ckpt": to("some.pt"),
    "Gptq.wbits": Sample(4, 8),
    "Gptq.groupsize": to(128),
    "Gptq.act_order": to(True),
    "Awq.ckpt": to("some.pt"),
    "Awq.wbits": Sample(4, 16),
    "Awq.groupsize": to(128),
    "Exllama.max_seq_len": to(7),
    "Exllama.gpu_split": to("20,7"),
    "Exllama.cache_8bit": to(True),
    "Xft.max_seq_len": to(7),
    "Xft.dtype": to("int8"),
    "Worker.replicas": to(2),
    "Worker.host": to("0.0.0.0"),
    "Worker.port": Sample(21500, 21600),
    "Worker.rollout": Sample("recreate", "surge"),
    "Worker.max_unavailable": to(2),
    "Worker.drain_timeout": to("7s"),
    "Worker.gpus": Sample([0], [1]),
    "Worker.num_gpus": Sample(1, 2, {"gpus": [0, 1]}),
    "LimitedWorker.limit_worker_concurrency": to(7),
    "OneModel.model_path": Sample("owner/one", "owner/two"),
    "OneModel.model_names": to(["another"]),
    "OneModel.conv_template": to("vicuna_v1.1"),
    "ModelOptions.device": Sample("cuda", "cpu"),
    "ModelOptions.max_gpu_memory": to("7GiB"),
    "ModelOptions.load_8bit": to(True),
    "ModelOptions.cpu_offloading": to(True, load_8bit=True),
    "ModelOptions.gptq": to({"wbits": 4}),
    "ModelOptions.exllama": to({}),
    "ModelOptions.xft": to({}, device="cpu"),
    "ModelOptions.stream_interval": to(7),
    "ModelWorker.revision": to("other"),
    "ModelWorker.dtype": to("float16"),
    "ModelWorker.awq": to({"wbits": 4}),
    "ModelWorker.embed_in_truncate": to(True),
    "ModelWorker.seed": to(7),
    "ModelWorker.debug": to(True),
    "NamedModel.model_path": Sample("owner/one", "owner/two"),
    "NamedModel.model_names": Sample(["one"], ["two"]),
    "NamedModel.conv_template": to("vicuna_v1.1"),
    "MultiModelWorker.models": Sample([MODEL], [MODEL, {**MODEL, "model_names": ["third"]}]),
    "MultiModelWorker.conv_template": to("vicuna_v1.1"),
    "VllmWorker.trust_remote_code": to(False),
    "VllmWorker.gpu_memory_utilization": to(0.7),
    "VllmWorker.dtype": to("float16"),
    "VllmWorker.quantization": to("awq"),
    "VllmWorker.max_model_len": to(7),
    "VllmWorker.revision": to("other"),
    "SglangWorker.tokenizer_path": to("owner/other"),
    "SglangWorker.trust_remote_code": to(False),
    "SglangWorker.mem_fraction_static": to(0.7),
    "SglangWorker.multimodal": to(True),
    "LightllmWorker.tokenizer_mode": to("auto"),
    "LightllmWorker.max_total_token_num": to(7),
    "LightllmWorker.max_req_input_len": to(7),
    "LightllmWorker.max_req_total_len": to(7),
    "LightllmWorker.mode": to(["triton_int8kv"]),
    "LightllmWorker.trust_remote_code": to(True),
    "MlxWorker.trust_remote_code": to(False),
    "HuggingfaceApiWorker.model_info_file": Sample("one.json", "two.json"),
    "HuggingfaceApiWorker.seed": to(7),
    "Command.command": Sample(["sleep", "1"], ["sleep", "2"]),
    "Command.cwd": to("sub"),
    "Command.ready": to({"tcp": "127.0.0.1:9997"}),
    "Cluster.description": to("for people"),
    "Cluster.env": to({"A_NAME": "a value"}),
    "Cluster.env_file": Sample("one.env", "two.env"),
    "Cluster.python": to("/opt/other/bin/python"),
    "Cluster.port_range": Sample("30000-30099", "31000-31099"),
    "Cluster.max_parallel_starts": to(7),
    "Cluster.watch": to(False),
    "Cluster.logs": to({"keep": 7}),
    "Cluster.control": to({"token_file": "token"}),
    "Control.host": to("127.0.0.2"),
    "Control.port": to(20999),
    "Control.token_file": Sample("token", "token.2"),
    "Control.tls_cert": Sample("tls.crt", "tls.2.crt"),
    "Control.tls_key": Sample("tls.key", "tls.2.key"),
    "Cluster.run_dir": to("run-elsewhere"),
    "Cluster.log_dir": to("logs-elsewhere"),
}  # fmt: skip

OF_THEIR_OWN = {
    "Cluster.controller": "a section",
    "Cluster.workers": "a section",
    "Cluster.api_server": "a section",
    "Cluster.web_server": "a section",
    "Cluster.services": "a section",
    "Cluster.defaults": "a test for each of its fields below",
    "Controller.external": "no other field may stand beside it",
    "Controller.enabled": "a cluster with workers needs one",
    **{f"{one.__name__}.kind": "they have other fields" for one in spec.WORKER_KINDS.values()},
}
"""Fields whose change does not fit into the table, and has tests of its own below."""


def defined_in(model: type[spec.Model], name: str) -> str:
    """The class of the schema that brings a field, `Service.env`, wherever it is inherited."""
    owner = next(one for one in reversed(model.__mro__) if name in getattr(one, "model_fields", {}))
    return f"{owner.__name__}.{name}"


def sample_of(model: type[spec.Model], name: str) -> Sample | None:
    """A model's own, or the one that it has inherited."""
    for one in model.__mro__:
        if f"{one.__name__}.{name}" in SAMPLES:
            return SAMPLES[f"{one.__name__}.{name}"]
    return None


# ---------------------------------------------------------------- places where a field can stand

KINDS: dict[str, Values] = {
    "model_worker": {"model_path": "owner/one"},
    "multi_model_worker": {"models": [{"model_path": "owner/one", "model_names": ["one"]}]},
    "vllm_worker": {"model_path": "owner/one"},
    "sglang_worker": {"model_path": "owner/one"},
    "lightllm_worker": {"model_path": "owner/one"},
    "mlx_worker": {"model_path": "owner/one"},
    "huggingface_api_worker": {"model_info_file": "one.json"},
}
NEEDED: dict[type[spec.Model], Values] = {
    spec.Gptq: {"wbits": 4},
    spec.Awq: {"wbits": 4},
    spec.Control: {"token_file": "token", "tls_cert": "tls.crt", "tls_key": "tls.key"},
}


def base(kind: str = "model_worker") -> Values:
    return {
        "controller": {"port": 21001},
        "workers": {
            "w": {"kind": kind, **copy.deepcopy(KINDS[kind])},
            "other": {"model_path": "owner/other", "device": "cpu"},
        },
        "api_server": {"port": 8000},
        "web_server": {"port": 7860},
        "services": {
            "cmd": {"command": ["sleep", "1"], "ready": dict(QUESTION)},
            "bystander": {"command": ["sleep", "2"]},
        },
        "port_range": "30000-30099",
    }


@dataclass(frozen=True)
class Case:
    """One field at one place. ``top`` is where its service stands."""

    kind: str
    top: Place
    path: Place
    model: type[spec.Model]
    field: str

    def __str__(self) -> str:
        kind = f"{self.kind}:" if self.top[:1] == ("workers",) else ""
        return kind + ".".join(map(str, (*self.path, self.field)))

    @property
    def sample(self) -> Sample:
        found = sample_of(self.model, self.field)
        assert found is not None, f"no sample change of {defined_in(self.model, self.field)}"
        return found


def models_in(annotation: Any) -> Iterator[type[spec.Model]]:
    if isinstance(annotation, type) and issubclass(annotation, spec.Model):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def cases() -> Iterator[Case]:
    yield from fields_of(spec.Cluster, "model_worker", (), ())
    yield from fields_of(spec.Controller, "model_worker", ("controller",), ("controller",))
    yield from fields_of(spec.ApiServer, "model_worker", ("api_server",), ("api_server",))
    yield from fields_of(spec.WebServer, "model_worker", ("web_server",), ("web_server",))
    for kind, worker in spec.WORKER_KINDS.items():
        yield from fields_of(worker, kind, ("workers", "w"), ("workers", "w"))
    cmd = ("services", "cmd")
    yield from fields_of(spec.Command, "model_worker", cmd, cmd)


def fields_of(model: type[spec.Model], kind: str, top: Place, path: Place) -> Iterator[Case]:
    for name, field in model.model_fields.items():
        if f"{model.__name__}.{name}" in OF_THEIR_OWN:
            continue
        yield Case(kind, top, path, model, name)
        for inner in models_in(field.annotation):
            more = (name, 0) if inner is spec.NamedModel else (name,)
            yield from fields_of(inner, kind, top, (*path, *more))


CASES = list(cases())


# ---------------------------------------------------------------- what a change does


def at(values: Values, path: Place) -> Any:
    here: Any = values
    for part in path:
        here = here.setdefault(part, {}) if isinstance(here, dict) else here[part]
    return here


def put(values: Values, path: Place, name: str, value: Any) -> Values:
    around = at(values, path)
    if value is ABSENT:
        around.pop(name, None)
    else:
        around[name] = copy.deepcopy(value)
    return values


@dataclass
class World:
    """A folder with the files that a cluster file may name."""

    folder: Path

    def load(self, values: Values) -> ClusterFile:
        return load_text(json.dumps(values), self.folder / "cluster.yaml", {})

    def change(self, before: Values, after: Values) -> Outcome:
        """As a running supervisor plans it (`daemon/reload.py`)."""
        old, new = self.load(before), self.load(after)
        running = prepare(old, {}, {})
        held = {one.name: one.port for one in running.values() if one.port is not None}
        wanted = prepare(new, ports_of(running.values()), {}, running=held)
        view = planned(running, wanted, old, new)
        bare = {one.slot: one.action.value for one in plan(running, wanted)}
        assert {one.instance: one.action for one in view.changes} == bare
        return Outcome(old, new, running, wanted, view)


@dataclass
class Outcome:
    old: ClusterFile
    new: ClusterFile
    running: Mapping[str, InstanceSpec]
    wanted: Mapping[str, InstanceSpec]
    view: PlanView

    @property
    def actions(self) -> dict[str, str]:
        """What does not simply go on as it is."""
        return {one.instance: one.action for one in changes_of(self.view)}

    def change(self, slot: str) -> ChangeView:
        return next(one for one in self.view.changes if one.instance == slot)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]) -> World:
    monkeypatch.setattr(preparing, "why_taken", lambda host, port: None)
    (tmp_path / "keys").write_text("sk-of-file\n")
    (tmp_path / "one.json").write_text('{"one": {"model_names": ["one"]}}')
    (tmp_path / "two.json").write_text('{"two": {"model_names": ["two"]}}')
    (tmp_path / "one.env").write_text("A_NAME=one\n")
    (tmp_path / "two.env").write_text("A_NAME=two\n")
    for name in ("token", "token.2"):
        (tmp_path / name).write_text("0123456789abcdef")
        (tmp_path / name).chmod(0o600)
    for name in ("tls", "tls.2"):
        for file in certificate:
            shutil.copy(file, tmp_path / f"{name}{file.suffix}")
    (tmp_path / "sub").mkdir()
    return World(tmp_path)


def changed_at(case: Case) -> tuple[Values, Values]:
    sample, values = case.sample, base(case.kind)
    for name, value in (sample.beside or {}).items():
        put(values, case.top, name, value)
    at(values, case.path).update(NEEDED.get(case.model, {}))
    if "xft" in case.path:
        put(values, case.top, "device", "cpu")
    if "ready" in case.path and case.field in ("http", "command"):
        put(values, case.path, "tcp", ABSENT)
    before = put(copy.deepcopy(values), case.path, case.field, sample.before)
    return before, put(copy.deepcopy(values), case.path, case.field, sample.after)


FASTCHAT = ("controller", "w-0", "other-0", "api_server", "web_server")
ALL = (*FASTCHAT, "cmd", "bystander")


def slot_of(case: Case) -> str:
    name = str(case.top[-1])
    return f"{name}-0" if case.top[0] == "workers" else name


def process_action(slot: str) -> str:
    rolls = slot.endswith("-0") or slot == "api_server"
    return Action.ROLL_OUT.value if rolls else Action.RESTART.value


def invalid(case: Case) -> str:
    """Why this field has no meaning at this place, and is refused there; else nothing."""
    if case.field == "fastchat" and case.top[0] != "workers":
        return "only workers can be asked this"
    return ""


def promised(case: Case) -> dict[str, str]:
    """What the declared class says, by slot; all others are kept."""
    impact = impact_of(case.model, case.field)
    if impact in (Impact.NOTHING, Impact.NEXT_UP):
        return {}
    if not case.top:
        return of_the_cluster(case.field)
    slot = slot_of(case)
    match impact:
        case Impact.LIVE | Impact.REREGISTER:
            return {slot: Action.UPDATE.value}
        case Impact.SCALE if case.field == "enabled":
            return {slot: Action.STOP.value}
        case Impact.SCALE:
            assert case.field == "replicas"
            return {"w-1": Action.START.value}
    found = {slot: process_action(slot)}
    if slot == "controller" and case.field in ("host", "port"):
        # The servers ask it at its address; the workers are told by the supervisor.
        found |= {one: process_action(one) for one in ("api_server", "web_server")}
    if slot == "controller" and case.field == "port":
        found[slot] = Action.ROLL_OUT.value  # a restart beside the old one, which is still asked
    return found


def of_the_cluster(field: str) -> dict[str, str]:
    slots: Mapping[str, tuple[str, ...]] = {
        "env": ALL,
        "env_file": ALL,
        "python": FASTCHAT,
        "port_range": ("w-0", "other-0"),
        "max_parallel_starts": (),  # nor does it start anybody
        "watch": (),  # it is the supervisor who watches
        "logs": (),  # and who has the logs kept; no instance is another one for it
        "max_size": (),
        "keep": (),
    }
    return {slot: process_action(slot) for slot in slots[field]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_change_does_what_the_field_declares(world: World, case: Case) -> None:
    before, after = changed_at(case)
    if invalid(case):
        with pytest.raises(SpecError):
            world.load(after)
        return
    outcome = world.change(before, after)
    assert outcome.actions == promised(case)
    place = ".".join(map(str, (*case.path, case.field))).partition(".0.")[0]
    for slot in outcome.actions:
        causes = outcome.change(slot).causes
        assert [one for one in causes if is_at(one.field, place) and one.line > 0], causes


def is_at(field: str, place: str) -> bool:
    """The place, something in it, or what it stands in."""
    one, other = f"{field}.", f"{place}."
    return one.startswith(other) or other.startswith(one)


# ---------------------------------------------------------------- nothing is left out


def models() -> set[type[spec.Model]]:
    """All of the schema."""
    found: set[type[spec.Model]] = set()
    todo: list[type[spec.Model]] = [spec.Cluster]
    while todo:
        model = todo.pop()
        if model not in found:
            found.add(model)
            todo += [m for f in model.model_fields.values() for m in models_in(f.annotation)]
    return found


def test_every_field_has_a_sample_and_is_tried() -> None:
    needed = {(m, name) for m in models() - {spec.Defaults} for name in m.model_fields}
    tried = {(case.model, case.field) for case in CASES}
    left = {f"{m.__name__}.{name}" for m, name in needed - tried}
    # `Question` itself stands at `ready`, and inherited in the three probes.
    assert left == OF_THEIR_OWN.keys() & {f"{m.__name__}.{name}" for m, name in needed}
    assert OF_THEIR_OWN.keys() <= left
    used = {f"{one.__name__}.{n}" for m, n in tried for one in m.__mro__ if n in vars_of(one)}
    assert SAMPLES.keys() <= used


def vars_of(model: type) -> set[str]:
    return set(getattr(model, "model_fields", {}))


def test_a_file_that_says_the_same_changes_nothing(world: World) -> None:
    for kind in spec.WORKER_KINDS:
        assert world.change(base(kind), base(kind)).actions == {}


# ---------------------------------------------------------------- what does not fit into the table


def cause(outcome: Outcome, slot: str) -> list[str]:
    return [one.field for one in outcome.change(slot).causes]


SECTIONS = {
    ("workers", "new"): ({"model_path": "owner/new"}, "new-0"),
    ("services", "new"): ({"command": ["a"]}, "new"),
    ("workers", "other"): (base()["workers"]["other"], "other-0"),
    ("services", "bystander"): (base()["services"]["bystander"], "bystander"),
    ("api_server",): (base()["api_server"], "api_server"),
    ("web_server",): (base()["web_server"], "web_server"),
}


@pytest.mark.parametrize("path", SECTIONS, ids=".".join)
def test_a_section_comes_and_goes_alone(world: World, path: tuple[str, ...]) -> None:
    section, slot = SECTIONS[path]
    there = put(base(), path[:-1], path[-1], section)
    away = put(base(), path[:-1], path[-1], ABSENT)
    come = world.change(away, there)
    assert come.actions == {slot: "start"}
    assert cause(come, slot) == [".".join(path)]
    gone = world.change(there, away)
    assert gone.actions == {slot: "stop"}
    assert cause(gone, slot) == [".".join(path)]


@pytest.mark.parametrize("name", ["workers", "services"])
def test_a_whole_section_comes_and_goes(world: World, name: str) -> None:
    away = put(base(), (), name, ABSENT)
    slots = {"workers": {"w-0", "other-0"}, "services": {"cmd", "bystander"}}[name]
    assert world.change(away, base()).actions == dict.fromkeys(slots, "start")
    assert world.change(base(), away).actions == dict.fromkeys(slots, "stop")


def test_a_controller_that_is_written_down_is_the_one_that_ran_unwritten(world: World) -> None:
    unwritten = put(base(), (), "controller", ABSENT)
    for section in ({}, {"port": 21001}, None):
        written = put(base(), (), "controller", section)
        assert world.change(unwritten, written).actions == {}
        assert world.change(written, unwritten).actions == {}


def test_a_controller_that_is_written_down_otherwise(world: World) -> None:
    unwritten = put(base(), (), "controller", ABSENT)
    moved = put(base(), (), "controller", {"port": 21999})
    expected = {"controller": "roll out", "api_server": "roll out", "web_server": "restart"}
    for outcome in (world.change(unwritten, moved), world.change(moved, unwritten)):
        assert outcome.actions == expected
        assert all(cause(outcome, slot) for slot in expected)


def test_a_controller_moves_out_and_back(world: World) -> None:
    """Workers are asked for their names by a controller that is not ours: they are given them."""
    outside = put(base(), (), "controller", {"external": "http://127.0.0.1:21998"})
    others = {
        **dict.fromkeys(("w-0", "other-0", "api_server"), "roll out"),
        "web_server": "restart",
    }
    out = world.change(base(), outside)
    assert out.actions == {"controller": "stop", **others}
    back = world.change(outside, base())
    assert back.actions == {"controller": "start", **others}
    for outcome in (out, back):
        for slot in outcome.actions:
            assert "controller.external" in cause(outcome, slot), slot


def test_an_external_controller_moves(world: World) -> None:
    """The supervisor registers the workers there; their processes do not care."""
    one = put(base(), (), "controller", {"external": "http://127.0.0.1:21998"})
    two = put(base(), (), "controller", {"external": "http://127.0.0.1:21997"})
    outcome = world.change(one, two)
    assert outcome.actions == {"api_server": "roll out", "web_server": "restart"}
    for slot in outcome.actions:
        assert cause(outcome, slot) == ["controller.external"]


def test_a_controller_that_nothing_needs_is_disabled(world: World) -> None:
    values = {"controller": {"port": 21001}, "services": base()["services"]}
    disabled = put(copy.deepcopy(values), ("controller",), "enabled", False)
    off, on = world.change(values, disabled), world.change(disabled, values)
    assert off.actions == {"controller": "stop"}
    assert on.actions == {"controller": "start"}
    assert cause(off, "controller") == cause(on, "controller") == ["controller.enabled"]


@pytest.mark.parametrize(
    "kind", [k for k, w in spec.WORKER_KINDS.items() if issubclass(w, spec.OneModel)]
)
def test_other_names_for_an_external_controller_take_other_processes(
    world: World, kind: str
) -> None:
    """FastChat's own controller asks the worker for them again and again."""
    external = {"external": "http://127.0.0.1:21998"}
    before = put(base(kind), (), "controller", external)
    after = put(copy.deepcopy(before), ("workers", "w"), "model_names", ["another"])
    outcome = world.change(before, after)
    assert outcome.actions == {"w-0": "roll out"}
    assert cause(outcome, "w-0") == ["workers.w.model_names"]


PAIRS = [(a, b) for a in KINDS for b in KINDS if a != b]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda kind: str(kind))
def test_another_kind_is_rolled_out(world: World, one: str, other: str) -> None:
    outcome = world.change(base(one), base(other))
    assert outcome.actions == {"w-0": "roll out"}
    assert "workers.w.kind" in cause(outcome, "w-0")
    assert f"workers.w.kind: {one} -> {other}" in outcome.change("w-0").reason


def of_defaults() -> Iterator[tuple[str, str]]:
    for kind, worker in spec.WORKER_KINDS.items():
        for name in worker.model_fields:
            if name in spec.Defaults.model_fields and name != "kind":
                yield kind, name


@pytest.mark.parametrize(("kind", "name"), list(of_defaults()), ids=lambda one: str(one))
def test_a_default_does_what_the_workers_own_field_does(world: World, kind: str, name: str) -> None:
    """For those who have none of their own; ``other`` has a `device`, and no other field."""
    sample = sample_of(spec.WORKER_KINDS[kind], name)
    assert sample is not None
    values = base(kind)
    for beside, value in (sample.beside or {}).items():
        put(values, ("workers", "w"), beside, value)
    own = world.change(
        put(copy.deepcopy(values), ("workers", "w"), name, sample.before),
        put(copy.deepcopy(values), ("workers", "w"), name, sample.after),
    )
    del values["workers"]["other"]
    default = world.change(
        put(copy.deepcopy(values), ("defaults",), name, sample.before),
        put(copy.deepcopy(values), ("defaults",), name, sample.after),
    )
    assert default.actions == own.actions
    for slot in own.actions:
        assert cause(default, slot) == cause(own, slot)
        assert all(one.line > 0 for one in default.change(slot).causes)


def test_a_default_that_all_workers_override_changes_nothing(world: World) -> None:
    values = base()
    for worker in values["workers"].values():
        worker["load_8bit"] = False
    after = put(copy.deepcopy(values), ("defaults",), "load_8bit", True)
    assert world.change(values, after).actions == {}


def test_the_kind_of_all_workers_changes(world: World) -> None:
    values = base()
    del values["workers"]["w"]["kind"], values["workers"]["other"]["device"]
    outcome = world.change(values, put(copy.deepcopy(values), ("defaults",), "kind", "mlx_worker"))
    assert outcome.actions == {"w-0": "roll out", "other-0": "roll out"}
    assert cause(outcome, "w-0") == ["workers.w.kind"]


def test_only_the_folders_and_the_door_wait_for_the_next_up(world: World) -> None:
    values = base()
    for name in spec.Cluster.model_fields:
        sample = sample_of(spec.Cluster, name)
        if sample is None:
            continue
        outcome = world.change(
            put(copy.deepcopy(values), (), name, sample.before),
            put(copy.deepcopy(values), (), name, sample.after),
        )
        told = [".".join(map(str, one.path)) for one in at_next_up(outcome.old, outcome.new)]
        assert told == ([name] if name in ("run_dir", "log_dir", "control") else [])


def test_one_replica_more_leaves_the_others_alone_unless_they_share_gpus(world: World) -> None:
    values = base()
    values["workers"]["w"] |= {"gpus": [0, 1], "num_gpus": 1}
    more = put(copy.deepcopy(values), ("workers", "w"), "replicas", 2)
    assert world.change(values, more).actions == {"w-1": "start"}
    assert world.change(more, values).actions == {"w-1": "stop"}
    del values["workers"]["w"]["num_gpus"], more["workers"]["w"]["num_gpus"]
    shared = world.change(values, more)
    assert shared.actions == {"w-0": "roll out", "w-1": "start"}
    assert cause(shared, "w-0") == ["workers.w.replicas"]


def test_a_worker_more_or_less_moves_no_other(world: World) -> None:
    """Neither its port nor what it knows of the hosts of others."""
    values = base()
    more = copy.deepcopy(values)
    workers = {"first": {"model_path": "owner/new", "host": "127.0.0.3"}, **more["workers"]}
    more["workers"] = workers
    assert world.change(values, more).actions == {"first-0": "start"}
    assert world.change(more, values).actions == {"first-0": "stop"}


def test_names_that_a_file_lists_are_rolled_out(world: World) -> None:
    """The same `model_info_file` with another content: no field differs."""
    values = base("huggingface_api_worker")
    old = world.load(values)
    running = prepare(old, {}, {})
    (world.folder / "one.json").write_text('{"one": {"model_names": ["uno"]}}')
    new = world.load(values)
    held = {one.name: one.port for one in running.values() if one.port is not None}
    wanted = prepare(new, ports_of(running.values()), {}, running=held)
    changed = {one.instance: one.action for one in changes_of(planned(running, wanted, old, new))}
    assert changed == {"w-0": "roll out"}


def test_keys_that_a_file_lists_are_rolled_out_untold(world: World) -> None:
    values = put(base(), ("api_server",), "api_keys_file", "keys")
    old = world.load(values)
    running = prepare(old, {}, {})
    (world.folder / "keys").write_text("sk-never-to-be-seen\n")
    new = world.load(values)
    held = {one.name: one.port for one in running.values() if one.port is not None}
    wanted = prepare(new, ports_of(running.values()), {}, running=held)
    view = planned(running, wanted, old, new)
    (change,) = changes_of(view)
    assert (change.instance, change.action) == ("api_server", "roll out")
    assert "never-to-be-seen" not in view.model_dump_json()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"allow_credentials": True}, "on the same socket"),
        ({"host": "0.0.0.0"}, "refused for a moment"),
        ({"port": 18888}, "at the old port until the new one answers"),
    ],
)
def test_what_a_change_of_the_api_server_means_for_requests(
    world: World, options: Values, says: str
) -> None:
    values = {"workers": {"w": {"model_path": "o/n"}}, "api_server": {"port": 8888}}
    after = {**values, "api_server": {"port": 8888, **options}}
    assert says in world.change(values, after).change("api_server").requests
