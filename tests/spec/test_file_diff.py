"""What differs between two versions of a file: every field, at its path, and no secret of it."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer import Writer

from supervisor.spec import model as spec
from supervisor.spec.diff import Difference, differences, impact_of
from supervisor.spec.impact import Impact
from supervisor.spec.load import load_text
from supervisor.spec.model import Cluster, Defaults, Model

SECRET = "sk-never-to-be-seen"


# ---------------------------------------------------------------- every field declares its class


def models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def models() -> list[type[Model]]:
    """All of the schema."""
    found: dict[type[Model], None] = {}
    todo: list[type[Model]] = [Cluster]
    while todo:
        model = todo.pop()
        if model not in found:
            found[model] = None
            todo += [m for f in model.model_fields.values() for m in models_in(f.annotation)]
    return list(found)


def declared(metadata: Any) -> list[Impact]:
    return [one for one in metadata if isinstance(one, Impact)]


def test_the_walk_finds_all_models() -> None:
    everything = {
        one for one in vars(spec).values() if isinstance(one, type) and issubclass(one, Model)
    }
    abstract = {"Model", "Service", "PythonService", "Worker", "LimitedWorker", "OneModel"}
    abstract |= {"ModelOptions"}
    assert {one.__name__ for one in everything - set(models())} == abstract


@pytest.mark.parametrize("model", set(models()) - {Defaults}, ids=lambda one: one.__name__)
def test_every_field_declares_exactly_one_class(model: type[Model]) -> None:
    found = {name: declared(field.metadata) for name, field in model.model_fields.items()}
    assert {name: impacts for name, impacts in found.items() if len(impacts) != 1} == {}
    assert {name: [impact_of(model, name)] for name in found} == found


def test_every_default_has_the_class_of_the_field_that_it_stands_for() -> None:
    """Inside of `| None`. `kind` is made by itself; nobody asks for its class, since what
    `defaults` say is compared where it has been expanded."""
    found = {}
    for name, field in Defaults.model_fields.items():
        (inner,) = (one for one in typing.get_args(field.annotation) if one is not type(None))
        found[name] = declared(getattr(inner, "__metadata__", ()))
    del found["kind"]
    of_kinds = {
        name: {
            impact_of(one, name) for one in spec.WORKER_KINDS.values() if name in one.model_fields
        }
        for name in found
    }
    assert {name: set(impacts) for name, impacts in found.items()} == of_kinds
    assert all(len(impacts) == 1 for impacts in found.values())


def test_a_field_without_a_class_is_a_mistake_that_is_named() -> None:
    class Careless(Model):
        field: int = 1

    with pytest.raises(LookupError, match=r"Careless\.field does not say what a change of it"):
        impact_of(Careless, "field")


# ---------------------------------------------------------------- what is found


BASE = """
defaults: {device: cpu, env: {A: x}}
workers:
  w: {model_path: owner/name, env: {B: y}}
  v: {model_path: owner/other, gptq: {wbits: 4}}
api_server: {port: 8001}
services:
  s: {command: [sleep, 1], restart: never, ready: {tcp: 'h:1'}}
"""


def texts(write: Writer, old: str, new: str) -> list[str]:
    return [str(one) for one in differences(write.cluster(old), write.cluster(new))]


def changed(write: Writer, old: str, new: str) -> list[str]:
    """What a piece of the base differs in, when it is replaced."""
    assert BASE.count(old) == 1
    return texts(write, BASE, BASE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("port: 8001", "port: 8002", ["api_server.port: 8001 -> 8002"]),
        ("port: 8001", "", ["api_server.port: 8001 -> 8000"]),
        ("restart: never", "restart: {limit: 3}", [
            "services.s.restart.policy: never -> always",
            "services.s.restart.limit: none -> 3",
        ]),
        ("restart: never", "restart: {policy: never, backoff: 2.5s}",
         ["services.s.restart.backoff: 1 -> 2.5"]),
        ("restart: never", "restart: never, probes: {liveness: {enabled: false}}",
         ["services.s.probes.liveness.enabled: true -> false"]),
        ("ready: {tcp: 'h:1'}", "ready: {tcp: 'h:2'}", ["services.s.ready.tcp: h:1 -> h:2"]),
        (", ready: {tcp: 'h:1'}", "", ["services.s.ready changed"]),
        ("gptq: {wbits: 4}", "gptq: {wbits: 8}", ["workers.v.gptq.wbits: 4 -> 8"]),
        (", gptq: {wbits: 4}", "", ["workers.v.gptq changed"]),
        ("[sleep, 1]", "[sleep, 2]", ["services.s.command changed"]),
        ("{B: y}", "{B: z}", ["workers.w.env.B changed"]),
        ("{B: y}", "{C: y}", ["workers.w.env.B changed", "workers.w.env.C changed"]),
        ("{A: x}", "{A: z}", ["workers.w.env.A changed", "workers.v.env.A changed"]),
        ("device: cpu", "device: cuda", [
            "workers.w.device: cpu -> cuda",
            "workers.v.device: cpu -> cuda",
        ]),
        ("owner/name", "owner/n2, gpus: [], model_names: [a, b]", [
            "workers.w.model_path: owner/name -> owner/n2",
            "workers.w.model_names: [] -> [a, b]",
        ]),
        ("  v: {model_path: owner/other, gptq: {wbits: 4}}\n", "", ["workers.v changed"]),
        ("services:\n", "services:\n  t: {command: [a]}\n", ["services.t changed"]),
        ("api_server: {port: 8001}", "", ["api_server changed"]),
        ("api_server: {port: 8001}", "logs: {keep: 2}\napi_server: {port: 8001}",
         ["logs.keep: 5 -> 2"]),
    ],
)  # fmt: skip
def test_a_difference_is_told_at_its_place(
    write: Writer, old: str, new: str, found: list[str]
) -> None:
    order = sorted if len(found) > 1 else list
    assert order(changed(write, old, new)) == order(found)


def test_a_long_value_is_cut_short(write: Writer) -> None:
    (text,) = changed(write, "owner/name", f"owner/{'n' * 90}")
    assert text.endswith("n...")
    assert len(text) < 120


def test_each_difference_has_the_class_of_its_field(write: Writer) -> None:
    new = BASE.replace("port: 8001", "port: 8002, description: x, drain_timeout: 3")
    new = new.replace("owner/name", "owner/name, replicas: 2, model_names: [a]") + "log_dir: x\n"
    found = differences(write.cluster(BASE), write.cluster(new))
    assert {one.path[-1]: one.impact for one in found} == {
        "port": Impact.REPLACE,
        "description": Impact.NOTHING,
        "drain_timeout": Impact.LIVE,
        "replicas": Impact.SCALE,
        "model_names": Impact.REREGISTER,
        "log_dir": Impact.NEXT_UP,
    }


def test_another_kind_is_told_with_what_only_one_of_them_has(write: Writer) -> None:
    old = "workers: {a: {model_path: o/n, load_8bit: true, description: x}}"
    new = "workers: {a: {kind: vllm_worker, model_path: o/n, max_model_len: 9, description: x}}"
    assert sorted(texts(write, old, new)) == [
        "workers.a.kind: model_worker -> vllm_worker",
        "workers.a.load_8bit: true -> false",
        "workers.a.max_model_len: none -> 9",
    ]
    assert sorted(texts(write, new, old)) == [
        "workers.a.kind: vllm_worker -> model_worker",
        "workers.a.load_8bit: false -> true",
        "workers.a.max_model_len: 9 -> none",
    ]


def test_another_kind_through_the_defaults(write: Writer) -> None:
    old = "workers: {a: {model_path: o/n}}"
    new = "defaults: {kind: vllm_worker}\n" + old
    assert texts(write, old, new) == ["workers.a.kind: model_worker -> vllm_worker"]


# ---------------------------------------------------------------- what only moved is none


@pytest.mark.parametrize(
    "text",
    [
        # into the workers, what was said for all of them
        """
        workers:
          w: {model_path: owner/name, device: cpu, env: {A: x, B: y}}
          v: {model_path: owner/other, gptq: {wbits: 4}, device: cpu, env: {A: x}}
        api_server: {port: 8001}
        services: {s: {command: [sleep, 1], restart: never, ready: {tcp: 'h:1'}}}
        """,
        # an override that says the same
        BASE.replace("owner/name", "owner/name, device: cpu"),
        # more than any worker has
        BASE.replace("{device: cpu,", "{device: cpu, tokenizer_mode: slow, max_model_len: 9,"),
        # into an anchor, and out of an extension
        "x-env: &e {B: y}\n" + BASE.replace("{B: y}", "*e"),
        "x-w: &w {model_path: owner/name}\n"
        + BASE.replace("w: {model_path: owner/name,", "w: {<<: *w,"),
        # another order
        BASE.replace("model_path: owner/name, env: {B: y}", "env: {B: y}, model_path: owner/name"),
        # in other words
        BASE.replace("restart: never", "restart: {policy: never, backoff: 1000ms, limit: null}"),
        BASE.replace("[sleep, 1]", "['${PROGRAM:-sleep}', '1']"),
        BASE.replace("port: 8001", "port: '8001', host: 127.0.0.1, api_keys: ''"),
        BASE + "port_range: 21002-21999\nlogs: {max_size: 50MiB}\n",
    ],
)  # fmt: skip
def test_what_only_moved_is_no_difference(write: Writer, text: str) -> None:
    assert texts(write, BASE, text) == []
    assert texts(write, text, BASE) == []


def test_the_order_of_sections_and_services_is_no_difference(write: Writer) -> None:
    cluster = write.cluster(BASE)
    values = yaml.safe_load(BASE)
    values["workers"] = dict(reversed(values["workers"].items()))
    reversed_text = json.dumps(dict(reversed(values.items())))
    assert differences(cluster, write.cluster(reversed_text)) == []


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "section",
    [
        "env: {TOKEN: %s}",
        "api_server: {api_keys: [%s]}",
        "api_server: {api_keys: %s}",
        "api_server: {api_keys: [always, %s]}",
        "api_server: {env: {TOKEN: %s}}",
        "api_server: {args: [--token, %s]}",
        "controller: {args: ['--token=%s'], env: {A: %s}}",
        "web_server: {args: [%s], env: {A: %s}}",
        "defaults: {env: {TOKEN: %s}, args: [%s]}",
        "services: {s: {command: [run, %s]}}",
        "services: {s: {command: [run], env: {TOKEN: %s}}}",
        "services: {s: {command: [run], ready: {command: [ask, %s]}}}",
        "services: {s: {command: [run], probes: {liveness: {command: [ask, %s]}}}}",
        "services: {%s: {command: [run, %s]}}",
    ],
)
def test_no_difference_tells_a_secret(write: Writer, section: str) -> None:
    worker = "workers: {w: {model_path: owner/name}}\n"
    one, two = (
        worker + section.replace("{%s:", "{s:").replace("%s", f"{SECRET}-{i}") for i in (1, 2)
    )
    for old, new in ((one, two), (worker, one), (one, worker)):
        found = differences(write.cluster(old), write.cluster(new))
        assert found
        for difference in found:
            assert SECRET not in str(difference)
            assert SECRET not in repr(difference)


def test_no_difference_tells_the_keys_of_a_file(write: Writer) -> None:
    text = "api_server: {api_keys_file: keys}"
    clusters = []
    for i in (1, 2):
        (write.folder / "keys").write_text(f"{SECRET}-{i}\n")
        clusters.append(write.cluster(text))
    (difference,) = differences(*clusters)
    assert (difference.path, str(difference)) == (
        ("api_server", "api_keys"),
        "api_server.api_keys changed",
    )


@pytest.mark.parametrize("place", ["", "controller", "api_server", "services.s"])
def test_no_difference_tells_the_variables_of_a_file(write: Writer, place: str) -> None:
    values: Any = {"services": {"s": {"command": ["a"]}}}
    entry = values
    for part in filter(None, place.split(".")):
        entry = entry.setdefault(part, {})
    entry["env_file"] = "vars"
    clusters = []
    for i in (1, 2):
        (write.folder / "vars").write_text(f"TOKEN={SECRET}-{i}\nSAME=same\n")
        clusters.append(write.cluster(json.dumps(values)))
    (difference,) = differences(*clusters)
    assert str(difference) == f"{place}.env.TOKEN changed".lstrip(".")


# ---------------------------------------------------------------- for any file


NAMES = st.sampled_from(["a", "b", "c"])
SMALL = st.integers(1, 9)
ENV = st.dictionaries(st.sampled_from(["A", "B"]), st.text("xyz", max_size=3), max_size=2)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "description": st.text("xyz", max_size=3),
        "env": ENV,
        "stop_grace": SMALL,
        "restart": st.fixed_dictionaries(
            {}, optional={"limit": SMALL, "policy": st.sampled_from(["always", "never"])}
        ),
        "probes": st.fixed_dictionaries(
            {},
            optional={
                "startup": st.fixed_dictionaries({}, optional={"deadline": SMALL}),
                "liveness": st.fixed_dictionaries({}, optional={"failures": SMALL}),
            },
        ),
    },
)


def with_fields(required: Any, optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda one, two: {**one, **two}, FIELDS, st.fixed_dictionaries(required, optional=optional)
    )


WORKER = with_fields(
    {"model_path": st.sampled_from(["o/one", "o/two"])},
    {
        "replicas": st.integers(0, 3),
        "model_names": st.lists(NAMES, max_size=2, unique=True),
        "gptq": st.fixed_dictionaries({"wbits": st.sampled_from([4, 8])}),
        "conv_template": NAMES,
        "load_8bit": st.just(False),
    },
)
COMMAND = with_fields({"command": st.lists(NAMES, min_size=1, max_size=2)}, {"cwd": NAMES})
SERVER = with_fields({}, {"port": st.integers(8000, 8009), "api_keys": st.lists(NAMES, max_size=2)})
CLUSTERS = st.fixed_dictionaries(
    {"workers": st.dictionaries(NAMES.map("w-{}".format), WORKER, min_size=1, max_size=2)},
    optional={
        "services": st.dictionaries(NAMES.map("s-{}".format), COMMAND, max_size=2),
        "api_server": SERVER,
        "defaults": st.fixed_dictionaries({}, optional={"device": st.just("cpu"), "env": ENV}),
        "env": ENV,
        "logs": st.fixed_dictionaries({}, optional={"keep": SMALL}),
    },
)


def cluster_of(values: Any) -> Cluster:
    return load_text(json.dumps(values), Path("/nowhere/cluster.yaml"), {}).cluster


QUICK = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@QUICK
@given(CLUSTERS)
def test_nothing_differs_from_itself(values: Any) -> None:
    assert differences(cluster_of(values), cluster_of(values)) == []


@QUICK
@given(CLUSTERS, CLUSTERS)
def test_two_that_differ_have_differences_both_ways(one: Any, two: Any) -> None:
    old, new = (
        cluster_of(values).model_copy(update={"defaults": Defaults()}) for values in (one, two)
    )
    there, back = differences(old, new), differences(new, old)
    assert bool(there) == bool(back) == (old != new)
    assert {d.path for d in there} == {d.path for d in back}
    assert {(d.path, d.old, d.new) for d in there} == {(d.path, d.new, d.old) for d in back}
    assert len({d.path for d in there}) == len(there)


def leaves(model: Model, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field that has no fields of its own; of a dictionary, every entry."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if (*path, name) == ("defaults",):
            continue
        if isinstance(value, Model):
            yield from leaves(value, (*path, name))
        elif isinstance(value, dict) and value:
            for key, item in value.items():
                inner = (*path, name, key)
                yield from leaves(item, inner) if isinstance(item, Model) else [inner]
        else:
            yield (*path, name)


OTHER = object()


def with_other(model: Any, path: tuple[str | int, ...]) -> Any:
    """The same with another value at ``path``; it is not validated again."""
    name, *rest = path
    if isinstance(model, dict):
        inner = with_other(model[name], tuple(rest)) if rest else OTHER
        return {**model, name: inner}
    inner = with_other(getattr(model, str(name)), tuple(rest)) if rest else OTHER
    return model.model_copy(update={str(name): inner})


@QUICK
@given(CLUSTERS)
def test_any_single_change_is_found_at_its_place(values: Any) -> None:
    cluster = cluster_of(values)
    for path in leaves(cluster):
        found = differences(cluster, with_other(cluster, path))
        assert [one.path for one in found] == [path]
        assert isinstance(found[0], Difference)


def test_a_password_in_an_address_is_not_told(write: Writer) -> None:
    text = "services: {a: {command: [x], ready: {http: '%s'}}}"
    old, new = (write.load(text % url).cluster for url in ("http://x/", "http://me:pw@x/"))
    assert "pw" not in str(differences(old, new))
    assert "//***@x/" in str(differences(old, new)[0])
