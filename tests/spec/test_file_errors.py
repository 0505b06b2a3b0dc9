"""Every mistake of a cluster file has its own message, at its own place, all of them at once."""

from __future__ import annotations

import os
import textwrap

import pytest
from writer import Writer

# Each row: what is wrong; the file; then, for every error, "line:column: path: how it begins".
MISTAKES = [
    (
        "a misspelt key at the top",
        "workers: {a: {model_path: x}}\napi_sever: {}",
        "2:1: api_sever: unknown key 'api_sever'; did you mean 'api_server'?",
    ),
    (
        "a flag where its field belongs",
        "workers: {a: {model_path: x, load-8bit: true}}",
        "1:30: workers.a.load-8bit: unknown key 'load-8bit'; did you mean 'load_8bit'?",
    ),
    (
        "a key that resembles none",
        "workers: {a: {model_path: x}}\nlogs: {colour: red}",
        "2:8: logs.colour: unknown key 'colour'; remove it or use one of: max_size, keep",
    ),
    (
        "an option of another kind of worker",
        "workers: {a: {model_path: x, tokenizer_mode: auto}}",
        "1:30: workers.a.tokenizer_mode: this kind of worker has no option 'tokenizer_mode', "
        "only lightllm_worker; remove it",
    ),
    (
        "a kind that does not exist",
        "workers: {a: {kind: vllm, model_path: x}}",
        "1:21: workers.a.kind: must be one of model_worker, multi_model_worker, vllm_worker, "
        "sglang_worker, lightllm_worker, mlx_worker, huggingface_api_worker; "
        "did you mean 'vllm_worker'?",
    ),
    (
        "a kind that is no text",
        "workers: {a: {kind: [vllm_worker], model_path: x}}",
        "1:21: workers.a.kind: must be one of model_worker, ",
    ),
    (
        "a key twice",
        "workers:\n  a: {model_path: x}\n  a: {model_path: y}",
        "3:3: workers.a: key 'a' stands here a second time (first in line 2); remove one",
    ),
    (
        "a merge twice",
        "x-a: &a {seed: 1}\nworkers:\n  a:\n    <<: *a\n    <<: *a\n    model_path: x",
        "5:5: workers.a: '<<' stands here a second time; write one, `<<: [*a, *b]`",
    ),
    (
        "wrong types",
        """\
        workers:
          a: {model_path: 7, replicas: two, load_8bit: maybe, gpus: [x], env: [A]}
          b: {model_path: x, num_gpus: 1.5, depends_on: c, description: {}}
          c: nothing
        """,
        "2:19: workers.a.model_path: must be a text; put it in quotes",
        "2:32: workers.a.replicas: must be a whole number",
        "2:48: workers.a.load_8bit: must be true or false",
        "2:62: workers.a.gpus[0]: must be a whole number",
        "2:71: workers.a.env: must be a mapping, `key: value`",
        "3:32: workers.b.num_gpus: must be a whole number",
        "3:49: workers.b.depends_on: must be a list, `[a, b]`",
        "3:65: workers.b.description: must be a text; put it in quotes",
        "4:6: workers.c: must be a mapping, `key: value`",
    ),
    (
        "a truth value where a number belongs",
        "workers: {a: {model_path: x, port: yes, replicas: on, stop_grace: no}}",
        "1:36: workers.a.port: must be a number, not true or false",
        "1:51: workers.a.replicas: must be a number, not true or false",
        "1:67: workers.a.stop_grace: must be a number, not true or false",
    ),
    (
        "numbers out of bounds",
        "workers: {a: {model_path: x, port: 70000, replicas: -1, limit_worker_concurrency: 0}}\n"
        "controller: {port: 0}\nlogs: {keep: 101}",
        "1:36: workers.a.port: must be at most 65535",
        "1:53: workers.a.replicas: must be at least 0",
        "1:83: workers.a.limit_worker_concurrency: must be at least 1",
        "2:20: controller.port: must be at least 1",
        "3:14: logs.keep: must be at most 100",
    ),
    (
        "a value outside FastChat's choices",
        "workers: {a: {model_path: x, device: tpu, dtype: int4, gptq: {wbits: 5}}}\n"
        "controller: {dispatch_method: random}",
        "1:38: workers.a.device: must be one of cpu, cuda, mps, xpu or npu",
        "1:50: workers.a.dtype: must be one of float32, float16 or bfloat16",
        "1:70: workers.a.gptq.wbits: must be one of 2, 3, 4, 8 or 16",
        "2:31: controller.dispatch_method: must be one of lottery or shortest_queue",
    ),
    (
        "awq with the bits of gptq",
        "workers: {a: {model_path: x, awq: {wbits: 8}}}",
        "1:43: workers.a.awq.wbits: must be one of 4 or 16",
    ),
    (
        "what is required is missing",
        "workers: {a: {gptq: {}}, b: {kind: huggingface_api_worker}}\nservices: {c: {}}",
        "1:11: workers.a.model_path: is required; add it",
        "1:15: workers.a.gptq.wbits: is required; add it",
        "1:26: workers.b.model_info_file: is required; add it",
        "2:12: services.c.command: is required; add it",
    ),
    (
        "more GPUs for a replica than are listed",
        "workers: {a: {model_path: x, gpus: [0, 1], num_gpus: 3}}",
        "1:54: workers.a.num_gpus: num_gpus is 3, but only 2 are listed in gpus; list more",
    ),
    (
        "a GPU twice, and one that is none",
        "workers: {a: {model_path: x, gpus: [0, 0]}, b: {model_path: x, gpus: [GPU 1]}}",
        "1:36: workers.a.gpus: the same GPU is listed twice",
        "1:71: workers.b.gpus[0]: must be a whole number",
    ),
    (
        "GPUs for the CPU",
        "workers: {a: {model_path: x, gpus: [0], device: cpu}}",
        "1:36: workers.a.gpus: device is cpu, which sees no GPU; remove gpus or set device: cuda",
    ),
    (
        "offloading without 8 bits",
        "workers: {a: {model_path: x, cpu_offloading: true}}",
        "1:46: workers.a.cpu_offloading: works only with 8-bit quantization; add load_8bit: true",
    ),
    (
        "two quantizations at once",
        "workers: {a: {model_path: x, load_8bit: true, awq: {wbits: 4}, gptq: {wbits: 4}}}",
        "1:52: workers.a.awq: load_8bit and gptq and awq exclude each other; choose one",
    ),
    (
        "exllama, which FastChat ignores beside gptq",
        "workers: {a: {model_path: x, exllama: {}, gptq: {wbits: 4}}}",
        "1:39: workers.a.exllama: gptq and exllama exclude each other; choose one quantization",
    ),
    (
        "8 bits on two GPUs",
        "workers: {a: {model_path: x, load_8bit: true, gpus: [0, 1]}, b: {model_path: x,\n"
        "  load_8bit: true, gpus: [0, 1], replicas: 2}}",
        "1:41: workers.a.load_8bit: FastChat loads 8 bits on one GPU only, on more it silently "
        "loads 16; set num_gpus: 1 or add cpu_offloading: true",
    ),
    (
        "hosts that are none",
        "workers: {a: {model_path: x, host: ''}, b: {model_path: x, host: a..b}}\n"
        "api_server: {host: 'http://h'}",
        "1:36: workers.a.host: not a host; write an IP address or a name",
        "1:66: workers.b.host: not a host; write an IP address or a name",
        "2:20: api_server.host: not a host; write an IP address or a name",
    ),
    (
        "xft on a GPU",
        "workers: {a: {model_path: x, xft: {}}}",
        "1:35: workers.a.xft: xFasterTransformer runs on CPUs only; set device: cpu or remove it",
    ),
    (
        "a port twice",
        "workers: {a: {model_path: x, port: 9000, replicas: 3}, b: {model_path: x, port: 9002}}",
        "1:81: workers.b.port: port 9002 is used twice, here and by workers.a; change one",
    ),
    (
        "the port of the controller that nobody wrote down",
        "workers: {a: {model_path: x, port: 21001}}\napi_server: {}",
        "1:36: workers.a.port: port 21001 is used twice, here and by controller; change one",
    ),
    (
        "replicas past the last port",
        "workers: {a: {model_path: x, port: 65535, replicas: 2}}",
        "1:36: workers.a.port: 2 replicas from 65535 on pass port 65535; lower it",
    ),
    (
        "a range of ports that is none",
        "workers: {a: {model_path: x}}\nport_range: 22000-",
        "2:13: port_range: not a range of ports; write it as 21002-21999",
    ),
    (
        "a range of ports that runs backwards",
        "workers: {a: {model_path: x}}\nport_range: [22000, 21000]",
        "2:13: port_range: the first port of the range is larger than the last; swap them",
    ),
    (
        "a dependency that does not exist",
        "workers: {a: {model_path: x, depends_on: [controller, b]}}",
        "1:55: workers.a.depends_on[1]: there is no service 'b'; there are: a, controller",
    ),
    (
        "a dependency that is switched off",
        "workers: {a: {model_path: x, depends_on: [b]}, b: {model_path: x, enabled: false}}",
        "1:43: workers.a.depends_on[0]: 'b' is not enabled; enable it or remove this",
    ),
    (
        "dependencies in circles",
        """\
        services:
          a: {command: [x], depends_on: [b]}
          b: {command: [x], depends_on: [c, d]}
          c: {command: [x], depends_on: [a]}
          d: {command: [x], depends_on: [d]}
        """,
        "2:33: services.a.depends_on: runs in a circle: a -> b -> c -> a; remove one",
        "5:33: services.d.depends_on: runs in a circle: d -> d; remove one",
    ),
    (
        "a controller that is switched off, and needed",
        "controller: {enabled: false}\nworkers: {a: {model_path: x}}",
        "1:23: controller.enabled: workers and servers need a controller; enable it, or name one",
    ),
    (
        "an external controller with a port of its own",
        "controller: {external: 'http://127.0.0.1:1', port: 2}\nworkers: {a: {model_path: x}}",
        "1:52: controller.port: has no meaning beside `external`, which runs elsewhere; remove one",
    ),
    (
        "an external controller that cannot reach the workers",
        """\
        controller: {external: "http://10.0.0.1:21001"}
        defaults: {host: 0.0.0.0}
        workers:
          a: {model_path: x}
          b: {model_path: x, host: 10.0.0.2}
          c: {model_path: x, host: localhost}
        """,
        "2:18: workers.a.host: the controller at http://10.0.0.1:21001 cannot reach a worker at "
        "0.0.0.0; set host to an address of this machine in that network",
        "6:28: workers.c.host: the controller at http://10.0.0.1:21001 cannot reach a worker at "
        "localhost; set host",
    ),
    (
        "addresses that are none",
        "controller: {external: 10.0.0.1:21001}\n"
        "services: {a: {command: [x], ready: {http: localhost}, probes: {liveness: {tcp: x}}}}",
        "1:24: controller.external: must be an address such as http://host:21001",
        "2:44: services.a.ready.http: must be a URL such as http://127.0.0.1:7860/",
        "2:81: services.a.probes.liveness.tcp: must be host:port",
    ),
    (
        "a port that is none to connect to",
        "services: {a: {command: [x], ready: {tcp: 'h:99999'}}}",
        "1:43: services.a.ready.tcp: a port is a number from 1 to 65535; mend it",
    ),
    (
        "a port that is none in an address",
        "controller: {external: 'http://h:99999'}\nworkers: {a: {model_path: x}}",
        "1:24: controller.external: must be an address such as http://host:21001",
    ),
    (
        "models that look local and are not there",
        "workers: {a: {model_path: ./a}, b: {model_path: /b}, c: {model_path: c/d/e}}\n",
        "1:27: workers.a.model_path: there is no model at {folder}/a; mend the path or download it",
        "1:49: workers.b.model_path: there is no model at /b; mend the path or download it",
        "1:70: workers.c.model_path: there is no model at {folder}/c/d/e; mend the path",
    ),
    (
        "a model in a folder that is there",
        "workers: {a: {model_path: models/owl}}",
        "1:27: workers.a.model_path: there is no model at {folder}/models/owl; mend the path",
    ),
    (
        "a file of models that is not there",
        "workers: {a: {kind: huggingface_api_worker, model_info_file: info.json}}",
        "1:62: workers.a.model_info_file: there is no file {folder}/info.json; create it",
    ),
    (
        "one name for two things",
        "workers: {a-0: {model_path: x}, a: {model_path: x}}\n"
        "services: {a: {command: [x]}, controller: {command: [x]}}",
        "1:16: workers.a-0: the name 'a-0' is taken by replica 0 of workers.a; choose another",
        "2:15: services.a: the name 'a' is taken by workers.a; choose another",
        "2:43: services.controller: the name 'controller' is taken by the cluster's own service",
    ),
    (
        "names that cannot be file names",
        "workers: {lmsys/vicuna: {model_path: x}, '': {model_path: x}}\n"
        "services: {a: {command: [x], env: {A-B: c}}}",
        "1:11: workers.lmsys/vicuna: a name has letters, digits and . _ - only, at most 63",
        "1:42: workers.: a name has letters",
        "2:36: services.a.env.A-B: a variable's name has letters, digits and _ only; rename it",
    ),
    (
        "model names that clients could not ask for",
        "workers:\n  a: {kind: multi_model_worker, models: [{model_path: x, model_names: []},\n"
        "    {model_path: x, model_names: ['n,m']}]}",
        "2:71: workers.a.models[0].model_names: must not be empty; add an item or remove it",
        "3:35: workers.a.models[1].model_names[0]: a model name has no comma and is not empty",
    ),
    (
        "one model name twice in a worker",
        "workers:\n  a: {kind: multi_model_worker, models: [{model_path: x, model_names: [n]},\n"
        "    {model_path: y, model_names: [n]}]}",
        "3:34: workers.a.models[1].model_names: model 'n' stands twice in this worker; remove one",
    ),
    (
        "units that are none",
        "workers: {a: {model_path: x, stop_grace: 5 parsecs, max_gpu_memory: 20}}\n"
        "logs: {max_size: 5 apples}",
        "1:42: workers.a.stop_grace: not a duration; write seconds or a text like 500ms, 30s",
        "1:69: workers.a.max_gpu_memory: must be a text; put it in quotes",
        "2:18: logs.max_size: not a size; write bytes or a text like 500KiB, 10MiB, 1GiB",
    ),
    (
        "sizes beyond all bounds",
        "workers: {a: {model_path: x}}\nlogs: {max_size: " + "9" * 400 + "T}",
        "2:18: logs.max_size: not a size; write bytes or",
    ),
    (
        "a probe that never rests",
        "workers: {a: {model_path: x, probes: {readiness: {interval: 0s}}}}",
        "1:61: workers.a.probes.readiness.interval: must be at least 0.01",
    ),
    (
        "a number of starts that is none",
        "workers: {a: {model_path: x}}\nmax_parallel_starts: many",
        "2:22: max_parallel_starts: must be a whole number, or auto",
    ),
    (
        "no start at all",
        "workers: {a: {model_path: x}}\nmax_parallel_starts: 0",
        "2:22: max_parallel_starts: must be at least 1",
    ),
    (
        "a truth value where a number of starts stands",
        "workers: {a: {model_path: x}}\nmax_parallel_starts: yes",
        "2:22: max_parallel_starts: must be a number, not true or false",
    ),
    (
        "a probe with two questions, and one that only workers understand",
        "services: {a: {command: [x], ready: {tcp: 'h:1', http: 'http://h/'},"
        " probes: {startup: {fastchat: embed}}}}",
        "1:43: services.a.ready.tcp: a probe asks one question; choose one of http, tcp",
        "1:99: services.a.probes.startup.fastchat: only workers can be asked this; use http, tcp",
    ),
    (
        "flags that the supervisor gives itself",
        "workers: {a: {model_path: x, args: [--seed, 1, --port=5]}}\n"
        "api_server: {args: [--api-keys, sk-1]}",
        "1:48: workers.a.args[2]: give the port in the field `port`; remove it here",
        "2:21: api_server.args[0]: all users of this machine can read flags; give keys in",
    ),
    (
        "variables that are not set, or not understood",
        'workers: {a: {model_path: "${MODEL}", revision: "${A:-${B:-c}}", seed: "${X?}"}}',
        "1:27: workers.a.model_path: environment variable MODEL is not set; set it, or write "
        "${MODEL:-default}",
        "1:49: workers.a.revision: write a variable as ${NAME} or ${NAME:-default}, and a dollar",
        "1:72: workers.a.seed: write a variable as ${NAME} or ${NAME:-default}, and a dollar",
    ),
    (
        "a wrong default is one mistake, however many workers share it",
        "defaults: {device: tpu, sed: 1}\nworkers: {a: {model_path: x}, b: {model_path: x}}",
        "1:20: defaults.device: must be one of cpu, cuda, mps, xpu or npu",
        "1:25: defaults.sed: unknown key 'sed'; did you mean 'seed'?",
    ),
    (
        "no service at all",
        "logs: {keep: 3}\n",
        "1:1: nothing to run; list a model under `workers`, or enable one",
    ),
    ("an empty mapping", "{}", "1:1: nothing to run; list a model under `workers`"),
    (
        "everything switched off",
        "workers: {a: {model_path: x, enabled: false}}",
        "1:1: nothing to run; list a model under `workers`, or enable one",
    ),
    ("an empty file", "", "1:1: the file is empty; describe a cluster in it"),
    ("comments only", "# soon\n", "1:1: the file is empty; describe a cluster in it"),
    ("a list", "- a", "1:1: the file must be a mapping, `key: value`"),
    ("a text", "hello", "1:1: the file must be a mapping, `key: value`"),
    (
        "bad indentation",
        "workers:\n  a:\n    model_path: x\n   gpus: [0]",
        "4:4: not YAML: did not find expected key (while parsing a block mapping that begins in "
        "line 2); check the indentation and the quotes, here and above",
    ),
    (
        "a colon too many",
        "workers: a: x",
        "1:11: not YAML: mapping values are not allowed in this context; check the indentation",
    ),
    (
        "a tab",
        "workers:\n\ta: {model_path: x}",
        "2:1: not YAML: found character that cannot start any token (while scanning for the next "
        "token that begins in line 2); indent with spaces, YAML forbids tabs",
    ),
    (
        "a tab further down",
        "workers:\n  a:\n    model_path: x\n\tgpus: [0]",
        "4:1: not YAML: found a tab character that violates indentation",
    ),
    (
        "an open quotation mark",
        "workers:\n  a: {model_path: 'x}\n",
        "3:1: not YAML: found unexpected end of stream (while scanning a quoted scalar that begins "
        "in line 2); close the quotation mark",
    ),
    (
        "an open bracket",
        "workers: {a: {gpus: [0, 1}}",
        "1:26: not YAML: did not find expected ',' or ']' (while parsing a flow sequence that "
        "begins in line 1); check the indentation and the quotes",
    ),
    (
        "a variable without quotes inside brackets",
        "api_server: {port: ${PORT}}",
        "1:21: not YAML: did not find expected ',' or '}' (while parsing a flow mapping that "
        "begins in line 1); inside { } and [ ], put a ${VARIABLE} in quotes",
    ),
    (
        "a character that YAML reserves",
        "workers: {a: {model_path: @x}}",
        "1:27: not YAML: found character that cannot start any token (while scanning for the next "
        "token that begins in line 1); put the value in quotes",
    ),
    (
        "an anchor that nobody set",
        "workers: *all",
        "1:10: not YAML: found undefined alias; name an anchor (`&name`) that stands above",
    ),
    (
        "two documents",
        "controller: {}\n---\nworkers: {}",
        "2:1: not YAML: but found another document (expected a single document in the stream that "
        "begins in line 1); one file is one cluster; remove the `---`",
    ),
    (
        "an anchor in itself",
        "workers: &a {a: *a}",
        "1:10: workers.a: an anchor contains itself; remove the alias",
    ),
    (
        "a merge of what is no mapping",
        "x-n: &n [1]\nworkers: {a: {model_path: x, <<: [*n]}}",
        "1:6: workers.a: '<<' takes a mapping, `*anchor`, or a list of them",
    ),
    ("a key that is a list", "[a, b]: c", "1:1: a key must be a plain text; put it in quotes"),
    (
        "YAML's own types",
        "description: !!python/name:os.system ''\n"
        "workers: {a: {model_path: !!bool x, revision: !!int ''}}",
        "1:14: description: has a YAML tag that has no meaning here; remove it",
        "2:27: workers.a.model_path: cannot read this as bool; quote it",
        "2:47: workers.a.revision: cannot read this as int; quote it",
    ),
    ("a NUL", 'description: "a\\0"', "1:14: description: holds a NUL character; remove it"),
    ("a control character", "a: 1\nb: \x07", "2:4: holds a control character (U+0007); remove it"),
    ("another encoding", b"a: 1\nb: caf\xe9", "2:7: is not UTF-8 text; save it as UTF-8"),
    ("binary junk", b"\x7fELF\0\0\x01", " is binary; name a YAML file"),
    ("too large a file", b"#" * (4 << 20) + b"#", " is larger than 4 MiB; no cluster file is"),
    ("too deep", "[" * 1_000_000, "1:51: nested deeper than 50 levels; flatten the file"),
]


@pytest.mark.parametrize(
    ("text", "expected"), [pytest.param(m[1], m[2:], id=m[0]) for m in MISTAKES]
)
def test_each_mistake_has_its_message(
    write: Writer, text: str | bytes, expected: tuple[str, ...]
) -> None:
    (write.folder / "models").mkdir()
    errors = write.errors(textwrap.dedent(text) if isinstance(text, str) else text)
    wanted = [line.replace("{folder}", str(write.folder)) for line in expected]
    assert [error[: len(line)] for error, line in zip(errors, wanted, strict=False)] == wanted
    assert len(errors) == len(wanted), errors


def test_all_errors_are_shown_at_once_in_the_order_of_the_file(write: Writer) -> None:
    text = """\
    controller: {prot: 1, dispatch_method: x}
    workers:
      a: {modle_path: x, gpus: [0], num_gpus: 2}
      b: {model_path: ./b, gptq: {wbits: 4}, load_8bit: true, load_8bit: true}
    api_server: {port: "${PORT}"}
    services: {s: {command: [x], depends_on: [nobody]}}
    """
    assert [p.path for p in write.problems(textwrap.dedent(text))] == [
        "controller.prot",
        "controller.dispatch_method",
        "workers.a.model_path",
        "workers.a.modle_path",
        "workers.a.num_gpus",
        "workers.b.model_path",
        "workers.b.gptq",
        "workers.b.load_8bit",
        "api_server.port",
        "services.s.depends_on[0]",
    ]


def test_after_a_hundred_errors_it_is_enough(write: Writer) -> None:
    errors = write.errors("".join(f"key{i}: 1\n" for i in range(5000)))
    assert errors[0] == " 1000 errors or more; here are the first 100"
    assert len(errors) == 101
    assert errors[100].startswith("100:1: key99: unknown key")


def test_what_is_no_readable_file(write: Writer) -> None:
    from supervisor.spec.load import load
    from supervisor.spec.problems import SpecError

    os.mkfifo(write.folder / "pipe")
    (write.folder / "loop").symlink_to("loop")
    for name, message in {
        "missing.yaml": "there is no such file; name one with -c FILE",
        ".": "is a directory; name the file in it",
        "pipe": "is not a regular file; name a YAML file",
        "loop": "cannot be read: Too many levels of symbolic links",
    }.items():
        with pytest.raises(SpecError) as caught:
            load(write.folder / name, {})
        assert str(caught.value) == f"{write.folder / name}: {message}"


def test_an_error_does_not_speak_to_the_terminal(write: Writer) -> None:
    (error,) = write.errors('workers: {"a\\e[2J\\nb": {model_path: x}}')
    assert error.startswith("1:11: workers.a\\x1b[2J\\nb: a name has letters, digits")
