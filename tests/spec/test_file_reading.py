"""What a cluster file says: variables, anchors, defaults, units, and the forms people write."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from writer import Writer

from supervisor.core.durations import format_duration
from supervisor.spec.model import ApiServer, Cluster, ModelWorker, VllmWorker
from supervisor.spec.paths import looks_local, resolve
from supervisor.spec.values import parse_duration, parse_size


def worker(cluster: Cluster, name: str = "a") -> ModelWorker:
    found = cluster.workers[name]
    assert isinstance(found, ModelWorker)
    return found


# ---------------------------------------------------------------- variables


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NAME}", "owl"),
        ("${NAME:-other}", "owl"),
        ("${UNSET:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-}x", "x"),
        ("'${NAME}'", "owl"),
        ("${NAME}-${NAME}", "owl-owl"),
        ("$${NAME}", "${NAME}"),
        ("$NAME costs 5$", "$NAME costs 5$"),
        ("${UNSET:-5$}", "5$"),
        ("'${COLON}'", "a: b"),
        ("|\n  ${NAME}\n", "owl\n"),
    ],
)
def test_variables_come_from_the_environment(write: Writer, written: str, value: str) -> None:
    write.environ = {"NAME": "owl", "EMPTY": "", "COLON": "a: b"}
    assert write.cluster(f"controller: {{}}\ndescription: {written}").description == value


@pytest.mark.parametrize("written", ["${PORT}", "'${PORT}'", '"${UNSET:-8123}"', "${UNSET:-8123}"])
def test_types_are_decided_after_variables_are_replaced(write: Writer, written: str) -> None:
    write.environ = {"PORT": "8123", "ON": "true"}
    cluster = write.cluster(f"api_server:\n  port: {written}\n  allow_credentials: ${{ON}}\n")
    assert cluster.api_server == ApiServer(port=8123, allow_credentials=True)


def test_a_wrong_type_from_a_variable_is_an_error_where_the_variable_stands(write: Writer) -> None:
    write.environ = {"PORT": "http"}
    assert write.errors("api_server:\n  port: ${PORT}") == [
        "2:9: api_server.port: must be a whole number"
    ]


# ---------------------------------------------------------------- texts stay as they are written


def test_texts_that_look_like_numbers_stay_texts(write: Writer) -> None:
    cluster = write.cluster(
        """
        env: {CUDA_VERSION: 12.10, MODE: 0755, FLAG: on, N: 1_000, DAY: 2024-01-01, EMPTY: ""}
        services: {s: {command: [serve, 1.10, no, 0x1F], env: {T: 4}}}
        workers: {env: {model_path: x, port: 9000, args: [--ratio, 1e3]}}
        api_server: {api_keys: [0123, 12]}
        """
    )
    assert cluster.env == {
        "CUDA_VERSION": "12.10",
        "MODE": "0755",
        "FLAG": "on",
        "N": "1_000",
        "DAY": "2024-01-01",
        "EMPTY": "",
    }
    assert cluster.services["s"].command == ("serve", "1.10", "no", "0x1F")
    assert cluster.services["s"].env == {"T": "4"}
    assert worker(cluster, "env").args == ("--ratio", "1e3")
    assert worker(cluster, "env").port == 9000
    assert cluster.api_server is not None
    assert [key.get_secret_value() for key in cluster.api_server.api_keys] == ["0123", "12"]


# ---------------------------------------------------------------- anchors


def test_own_keys_win_over_merged_ones_and_earlier_merges_over_later(write: Writer) -> None:
    cluster = write.cluster(
        """
        x-one: &one {device: cpu, seed: 1, model_path: one}
        x-two: &two {seed: 2, dtype: float32}
        workers:
          a: {model_path: own, <<: [*one, *two]}
          b: &b {<<: *one, seed: 3}
          c: {<<: *b}
        """
    )
    a = worker(cluster)
    assert (a.model_path, a.device, a.seed, a.dtype) == ("own", "cpu", 1, "float32")
    assert worker(cluster, "c") == worker(cluster, "b")
    assert worker(cluster, "c").seed == 3


def test_an_error_in_an_anchor_is_shown_where_it_is_written(write: Writer) -> None:
    text = """\
    x-gpu: &gpu
      gpus: [0]
      num_gpus: 2
    workers:
      a: {<<: *gpu, model_path: x}
    """
    assert write.errors(textwrap.dedent(text))[0].startswith("3:13: workers.a.num_gpus: num_gpus")


def test_a_merged_key_is_no_duplicate(write: Writer) -> None:
    cluster = write.cluster("workers:\n  a: &a {model_path: x, seed: 1}\n  b: {<<: *a, seed: 2}")
    assert worker(cluster, "b").seed == 2


# ---------------------------------------------------------------- defaults


def test_defaults_apply_where_the_kind_has_the_option(write: Writer) -> None:
    cluster = write.cluster(
        """
        defaults:
          device: cpu
          conv_template: vicuna_v1.1
          trust_remote_code: false
          limit_worker_concurrency: 7
        workers:
          a: {model_path: x}
          b: {model_path: x, conv_template: zero_shot, kind: vllm_worker}
          c: {model_path: x, kind: mlx_worker}
        """
    )
    a, b, c = cluster.workers.values()
    assert isinstance(a, ModelWorker)
    assert isinstance(b, VllmWorker)
    assert (a.device, a.conv_template, a.limit_worker_concurrency) == ("cpu", "vicuna_v1.1", 7)
    assert (b.conv_template, b.trust_remote_code, b.limit_worker_concurrency) == (
        "zero_shot",
        False,
        7,
    )
    assert not hasattr(c, "limit_worker_concurrency")


def test_mappings_are_merged_key_by_key_and_the_worker_wins(write: Writer) -> None:
    cluster = write.cluster(
        """
        defaults:
          env: {A: 1, B: 2}
          probes: {startup: {deadline: 1h, interval: 2s}}
          gptq: {wbits: 4, groupsize: 128}
          gpus: [0, 1]
        workers:
          a:
            model_path: x
            env: {B: 3}
            probes: {startup: {interval: 1s}, liveness: {enabled: false}}
            gptq: {act_order: true}
            gpus: [2]
          b: {model_path: x, gptq: null}
        """
    )
    a = worker(cluster)
    assert a.env == {"A": "1", "B": "3"}
    assert (a.probes.startup.deadline, a.probes.startup.interval) == (3600, 1)
    assert not a.probes.liveness.enabled
    assert a.gptq is not None
    assert (a.gptq.wbits, a.gptq.groupsize, a.gptq.act_order) == (4, 128, True)
    assert a.gpus == (2,)
    assert worker(cluster, "b").gptq is None


def test_the_kind_can_be_a_default(write: Writer) -> None:
    cluster = write.cluster(
        "defaults: {kind: vllm_worker, quantization: awq}\n"
        "workers: {a: {model_path: x}, b: {kind: model_worker, model_path: x}}"
    )
    assert cluster.workers["a"] == VllmWorker(
        kind="vllm_worker", model_path="x", quantization="awq"
    )
    assert isinstance(cluster.workers["b"], ModelWorker)


# ---------------------------------------------------------------- forms


def test_short_forms(write: Writer) -> None:
    cluster = write.cluster(
        """
        port_range: 22000-22099
        workers:
          a: {model_path: x, gpus: "0, 1", model_names: "m, n", restart: never}
          b: {model_path: x, gpus: 3, max_gpu_memory: 13Gib}
          c: {model_path: x, gpus: [GPU-8f6e, MIG-1/2]}
        api_server: {api_keys: "one, two,"}
        """
    )
    a = worker(cluster)
    assert (a.gpus, a.model_names, a.restart.policy) == ((0, 1), ("m", "n"), "never")
    assert worker(cluster, "b").gpus == (3,)
    assert worker(cluster, "c").gpus == ("GPU-8f6e", "MIG-1/2")
    assert cluster.port_range == (22000, 22099)
    assert cluster.api_server is not None
    assert len(cluster.api_server.api_keys) == 2


def test_a_section_with_nothing_but_comments_has_its_defaults(write: Writer) -> None:
    cluster = write.cluster(
        "controller:\n  # port: 1\napi_server:\nweb_server:\nworkers:\nservices:\ndefaults:\n"
    )
    assert cluster.api_server == ApiServer()
    assert cluster.controller is not None
    assert cluster.web_server is not None
    assert cluster.workers == {}
    assert write.cluster("workers: {a: {model_path: x}}").api_server is None


def test_bom_and_windows_line_ends_change_nothing(write: Writer) -> None:
    text = "workers:\n  a:\n    model_path: x\n    sede: 1\n"
    plain = write.errors(text)
    assert plain == ["4:5: workers.a.sede: unknown key 'sede'; did you mean 'seed'?"]
    assert write.errors(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == plain


def test_columns_count_characters_not_bytes(write: Writer) -> None:
    assert write.errors("description: ü€😀\nworkers: {ü: 1}")[0].startswith("2:11: workers.ü: ")
    assert write.errors("{description: ü€😀, sevices: {}}")[0].startswith("1:20: sevices: ")


def test_paths_start_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve(tmp_path / "configs", "../models/owl") == tmp_path / "models/owl"
    assert resolve(tmp_path, "~/owl") == Path("/home/me/owl")
    assert resolve(tmp_path, "~nobody-of-that-name/owl") == tmp_path / "~nobody-of-that-name/owl"


def test_what_is_a_folder_and_what_a_hugging_face_name(tmp_path: Path) -> None:
    (tmp_path / "models" / "owl").mkdir(parents=True)
    local = ["/x", "./x", "../x", "~/x", "a/b/c", "models", "models/owl", "models/none", "gpt2/"]
    assert [path for path in local if not looks_local(tmp_path, path)] == []
    names = ["gpt2", "lmsys/vicuna-7b-v1.5", "x" * 5000]
    assert [name for name in names if looks_local(tmp_path, name)] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("1h 30m", 5400), ("1.5h", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5", "5y", "1m30", "5s later", "1:30", "٣s s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1KiB", 1024),
        ("1 kB", 1000),
        ("1.5MiB", 1572864),
        ("2g", 2 * 10**9),
        ("1Ti", 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "B", "-1", "1PiB", "1e3", "1 i"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_durations_as_people_read_them() -> None:
    shown = [format_duration(s) for s in (0.2, 45, 59.7, 200, 7500, 273600)]
    assert shown == ["0.2s", "45s", "1m", "3m 20s", "2h 5m", "3d 4h"]
