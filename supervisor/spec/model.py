"""The cluster file as frozen models. Field names are FastChat's flags with underscores.

The description of a field is the string under it: it goes into the JSON schema (``schema.py``),
which editors read, and into docs/configuration.md. Facts about flags are from FastChat 0.2.36
(fastchat/serve/*.py and fastchat/model/model_adapter.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    create_model,
    model_validator,
)

from supervisor.spec.impact import Live, NextUp, Nothing, Replace, Reregister, Restarts, Scale
from supervisor.spec.values import (
    Count,
    Duration,
    Env,
    Host,
    Interval,
    NotBool,
    Port,
    Program,
    Share,
    Size,
    Whole,
    Words,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
SINGLETONS = ("controller", "api_server", "web_server")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A service's name: it becomes part of a file name, so it has no slash and no space."""


class Model(BaseModel):
    """Frozen, and strict about keys: a misspelt key is an error, never ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
        defer_build=True,
    )


# ---------------------------------------------------------------- restart, probes, logs


def _policy_alone(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


class Restart(Model):
    """When and how fast an instance is started again after it has exited."""

    policy: Live[Literal["always", "on_failure", "never"]] = "always"
    """`always`, only after a failure (`on_failure`), or `never`."""
    backoff: Live[Duration] = 1.0
    """Delay of the second restart in a row; the first is immediate, each further one doubles it."""
    backoff_max: Live[Duration] = 60.0
    """Cap of the delay."""
    jitter: Live[Annotated[float, Field(ge=0, le=1), NotBool]] = 0.25
    """Random part of the delay, 0 to 1, so that many instances do not start at the same moment."""
    stable_after: Live[Duration] = 60.0
    """Ready for this long, an instance is stable: its next crash counts as the first again."""
    limit: Live[Annotated[int, Field(ge=0), NotBool] | None] = None
    """Restarts in a row after which it is `failed` and stays down; none means: never give up."""


RestartField = Annotated[
    Restart,
    BeforeValidator(
        _policy_alone,
        json_schema_input_type=Restart | Literal["always", "on_failure", "never"],
    ),
]


class Question(Model):
    """What a probe asks. At most one of the four; none means the role's own question."""

    http: Live[str | None] = Field(default=None, pattern=r"^https?://\S+$")
    """URL; a status below 400 is a pass."""
    tcp: Live[str | None] = Field(default=None, pattern=r"^[^\s:]+:\d{1,5}$")
    """`host:port`; an accepted connection is a pass."""
    command: Live[Program | None] = None
    """Program and arguments; exit status 0 is a pass."""
    fastchat: Live[Literal["status", "generate", "embed"] | None] = None
    """FastChat's own: a worker's status, a real one-token generation, or (for models that cannot
    generate) an embedding."""


class StartupProbe(Question):
    """Asked from the start on until it passes."""

    interval: Live[Interval] = 0.01
    """Least time between two questions, 50 ms for a `command`; it grows with the time that a start
    takes, up to 2 s."""
    timeout: Live[Interval] = 5.0
    """An answer later than this is none."""
    deadline: Live[Duration] = 1800.0
    """A start that takes longer than this has failed. Big models load for twenty minutes."""


class ReadinessProbe(Question):
    """Asked of a running instance: may it get requests?"""

    enabled: Live[bool] = True
    """false: ready once it has started."""
    interval: Live[Interval] = 2.0
    """Time between two questions; a worker's answer also refreshes its queue length in the
    controller."""
    timeout: Live[Interval] = 10.0
    """An answer later than this is a failure."""
    failures: Live[Count] = 3
    """Failures in a row after which the instance is unready and gets no requests."""


class LivenessProbe(Question):
    """Asked of a running instance: must it be restarted?"""

    enabled: Live[bool] = True
    """false: only an exit restarts it."""
    interval: Live[Interval] = 10.0
    """Time between two questions."""
    timeout: Live[Interval] = 10.0
    """An answer later than this is a failure; 5 s for all but workers. A worker that is too busy to
    answer, as with a long embedding, does not fail: see `progress`."""
    failures: Live[Count] = 3
    """Failures in a row after which the instance is restarted."""


class ProgressProbe(Model):
    """Looked for in workers only: do they get on with their work? Every worker keeps a record of
    that. It is read without asking the worker, so that what is busy is told from what hangs."""

    enabled: Live[bool] = True
    """false: a worker is not restarted for want of progress."""
    interval: Live[Interval] = 5.0
    """Time between two looks."""
    stall_after: Live[Interval] = 120.0
    """With requests in progress and nothing produced for this long, not even a token, a worker
    hangs and is restarted. An embedding that uses the processor may take ten times as long."""
    idle_after: Live[Interval] = 300.0
    """A worker of which no request has succeeded for this long is asked for one token. So is, at
    once, one of which the last three requests have failed for reasons of its own."""
    failures: Live[Count] = 2
    """Such tokens in a row that fail, after which the worker is restarted."""


class Probes(Model):
    """Questions asked of an instance. "Failed" counts; "could not be asked" does not."""

    startup: Live[StartupProbe] = StartupProbe.model_construct()
    """Has it started?"""
    readiness: Live[ReadinessProbe] = ReadinessProbe.model_construct()
    """May it get requests?"""
    liveness: Live[LivenessProbe] = LivenessProbe.model_construct()
    """Must it be restarted?"""


class WorkerProbes(Probes):
    """Questions asked of a worker, and what is seen of it without asking."""

    progress: Live[ProgressProbe] = ProgressProbe.model_construct()
    """Does it get on with its work?"""


class Logs(Model):
    """How the output of every instance is kept, as `<log_dir>/<instance>.log`."""

    max_size: Live[Annotated[Size, Field(ge=1024)]] = 50 * 1024 * 1024
    """A log file that would grow past this is rotated, at the end of a line."""
    keep: Live[Annotated[int, Field(ge=0, le=100), NotBool]] = 5
    """Old files kept beside it (`.log.1` is the youngest)."""


# ---------------------------------------------------------------- the supervisor's own door


class Control(Model):
    """The control API over TCP, besides its Unix socket. Whoever has the token may do all that the
    command line can."""

    host: NextUp[Host] = "127.0.0.1"
    """Address to listen on."""
    port: NextUp[Port] = 21000
    """Port to listen on."""
    token_file: NextUp[str]
    """File (relative to this file) with the token: 16 characters or more, and nobody else may read
    it. Requests bear it as `Authorization: Bearer TOKEN`. Read when the supervisor starts."""
    tls_cert: NextUp[str | None] = None
    """Certificate chain in PEM (relative to this file), for https; `tls_key` belongs to it."""
    tls_key: NextUp[str | None] = None
    """Its private key in PEM, without a password."""


# ---------------------------------------------------------------- what every service has


class Service(Model):
    """What every entry of the file has."""

    description: Nothing[str] = ""
    """For people; changes nothing."""
    enabled: Scale[bool] = True
    """false: left out, as if it were not in the file."""
    env: Replace[Env] = {}
    """Environment variables, over those of the supervisor and of `env` at the top."""
    env_file: Replace[str | None] = None
    """File (relative to this file) with more of them, `NAME=value` a line; `env` wins. It can be
    kept from others' eyes, as this file often cannot."""
    depends_on: Live[tuple[str, ...]] = ()
    """Services that must be ready before this one starts, besides those its role needs."""
    restart: Live[RestartField] = Restart.model_construct()
    """Restart policy; `restart: never` is short for `restart: {policy: never}`."""
    probes: Live[Probes] = Probes.model_construct()
    """Startup, readiness and liveness probes."""
    stop_grace: Live[Duration] = 30.0
    """Time between SIGTERM and sterner signals; a worker finishes its streams in it."""


class PythonService(Service):
    """A service that is a FastChat module."""

    python: Replace[str | None] = None
    """Interpreter to run it with, for engines that need an environment of their own."""
    launch: Live[Literal["auto", "warm", "cold"]] = "auto"
    """`warm`: its process is forked from one that has imported all it needs, and so is there in a
    tenth of a second and shares that memory; `cold`: started as a program; `auto`: warm for
    `model_worker`, `multi_model_worker`, the controller and the API server. Counts at its next
    start."""
    args: Replace[Words] = ()
    """Flags passed on verbatim, after all others."""


# ---------------------------------------------------------------- controller, API server, web


def _address(value: str) -> str:
    try:
        address = urlsplit(value)
        good = address.hostname and address.port != 0 and address.path in ("", "/")
    except ValueError:  # what is there of a port is no port
        good = False
    if not good or address.scheme not in ("http", "https"):
        raise ValueError("must be an address such as http://host:21001")
    return value.rstrip("/")


class Controller(PythonService):
    """FastChat's controller, started here or somewhere else (`external`)."""

    external: Restarts[Annotated[str, AfterValidator(_address)] | None] = None
    """Address of a controller that runs elsewhere, `http://host:21001`; nothing is started here."""
    host: Restarts[Host] = "127.0.0.1"
    """Address to listen on. The controller has no authentication: keep it on loopback."""
    port: Replace[Port] = 21001
    """Port to listen on."""
    dispatch_method: Restarts[Literal["lottery", "shortest_queue"]] = "shortest_queue"
    """How the controller picks one of a model's workers."""


def _split_keys(value: Any) -> Any:
    """``["a,b", ""]`` -> ``["a", "b"]``: commas as with FastChat's flag, empty ones left out."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(i, str | int | None) for i in items):
        return value
    return [key.strip() for item in items if item for key in str(item).split(",") if key.strip()]


class ApiServer(PythonService):
    """FastChat's OpenAI-compatible API server."""

    host: Replace[Host] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens it to the network."""
    port: Replace[Port] = 8000
    """Port to listen on."""
    allow_credentials: Replace[bool] = False
    """CORS: allow credentials."""
    allowed_origins: Replace[tuple[str, ...]] = ("*",)
    """CORS: allowed origins."""
    allowed_methods: Replace[tuple[str, ...]] = ("*",)
    """CORS: allowed methods."""
    allowed_headers: Replace[tuple[str, ...]] = ("*",)
    """CORS: allowed headers."""
    api_keys: Replace[
        Annotated[
            tuple[SecretStr, ...],
            BeforeValidator(_split_keys, json_schema_input_type=list[str | int] | str),
        ]
    ] = ()
    """Keys that clients must send; none means: open to all who reach the port. Never shown."""
    drain_timeout: Live[Duration] = 300.0
    """How long one that is replaced may go on with its streams, beside its successor."""
    retry_for: Replace[Duration] = 10.0
    """How long a request may wait for a controller or worker that is away for a moment (a restart,
    a roll-out, a crash) before it fails; it is asked again, of another replica if there is one, as
    long as no byte of the answer has been sent."""
    api_keys_file: Replace[str | None] = None
    """File with one key a line (`#` starts a comment), added to `api_keys`."""


class WebServer(PythonService):
    """FastChat's gradio web server."""

    host: Restarts[Host] = "127.0.0.1"
    """Address to listen on."""
    port: Restarts[Port] = 7860
    """Port to listen on."""
    share: Restarts[bool] = False
    """Make a public gradio link."""
    concurrency_count: Restarts[Count] = 10
    """Requests handled at once."""
    model_list_mode: Restarts[Literal["once", "reload"]] = "reload"
    """Read the list of models once, or at every page load."""


# ---------------------------------------------------------------- workers


class Gptq(Model):
    """GPTQ quantization."""

    ckpt: Replace[str | None] = None
    """Checkpoint; the model path if left out."""
    wbits: Replace[Literal[2, 3, 4, 8, 16]]
    """Bits per weight (required); 16 is FastChat's word for "off"."""
    groupsize: Replace[Whole] = -1
    """Group size; -1 uses the full row."""
    act_order: Replace[bool] = False
    """Activation-order heuristic."""


class Awq(Model):
    """AWQ quantization."""

    ckpt: Replace[str | None] = None
    """Checkpoint; the model path if left out."""
    wbits: Replace[Literal[4, 16]]
    """Bits per weight (required); 16 is FastChat's word for "off"."""
    groupsize: Replace[Whole] = -1
    """Group size; -1 uses the full row."""


class Exllama(Model):
    """ExLlamaV2 kernel."""

    max_seq_len: Replace[Count] = 4096
    """Longest sequence."""
    gpu_split: Replace[str | None] = None
    """GiB per GPU, as `20,7`."""
    cache_8bit: Replace[bool] = False
    """8-bit cache."""


class Xft(Model):
    """xFasterTransformer (CPU)."""

    max_seq_len: Replace[Count] = 4096
    """Longest sequence."""
    dtype: Replace[Literal["fp16", "bf16", "int8", "bf16_fp16", "bf16_int8"] | None] = None
    """Data type."""


_INDEX = re.compile(r"[0-9]{1,9}")


def _split_commas(value: Any) -> Any:
    """FastChat writes ``--gpus 0,1``; a lone number is a list of one."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list):
        return [int(v) if isinstance(v, str) and _INDEX.fullmatch(v) else v for v in value]
    return value


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise ValueError("the same GPU is listed twice")
    return value


Gpu = Annotated[int, Field(ge=0), NotBool] | Annotated[str, Field(pattern=r"^(GPU|MIG)-[\w/-]+$")]
Gpus = Annotated[
    tuple[Gpu, ...],
    BeforeValidator(_split_commas, json_schema_input_type=list[Gpu] | int | str),
    AfterValidator(_distinct),
]


def _split_names(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


ModelName = Annotated[str, Field(min_length=1, pattern=r"^[^,]+$")]
Names = Annotated[
    tuple[ModelName, ...],
    BeforeValidator(_split_names, json_schema_input_type=list[ModelName] | str),
]
GpuMemory = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*[KMG]i?[bB]$")]


class Worker(PythonService):
    """What every kind of worker has."""

    probes: Live[WorkerProbes] = WorkerProbes.model_construct()
    """Startup, readiness and liveness probes, and progress."""
    replicas: Scale[Annotated[int, Field(ge=0, le=1000), NotBool]] = 1
    """Running copies; each has its own port, and its own share of `gpus`."""
    host: Replace[Host] = "127.0.0.1"
    """Address to listen on. Workers have no authentication: keep it on loopback."""
    port: Replace[Port | None] = None
    """Port of the first replica, the others follow; left out, one is taken from `port_range`."""
    rollout: Live[Literal["surge", "recreate"] | None] = None
    """How a changed replica is replaced. `surge`: the new one starts beside the old and takes over
    when it has answered a prompt; `recreate`: the old one ends first. Left out: `surge` on the CPU,
    `recreate` on GPUs, whose memory does not hold the model twice."""
    max_unavailable: Live[Count] = 1
    """Replicas that `recreate` may take away at a time."""
    drain_timeout: Live[Duration] = 300.0
    """How long a worker that is to stop may go on with the requests that it has; it gets no new
    ones. After that come SIGTERM and `stop_grace`."""
    gpus: Replace[Gpus] = ()
    """GPUs of this service: indices as nvidia-smi shows them, or UUIDs. They are dealt out to the
    replicas, `num_gpus` to each, which sees no other (CUDA_VISIBLE_DEVICES)."""
    num_gpus: Replace[Count | None] = None
    """GPUs of one replica; left out, `gpus` are divided evenly among the replicas."""


class LimitedWorker(Worker):
    """A worker that can limit its load; `mlx_worker` cannot."""

    limit_worker_concurrency: Replace[Count | None] = None
    """Requests worked on at once; FastChat's default is 5, for vLLM, SGLang and LightLLM 1024."""


class OneModel(Worker):
    """A worker with one model."""

    model_path: Replace[str] = Field(min_length=1)
    """Folder (relative to this file) or Hugging Face repository."""
    model_names: Reregister[Names] = ()
    """Names under which clients ask for the model; left out, the worker's key."""
    conv_template: Replace[str | None] = None
    """FastChat's conversation template; left out, chosen by the model path."""


class ModelOptions(LimitedWorker):
    """Options of FastChat's own loader (`add_model_args`)."""

    device: Replace[Literal["cpu", "cuda", "mps", "xpu", "npu"]] = "cuda"
    """Where the model runs; `cpu` sees no GPU at all."""
    max_gpu_memory: Replace[GpuMemory | None] = None
    """Memory per GPU to use for weights, as `20GiB`."""
    load_8bit: Replace[bool] = False
    """8-bit quantization while loading."""
    cpu_offloading: Replace[bool] = False
    """Offload excess weights to the CPU; only with `load_8bit`."""
    gptq: Replace[Gptq | None] = None
    """GPTQ quantization."""
    exllama: Replace[Exllama | None] = None
    """ExLlamaV2 kernel for GPTQ models."""
    xft: Replace[Xft | None] = None
    """xFasterTransformer (CPU only)."""
    stream_interval: Replace[Count | None] = None
    """Tokens between two pieces of a stream; FastChat's default is 2."""


class ModelWorker(ModelOptions, OneModel):
    """FastChat's own worker (`fastchat.serve.model_worker`)."""

    kind: Replace[Literal["model_worker"]] = "model_worker"
    """Kind of worker."""
    revision: Replace[str | None] = None
    """Revision of the Hugging Face repository; FastChat's default is main."""
    dtype: Replace[Literal["float32", "float16", "bfloat16"] | None] = None
    """Data type of the weights."""
    awq: Replace[Awq | None] = None
    """AWQ quantization."""
    embed_in_truncate: Replace[bool] = False
    """Truncate what is too long for an embedding."""
    seed: Replace[Whole | None] = None
    """Random seed of every generation."""
    debug: Replace[bool] = False
    """Debug output."""


class NamedModel(Model):
    """One of several models in a worker."""

    model_path: Replace[str] = Field(min_length=1)
    """Folder (relative to this file) or Hugging Face repository."""
    model_names: Replace[Annotated[Names, Field(min_length=1)]]
    """Names under which clients ask for it."""
    conv_template: Replace[str | None] = None
    """FastChat's conversation template; left out, chosen by the model path."""


class MultiModelWorker(ModelOptions):
    """Several models in one process, on the same GPUs (`multi_model_worker`)."""

    kind: Replace[Literal["multi_model_worker"]]
    """Kind of worker."""
    models: Replace[Annotated[tuple[NamedModel, ...], Field(min_length=1)]]
    """The models."""
    conv_template: Replace[str | None] = None
    """FastChat's conversation template for every model that names none."""


class VllmWorker(LimitedWorker, OneModel):
    """vLLM (`vllm_worker`). Any engine argument of vLLM can be given in `args`."""

    kind: Replace[Literal["vllm_worker"]]
    """Kind of worker."""
    trust_remote_code: Replace[bool] = True
    """Run code that comes with the model."""
    gpu_memory_utilization: Replace[Share | None] = None
    """Share of each GPU's memory to use; vLLM's default here is 0.9."""
    dtype: Replace[Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None] = None
    """Data type of weights and activations."""
    quantization: Replace[str | None] = None
    """How the weights are quantized, as `awq`, `gptq`, `fp8`."""
    max_model_len: Replace[Count | None] = None
    """Longest context."""
    revision: Replace[str | None] = None
    """Revision of the Hugging Face repository."""


class SglangWorker(LimitedWorker, OneModel):
    """SGLang (`sglang_worker`)."""

    kind: Replace[Literal["sglang_worker"]]
    """Kind of worker."""
    tokenizer_path: Replace[str | None] = None
    """Tokenizer; the model path if left out."""
    trust_remote_code: Replace[bool] = True
    """Run code that comes with the model."""
    mem_fraction_static: Replace[Share | None] = None
    """Share of GPU memory for weights and cache; FastChat's default is 0.9."""
    multimodal: Replace[bool] = False
    """Register as a multimodal model."""


class LightllmWorker(LimitedWorker, OneModel):
    """LightLLM (`lightllm_worker`)."""

    kind: Replace[Literal["lightllm_worker"]]
    """Kind of worker."""
    tokenizer_mode: Replace[Literal["slow", "auto"] | None] = None
    """Tokenizer load mode; FastChat's default is slow."""
    max_total_token_num: Replace[Count | None] = None
    """Tokens that GPU and model can hold."""
    max_req_input_len: Replace[Count | None] = None
    """Longest input."""
    max_req_total_len: Replace[Count | None] = None
    """Longest input and output together."""
    mode: Replace[tuple[Annotated[str, Field(pattern=r"^\w+$")], ...]] = ()
    """LightLLM modes, as `triton_int8kv`."""
    trust_remote_code: Replace[bool] = False
    """Run code that comes with the model."""


class MlxWorker(OneModel):
    """Apple MLX (`mlx_worker`)."""

    kind: Replace[Literal["mlx_worker"]]
    """Kind of worker."""
    trust_remote_code: Replace[bool] = True
    """Run code that comes with the model."""


class HuggingfaceApiWorker(LimitedWorker):
    """Models behind Hugging Face's inference API (`huggingface_api_worker`)."""

    kind: Replace[Literal["huggingface_api_worker"]]
    """Kind of worker."""
    model_info_file: Replace[str]
    """JSON file (relative to this file) that describes the models, their names included."""
    seed: Replace[Whole | None] = None
    """Random seed of every generation."""


WORKER_KINDS: dict[str, type[Worker]] = {
    "model_worker": ModelWorker,
    "multi_model_worker": MultiModelWorker,
    "vllm_worker": VllmWorker,
    "sglang_worker": SglangWorker,
    "lightllm_worker": LightllmWorker,
    "mlx_worker": MlxWorker,
    "huggingface_api_worker": HuggingfaceApiWorker,
}


def _kind_of(value: Any) -> str | None:
    if not isinstance(value, dict):
        return getattr(value, "kind", "model_worker")
    kind = value.get("kind", "model_worker")
    return kind if isinstance(kind, str) else None


AnyWorker = Annotated[
    Annotated[ModelWorker, Tag("model_worker")]
    | Annotated[MultiModelWorker, Tag("multi_model_worker")]
    | Annotated[VllmWorker, Tag("vllm_worker")]
    | Annotated[SglangWorker, Tag("sglang_worker")]
    | Annotated[LightllmWorker, Tag("lightllm_worker")]
    | Annotated[MlxWorker, Tag("mlx_worker")]
    | Annotated[HuggingfaceApiWorker, Tag("huggingface_api_worker")],
    Discriminator(_kind_of),
]

_NO_DEFAULT = {"description", "model_path", "model_names", "models", "port", "model_info_file"}


def _defaults_model() -> type[Model]:
    """Every option of every kind, all optional: what `defaults` may hold."""
    fields: dict[str, Any] = {}
    for worker in WORKER_KINDS.values():
        for name, field in worker.model_fields.items():
            if name not in _NO_DEFAULT and name not in fields:
                kept: Any = field.annotation
                for constraint in field.metadata:
                    kept = Annotated[kept, constraint]
                fields[name] = (kept | None, Field(default=None))
    fields["kind"] = (
        Nothing[Literal[tuple(WORKER_KINDS)] | None],  # type: ignore[misc]
        Field(None, description="Kind of worker."),
    )
    return create_model(
        "Defaults",
        __base__=Model,
        __doc__="Options for every worker whose kind has them; a worker's own value wins.",
        **fields,
    )


Defaults = _defaults_model()


# ---------------------------------------------------------------- anything else, and the whole


class Command(Service):
    """Anything else that belongs to the cluster."""

    command: Restarts[Program]
    """Program and arguments, as a list. No shell is involved."""
    cwd: Restarts[str | None] = None
    """Working directory (relative to this file, whose folder is the default)."""
    ready: Live[Question | None] = None
    """What its startup and readiness probes ask; left out, it is ready once it runs."""


def _range(value: Any) -> Any:
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        value = [first.strip(), last.strip()]
        if not (dash and all(_INDEX.fullmatch(port) for port in value)):
            raise ValueError("not a range of ports; write it as 21002-21999")
        value = [int(port) for port in value]
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("not a range of ports; write it as 21002-21999")
    if all(isinstance(port, int) for port in value) and value[0] > value[1]:
        raise ValueError("the first port of the range is larger than the last; swap them")
    return value


PortRange = Annotated[
    tuple[Port, Port],
    BeforeValidator(
        _range,
        json_schema_input_type=tuple[Port, Port]
        | Annotated[str, Field(pattern=r"^\s*\d+\s*-\s*\d+\s*$")],
    ),
]


def _auto_or_number(value: Any) -> Any:
    if isinstance(value, str) and value != "auto" and not value.strip().isdecimal():
        raise ValueError("must be a whole number, or auto")
    return value


ParallelStarts = Annotated[Count | Literal["auto"], BeforeValidator(_auto_or_number)]


def _empty_section(value: Any) -> Any:
    """A section of which only comments are left has its defaults; YAML reads it as null."""
    return {} if value is None else value


Workers = dict[Name, AnyWorker]
Services = dict[Name, Command]


class Cluster(Model):
    """One YAML file: all that should run on this machine for one cluster."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {"^x-": True}})

    description: Nothing[str] = ""
    """For people; changes nothing."""
    controller: Scale[Annotated[Controller | None, BeforeValidator(_empty_section)]] = None
    """FastChat's controller; left out, one with default options if a worker needs it."""
    defaults: Nothing[
        Annotated[
            Defaults,  # type: ignore[valid-type]
            BeforeValidator(_empty_section, json_schema_input_type=Defaults | None),
        ]
    ] = Defaults.model_construct()
    """Options for every worker whose kind has them; a worker's own value wins."""
    workers: Scale[
        Annotated[Workers, BeforeValidator(_empty_section, json_schema_input_type=Workers | None)]
    ] = {}
    """The workers; the key is the model's name for clients, unless `model_names` says otherwise."""
    api_server: Scale[Annotated[ApiServer | None, BeforeValidator(_empty_section)]] = None
    """FastChat's OpenAI-compatible API server."""
    web_server: Scale[Annotated[WebServer | None, BeforeValidator(_empty_section)]] = None
    """FastChat's gradio web server."""
    services: Scale[
        Annotated[Services, BeforeValidator(_empty_section, json_schema_input_type=Services | None)]
    ] = {}
    """Anything else that belongs to the cluster."""
    env: Replace[Env] = {}
    """Environment variables for every service."""
    env_file: Replace[str | None] = None
    """File (relative to this file) with more of them, `NAME=value` a line; `env` wins."""
    python: Replace[str | None] = None
    """Interpreter for every FastChat service; left out, the supervisor's own."""
    port_range: Replace[PortRange] = (21002, 21999)
    """Ports for workers that name none, as `21002-21999`."""
    max_parallel_starts: Live[ParallelStarts] = "auto"
    """Workers that may be starting at once; the largest go first. A restart after a crash does not
    wait for that. `auto`: one per core (two at least), as far as their weights fit into the memory
    that is free."""
    watch: Live[bool] = True
    """Apply this file whenever it is saved; false: only on `llm-supervisor reload` or SIGHUP."""
    logs: Live[Logs] = Logs.model_construct()
    """How output is kept."""
    control: NextUp[Control | None] = None
    """The control API over TCP; left out, it is on its Unix socket only."""
    run_dir: NextUp[str | None] = None
    """Folder (relative to this file) of the control socket and state."""
    log_dir: NextUp[str | None] = None
    """Folder (relative to this file) of the log files."""

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, value: Any) -> Any:
        """Top-level keys that begin with ``x-`` are the user's own: a place for anchors."""
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if not str(k).startswith("x-")}
        return value

    @property
    def own_controller(self) -> Controller | None:
        """The controller to be started here: the file's, or a default one if a service needs it."""
        if self.controller is not None:
            here = self.controller.enabled and not self.controller.external
            return self.controller if here else None
        return Controller.model_construct() if self.needs_controller else None

    @property
    def needs_controller(self) -> bool:
        services = (self.api_server, self.web_server, *self.workers.values())
        return any(service is not None and service.enabled for service in services)
