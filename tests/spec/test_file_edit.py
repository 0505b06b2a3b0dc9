"""Edits of a file's text: they do what they should, and keep comments, order, quotes and anchors.

ruamel.yaml writes the lines that an edit changes: two spaces at least before a comment, a flow
collection in one line. All other lines stay as they are, byte for byte.
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from supervisor.spec.editing import tree
from supervisor.spec.editing.edit import (
    add_worker,
    remove_service,
    services,
    set_fields,
    unset_fields,
)
from supervisor.spec.editing.nodes import parse, write
from supervisor.spec.editing.tree import EditError
from supervisor.spec.editing.values import from_command_line
from supervisor.spec.load import load_text
from supervisor.spec.model import SINGLETONS

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ENVIRON = {"A": "1", "NAME": "x"}


def text_of(name: str) -> str:
    return (ROOT / "configs" / name).read_text()


def changed(old: str, new: str) -> list[str]:
    """The lines that a unified diff shows, without their surroundings."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@functools.cache
def comments(text: str) -> list[str]:
    return list(tree.comments(text).elements())


def one(fields: dict[str, Any], text: str, name: str) -> list[str]:
    return changed(text, set_fields(text, name, fields))


# ---------------------------------------------------------------- the shipped files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_round_trip_of_a_shipped_file_changes_nothing(path: Path) -> None:
    assert write(parse(path.read_text())) == path.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_that_gets_what_it_has_stays_as_it_is(path: Path) -> None:
    text = path.read_text()
    for name in services(text):
        place = services(text)[name]
        entry = yaml.safe_load(text)[place[0]]
        entry = entry if len(place) == 1 else entry[place[1]]
        assert set_fields(text, name, entry) == text


def test_set_changes_one_line_and_its_comment_keeps_its_column() -> None:
    gone, new = one({"replicas": 12}, text_of("cluster.yaml"), "tiny-owl")
    assert gone.startswith("-    replicas: 2                     # two processes; requests")
    assert new == gone.replace("-    replicas: 2 ", "+    replicas: 12")


def test_a_comment_that_is_not_aligned_follows_its_value() -> None:
    """It keeps its column when the value becomes shorter again: so does ruamel.yaml."""
    text = "services:\n  a: {command: [x]}  # one\n"
    new = set_fields(text, "a", {"env.LONG": "value"})
    assert new.endswith("[x], env: {LONG: value}}  # one\n")
    back = unset_fields(new, "a", ["env.LONG"])
    assert re.sub(" +#", "  #", back) == text


def test_a_new_option_stands_behind_the_others_of_its_entry() -> None:
    text = text_of("cluster.yaml")
    new = set_fields(text, "tiny-fox", {"probes.liveness.interval": "5s", "env.FOO": 1})
    assert changed(text, new) == [
        "+    probes: {liveness: {interval: 5s}}",
        "+    env: {FOO: 1}",
    ]
    assert "tiny-fox\n    probes:" in new


def test_inside_braces_only_the_value_changes() -> None:
    assert one({"gptq.wbits": 8, "gptq.ckpt": "x"}, text_of("gpu-server.yaml"), "mistral-7b") == [
        "-    gptq: {wbits: 4, groupsize: 128, act_order: true}",
        "+    gptq: {wbits: 8, groupsize: 128, act_order: true, ckpt: x}",
    ]


def test_what_a_merge_brings_is_overridden_in_the_entry() -> None:
    text = text_of("many-models.yaml")
    assert one({"limit_worker_concurrency": 2}, text, "vicuna-7b") == [
        "+    limit_worker_concurrency: 2"
    ]


def test_a_new_worker_stands_behind_the_last_and_before_commented_examples() -> None:
    text = text_of("cluster.yaml")
    new = add_worker(text, "new", {"model_path": "a/b", "gpus": [0, 1], "gptq.wbits": 4})
    assert changed(text, new) == [
        "+  new:",
        "+    model_path: a/b",
        "+    gpus: [0, 1]",
        "+    gptq: {wbits: 4}",
    ]
    assert "tiny-fox\n  new:" in new
    assert remove_service(new, "new") == text


def test_a_new_worker_is_set_apart_as_the_others_are() -> None:
    text = text_of("many-models.yaml")
    new = add_worker(text, "new", {"model_path": "a/b"})
    assert changed(text, new) == ["+  new:", "+    model_path: a/b", "+"]
    assert remove_service(new, "new") == text


def test_a_removed_worker_leaves_the_examples_that_follow() -> None:
    text = text_of("cluster.yaml")
    assert changed(text, remove_service(text, "tiny-fox")) == [
        "-  tiny-fox:",
        "-    model_path: ../models/tiny-fox",
    ]


def test_a_removed_section_leaves_the_comment_of_the_next() -> None:
    new = remove_service(text_of("cluster.yaml"), "api_server")
    assert "\n\n# Anything else that belongs to the cluster." in new
    assert "\n\n\n" not in new
    assert "api_keys_file" not in new


def test_the_last_option_takes_the_mappings_around_it_with_it() -> None:
    text = text_of("many-models.yaml")
    lines = changed(text, unset_fields(text, "embeddings", ["probes.startup.fastchat"]))
    assert [line[:14] for line in lines] == ["-    probes:", "-      startup"]


# ---------------------------------------------------------------- what belongs to whom

HEAD = "# head\ncontroller: {}  # here\n"


def test_comments_of_an_entry_go_with_it_and_those_of_others_stay() -> None:
    text = (
        "workers:\n  # about a\n  a:\n    model_path: x/y  # path of a\n    # end of a\n\n"
        "  # about b\n  b:\n    model_path: x/y\n"
    )
    assert comments(remove_service(text, "a")) == ["# about b"]
    assert comments(remove_service(text, "b")) == ["# about a", "# path of a", "# end of a"]
    assert remove_service(text, "b").endswith("# end of a\n")


def test_an_entry_that_somebody_has_commented_out_stays() -> None:
    text = (
        "workers:\n  a: {model_path: x/y}\n"
        "  # The old one:\n  # old:\n  #   model_path: x/z\n  b: {model_path: x/y}\n"
    )
    assert changed(text, remove_service(text, "b")) == ["-  b: {model_path: x/y}"]


def test_the_head_of_the_file_is_not_of_its_first_section() -> None:
    text = HEAD + "workers: {a: {model_path: x/y}}\n"
    assert comments(remove_service(text, "controller")) == ["# head"]


def test_others_who_share_an_anchor_keep_what_they_have() -> None:
    text = "x-q: &q {wbits: 4, groupsize: 1}  # q\nworkers:\n"
    text += "  a: {model_path: x/y, gptq: *q}\n  b:\n    model_path: x/y\n    gptq: *q  # shared\n"
    new = set_fields(text, "b", {"gptq.wbits": 8})
    assert changed(text, new) == [
        "-    gptq: *q  # shared",
        "+    gptq: {wbits: 8, groupsize: 1}  # shared",
    ]
    assert changed(text, unset_fields(text, "b", ["gptq.groupsize"]))[1] == (
        "+    gptq: {wbits: 4}  # shared"
    )


def test_what_stands_in_a_merged_mapping_is_copied() -> None:
    text = "x-p: &p\n  probes: {startup: {deadline: 5m}}\nworkers:\n  a:\n    <<: *p\n"
    text += "    model_path: x/y\n"
    assert one({"probes.startup.timeout": 1}, text, "a") == [
        "+    probes: {startup: {deadline: 5m, timeout: 1}}"
    ]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: set_fields(text, "a", {"gptq.wbits": 8}),
        lambda text: unset_fields(text, "a", ["gptq"]),
        lambda text: remove_service(text, "a"),
    ],
)
def test_an_anchor_that_others_use_is_left_to_people(edit: Any) -> None:
    text = "workers:\n  a: &a\n    model_path: x/y\n    gptq: &g {wbits: 4}\n"
    text += "  b: {<<: *a, model_names: [c]}\n"
    with pytest.raises(EditError, match="others use too; edit the file by hand"):
        edit(text)


def test_what_comes_from_a_merge_cannot_be_unset() -> None:
    text = "x-p: &p {device: cpu}\nworkers:\n  a: {<<: *p, model_path: x/y}\n"
    with pytest.raises(EditError, match="comes from an anchor"):
        unset_fields(text, "a", ["device"])


def test_a_service_stays_when_its_last_option_goes() -> None:
    assert unset_fields("api_server:\n  port: 1\n", "api_server", ["port"]) == "api_server:\n"
    assert unset_fields("api_server: {port: 1}\n", "api_server", ["port"]) == "api_server: {}\n"
    assert unset_fields("logs: {keep: 1}\nenv: {}\n", ".", ["logs.keep"]) == "env: {}\n"


def test_a_comment_behind_an_alias_stays_beside_it() -> None:
    text = "x: &x {port: 1}  # x\nworkers:\n  a: *x  # foo\n  b: *x   # fah\n  # end\n"
    assert changed(text, add_worker(text, "c", {"port": 2})) == ["+  c:", "+    port: 2"]
    assert changed(text, remove_service(text, "a")) == ["-  a: *x  # foo"]
    assert one({"port": 2}, text, "b") == ["-  b: *x   # fah", "+  b: {port: 2}  # fah"]


def test_the_comments_of_a_section_outlive_its_last_entry() -> None:
    text = "workers: # w\n  a:\n    x: 1 # k\n    # own\n\n  # b:\n  #  x: 1\n\n# tail\nenv: {}\n"
    assert changed(text, remove_service(text, "a")) == [
        "-  a:",
        "-    x: 1 # k",
        "-    # own",
        "-",
    ]
    assert comments(remove_service("# h\n\napi_server: {} # a\n# tail\n", "api_server")) == [
        "# h",
        "# tail",
    ]


def test_a_replaced_block_takes_the_comments_inside_it_away_and_no_others() -> None:
    text = "workers:\n  b:\n    gptq: # g\n      # in\n      wbits: 4 # f\n"
    text += "    # out\n    port: 1 # p\n"
    new = set_fields(text, "b", {"gptq": {"wbits": 8}})
    assert sorted(comments(new)) == ["# g", "# out", "# p"]


def test_what_ruamel_would_change_elsewhere_stays() -> None:
    text = (
        "%YAML 1.1\n# head\n---\nx: &x   # x\n  a:   1\nworkers:\n    a: {port: 1, # one\n"
        "      env: {X: 'y'}}\n    b:\n        args: [a,\n          b] # two\n"
        "        cwd: >-\n            folded\n            text\n\n            more\n"
        "        note: plain\n          text\n    c: {<<: *x, port: 2}\n"
    )
    assert one({"port": 3}, text, "b") == ["+        port: 3"]
    assert one({"port": 3}, text, "c") == ["-    c: {<<: *x, port: 2}", "+    c: {<<: *x, port: 3}"]
    with pytest.raises(EditError, match="cannot tell whose the comments"):
        set_fields(text, "a", {"port": 3})


def test_what_follows_a_text_of_several_lines_is_not_made_part_of_it() -> None:
    text = "services:\n  a:\n    cwd: |\n      x\n\n      y\n    # end of a\n# tail\n"
    assert one({"port": 1}, text, "a") == ["+    port: 1"]
    assert yaml.safe_load(set_fields(text, "a", {"port": 1}))["services"]["a"]["cwd"] == "x\n\ny\n"


SPELLINGS = [
    *("0755", "0o17", "0x1F", "1_000", "1.10", "1e3", ".5", "~", "null", "2024-01-01", "on", "No"),
    *("1:30", "${VAR}", "'on'", "=", "", '"a\\tb"', "!!str 5", "&u 1"),
    *("x" * 300, "word " * 60 + "end"),
]


@pytest.mark.parametrize("scalar", SPELLINGS)
def test_other_values_keep_their_spelling(scalar: str) -> None:
    text = f"workers:\n  a:\n    x: {scalar}\n    y: [{scalar.strip('&')}]\n    port: 1\n"
    text = text.replace("[${VAR}]", "['${VAR}']").rstrip(" ")
    new = set_fields(text, "a", {"port": 2})
    assert new == text.replace("port: 1", "port: 2")


# ---------------------------------------------------------------- the form of the file

FORMS = {
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "mark": lambda text: "\ufeff" + text,
    "no end": lambda text: text.rstrip("\n"),
    "head": lambda text: "%YAML 1.1\n---\n" + text,
    "deep": lambda text: re.sub(r"(?m)^( +)(- )?", r"\1\1\2\2", text).replace("- - ", "-   "),
    "end": lambda text: text + "...\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_form_of_the_file_stays(form: str, path: Path) -> None:
    plain = path.read_text()
    text = FORMS[form](plain)
    name = next(iter(yaml.safe_load(plain)["workers"]))
    added = set_fields(add_worker(text, "new", {"model_path": "a/b"}), name, {"replicas": 7})
    assert added.startswith("\ufeff") == text.startswith("\ufeff")
    assert added.endswith("\n") == text.endswith("\n")
    assert added.count("\r\n") == (added.count("\n") if form == "crlf" else 0)
    assert set(text.split("\n")) - set(added.split("\n")) <= {
        line for line in text.split("\n") if "replicas: " in line
    }
    assert yaml.safe_load(added)["workers"]["new"] == {"model_path": "a/b"}
    assert remove_service(added, "new") == set_fields(text, name, {"replicas": 7})


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", "workers:\n  a:\n    model_path: x/y\n"),
        ("# mine\n", "# mine\n\nworkers:\n  a:\n    model_path: x/y\n"),
        ("workers:\n", "workers:\n  a:\n    model_path: x/y\n"),
        ("workers:  # mine\n", "workers:  # mine\n  a:\n    model_path: x/y\n"),
        ("workers: {}  # mine\n", "workers:     # mine\n  a:\n    model_path: x/y\n"),
        ("workers:\n  # b: {}\n", "workers:\n  a:\n    model_path: x/y\n  # b: {}\n"),
        ("env: {}\n", "env: {}\n\nworkers:\n  a:\n    model_path: x/y\n"),
        ("{}\n", "{workers: {a: {model_path: x/y}}}\n"),
        ("workers: {b: {}}\n", "workers: {b: {}, a: {model_path: x/y}}\n"),
    ],
)
def test_a_first_worker(text: str, result: str) -> None:
    assert add_worker(text, "a", {"model_path": "x/y"}) == result


def test_a_block_becomes_one_line_and_back() -> None:
    text = "services:\n  a:\n    command:  # what\n    - sleep\n    - '1'\n    cwd: |\n      x\n"
    new = set_fields(text, "a", {"command": ["true"], "cwd": "y"})
    assert new == "services:\n  a:\n    command: ['true']  # what\n    cwd: y\n"


# ---------------------------------------------------------------- values from the command line


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("4", "4"),
        ("true", "true"),
        ("20GiB", "20GiB"),
        ("[0, 1]", "[0, 1]"),
        ("{wbits: 4}", "{wbits: 4}"),
        ("0755", "0755"),  # a text in `env`, as in a file
        ("on", "on"),
        ('"on"', '"on"'),
        ("${PORT:-1}", "${PORT:-1}"),
        ("", "''"),
        ("null", "null"),
        ("note: this", "'note: this'"),
        ("a #b", "'a #b'"),
        ("*.example.com", "'*.example.com'"),
        ("&a x", "'&a x'"),
        ("- a", "'- a'"),
        ("@x", "'@x'"),
        ("a\nb", '"a\\nb"'),
        ("http://127.0.0.1:1/", "http://127.0.0.1:1/"),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_a_value_of_the_command_line(text: str, written: str) -> None:
    value = from_command_line(text)
    new = set_fields("web_server:\n  port: 1\n", "web_server", {"x": value})
    assert new.splitlines()[-1] == f"  x: {written}"


@pytest.mark.parametrize(
    "text", ["on", "0755", "1_000", "1:30", "1e3", "~", "null", ".5", "2024-01-01"]
)
def test_a_text_stays_a_text(text: str) -> None:
    new = add_worker("", "a", {"model_path": text, "env.X": text})
    assert yaml.safe_load(new)["workers"]["a"] == {"model_path": text, "env": {"X": text}}


def test_a_collection_that_does_not_end_is_no_text() -> None:
    with pytest.raises(EditError, match="is not YAML"):
        from_command_line("[0, 1")


# ---------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: add_worker(t, "vicuna", {}), "is in the file already; change it with `set`"),
        (
            lambda t: remove_service(t, "vicunia"),
            "did you mean 'vicuna'? there are: controller, vi",
        ),
        (lambda t: remove_service(t, "."), "there is no service '.'"),
        (lambda t: remove_service(t, "web_server"), "there is no service 'web_server'"),
        (lambda t: set_fields(t, "vicuna", {"a..b": 1}), "'a..b' names no option"),
        (lambda t: set_fields(t, "vicuna", {"model_path.x": 1}), "is no mapping"),
        (lambda t: unset_fields(t, "vicuna", ["port"]), "workers.vicuna.port is not set"),
        (lambda t: remove_service("a: [", "a"), "not YAML"),
    ],
)
def test_a_sentence_says_why_not(edit: Any, says: str) -> None:
    text = "controller: {}\nworkers: {vicuna: {model_path: x/y}}\n"
    with pytest.raises(EditError) as caught:
        edit(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: &a [*a]\nworkers: {}", "a: 1\n---\nb: 2\n", "\x01", "- a\n", "x"]
)
def test_what_is_no_cluster_file_is_refused(text: str) -> None:
    with pytest.raises(EditError):
        add_worker(text, "a", {})


def test_comments_inside_braces_are_not_guessed_at() -> None:
    text = "workers: {a: {model_path: x/y, # one\n  port: 1, # two\n  device: cpu}}\n"
    with pytest.raises(EditError, match="cannot tell whose the comments"):
        unset_fields(text, "a", ["port"])


# ---------------------------------------------------------------- at random

SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.text(max_size=12).filter(lambda t: "\0" not in t and t.isprintable()),
    st.sampled_from(["on", "0755", "1:30", "${A}", "# x", "- y", "a: b", "{z}", "a\nb", "'", '"']),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["k", "l.m", "on", "1", "x y"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ["port", "gptq.wbits", "gptq.ckpt", "env.A", "env.B", "probes.startup.x", "args"]


TEXTS = [
    """# head
x-q: &q   # q
  wbits: 4
  ckpt: "x"
x-m: &m {env: {A: 1}, port: 0x10}

defaults:
    device: cpu   # spaced
# about workers
workers:
    a:
        model_path:   x/y   # odd   spaces
        gptq: *q
    # b is
    # next
    b: {model_path: x, <<: *m,
        gptq: {wbits: 4}}   # flow

    # d:
    #     model_path: z
    c:
        <<: [*m, *q]
        # inside c
        probes:
            startup:
                x: >-
                    folded # no comment
                    text
        args:
        - one
        - {two: 2}
        # end of c
# about api
api_server:
services:
    run:
        command: ['sleep',
                  "1"]  # long
        env:
            A: |
                # no comment

                b
# tail
""",
    "{workers: {a: {model_path: x}, b: {}}, api_server: {port: 1}}",
    "api_server: {port: 1} # c\nworkers: # w\n a:\n  env: {A: 1, B: 2}\n  port: 1\n b:\n",
    *(path.read_text() for path in CONFIGS),
]


def placed(values: Any, name: str, *, make: bool = False) -> Any:
    """The options of a service in parsed values; None if it is not there."""
    for section in ("workers", "services"):
        if name in (values.get(section) or {}):
            if values[section][name] is None:
                values[section][name] = {}
            return values[section][name]
    if name in (*SINGLETONS, "defaults") and (make or name in values):
        values[name] = values.get(name) or {}
        return values[name]
    return None


def tidy(values: Any) -> Any:
    """A section or entry that holds nothing is null or empty: the same to us."""
    if isinstance(values, dict):
        return {key: tidy(value) or None for key, value in values.items()}
    return values


def done(values: Any, edit: tuple[str, str, str, Any]) -> Any:
    """The edit, done to parsed values."""
    values = unshared(values)
    verb, name, key, value = edit
    if verb == "add":
        values.setdefault("workers", {})
        values["workers"][name] = {"model_path": "x"}
    elif verb == "remove":
        section = next((s for s in ("workers", "services") if name in (values.get(s) or {})), None)
        (values[section] if section else values).pop(name)
        return values
    entry = placed(values, name, make=True)
    *above, last = key.split(".")
    if verb == "unset":
        trail = [entry]
        for part in above:
            trail.append(trail[-1][part])
        del trail[-1][last]
        while above and not trail[-1]:
            trail.pop()
            del trail[-1][above.pop()]
        if name == "defaults" and not entry:
            del values[name]
        return values
    for part in above:
        if not entry.get(part):
            entry[part] = {}
        entry = entry[part]
    entry[last] = value
    return values


def unshared(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: unshared(value) for key, value in values.items()}
    return [unshared(value) for value in values] if isinstance(values, list) else values


def do(text: str, edit: tuple[str, str, str, Any]) -> str:
    verb, name, key, value = edit
    if verb == "add":
        return add_worker(text, name, {"model_path": "x", key: value})
    if verb == "remove":
        return remove_service(text, name)
    if verb == "unset":
        return unset_fields(text, name, [key])
    return set_fields(text, name, {key: value})


def keys_in(entry: Any, above: str = "") -> list[str]:
    found = []
    for key, value in (entry or {}).items():
        found += [
            above + key,
            *(keys_in(value, f"{above}{key}.") if isinstance(value, dict) else ()),
        ]
    return found


@st.composite
def edits_of(draw: Any, text: str) -> tuple[str, str, str, Any]:
    """An edit that has a chance: of what is there, or is not there yet."""
    verb = draw(st.sampled_from(["set", "set", "unset", "unset", "remove", "add"]))
    known = sorted(services(text))
    name = "new" if verb == "add" else draw(st.sampled_from([*known, "defaults"]))
    entry = placed(yaml.safe_load(text) or {}, name)
    keys = [key for key in keys_in(entry) if "<" not in key]
    key = draw(st.sampled_from(keys if keys and verb == "unset" else [*keys, *KEYS]))
    return verb, name, key, draw(VALUES)


@settings(deadline=None, max_examples=80, phases=[Phase.generate])
@given(text=st.sampled_from(TEXTS), data=st.data())
def test_an_edit_of_the_text_is_the_edit_of_its_values(text: str, data: Any) -> None:
    for _ in range(2):
        edit = data.draw(edits_of(text))
        verb, name, key, _ = edit
        before = yaml.safe_load(text) or {}
        entry = unshared(placed(before, name))
        try:
            new = do(text, edit)
        except EditError as refused:
            event(f"{verb} refused: {re.sub('[a-z_.-]*[.][a-z_.-]*', '_', str(refused))[:40]}")
            continue
        event(f"{verb} done")
        assert tidy(yaml.safe_load(new) or {}) == tidy(done(before, edit))
        lost = set(comments(text)) - set(comments(new))
        if verb == "add":
            assert not lost
            again = yaml.safe_load(remove_service(new, name)) or {}
            assert tidy({"workers": None, **again}) == tidy({"workers": None, **before})
        elif verb == "set":
            assert not lost or isinstance(get(entry, key), dict | list | str)
            assert do(new, edit) == new
            if name in services(text):
                old = get(entry, key)
                back = {key: old} if old is not None else None
                was = set_fields(new, name, back) if back else unset_fields(new, name, [key])
                assert tidy(yaml.safe_load(was)) == tidy(before)
        text = new


def get(entry: Any, key: str) -> Any:
    for part in key.split("."):
        entry = entry.get(part) if isinstance(entry, dict) else None
    return entry


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=20).filter(lambda t: t.isprintable()))
def test_any_value_of_the_command_line_can_be_written(text: str) -> None:
    try:
        value = from_command_line(text)
    except EditError:
        return
    new = set_fields("a: 1  # c\n", ".", {"x": value, "y": [value], "z.k": value})
    values = yaml.safe_load(new)
    assert values["x"] == values["y"][0] == values["z"]["k"] or values["x"] != values["x"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_edited_shipped_file_is_still_valid(path: Path) -> None:
    text = path.read_text()
    new = add_worker(text, "new", {"model_path": "owner/name", "env.X": "on", "device": "cpu"})
    found = load_text(new, path, ENVIRON).cluster
    assert found.workers["new"].env == {"X": "on"}
    assert set(found.workers) - {"new"} == set(yaml.safe_load(text)["workers"])
