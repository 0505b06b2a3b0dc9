"""The cluster file as frozen models. Field names are FastChat's flags with underscores.

The description of a field is the string under it: it goes into the JSON schema, which editors
read, and into docs/configuration.md. Facts about flags are from FastChat 0.2.36
(fastchat/serve/*.py and fastchat/model/model_adapter.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
)

from supervisor.spec.values import Duration, Port, Size

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
SINGLETONS = ("controller", "api_server", "web_server")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""A service's name: it becomes part of a file name, so it has no slash and no space."""


class Model(BaseModel):
    """Frozen, and strict about keys: a misspelt key is an error, never ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


# ---------------------------------------------------------------- restart, probes, logs


def _policy_alone(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


class Restart(Model):
    """When and how fast an instance is started again after it has exited."""

    policy: Literal["always", "on_failure", "never"] = "always"
    """`always`, only after a failure (`on_failure`), or `never`."""
    backoff: Duration = 1.0
    """Delay of the second restart in a row; the first is immediate, each further one doubles it."""
    backoff_max: Duration = 60.0
    """Cap of the delay."""
    jitter: float = Field(default=0.25, ge=0, le=1)
    """Random part of the delay, 0 to 1, so that many instances do not start at the same moment."""
    stable_after: Duration = 60.0
    """Ready for this long, an instance is stable: its next crash counts as the first again."""
    limit: int | None = Field(default=None, ge=0)
    """Restarts in a row after which it is `failed` and stays down; none means: never give up."""


RestartField = Annotated[Restart, BeforeValidator(_policy_alone)]


class Question(Model):
    """What a probe asks. At most one of the four; none means the role's own question."""

    http: str | None = None
    """URL; a status below 400 is a pass."""
    tcp: str | None = Field(default=None, pattern=r"^[^\s:]+:\d{1,5}$")
    """`host:port`; an accepted connection is a pass."""
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Program and arguments; exit status 0 is a pass."""
    fastchat: Literal["status", "generate", "embed"] | None = None
    """FastChat's own: a worker's status, a real one-token generation, or (for models that cannot
    generate) an embedding."""


class StartupProbe(Question):
    """Asked from the start on until it passes."""

    interval: Duration = 0.25
    """Time between two questions."""
    timeout: Duration = 5.0
    """An answer later than this is none."""
    deadline: Duration = 1800.0
    """A start that takes longer than this has failed. Big models load for twenty minutes."""


class ReadinessProbe(Question):
    """Asked of a running instance: may it get requests?"""

    enabled: bool = True
    """false: ready once it has started."""
    interval: Duration = 2.0
    """Time between two questions; a worker's answer also refreshes its queue length in the
    controller."""
    timeout: Duration = 10.0
    """An answer later than this is a failure."""
    failures: int = Field(default=3, ge=1)
    """Failures in a row after which the instance is unready and gets no requests."""


class LivenessProbe(Question):
    """Asked of a running instance: must it be restarted?"""

    enabled: bool = True
    """false: only an exit restarts it."""
    interval: Duration = 10.0
    """Time between two questions."""
    timeout: Duration = 30.0
    """An answer later than this is a failure. A long embedding keeps a worker from answering."""
    failures: int = Field(default=10, ge=1)
    """Failures in a row after which the instance is restarted."""


class Probes(Model):
    """Questions asked of an instance. "Failed" counts; "could not be asked" does not."""

    startup: StartupProbe = StartupProbe()
    """Has it started?"""
    readiness: ReadinessProbe = ReadinessProbe()
    """May it get requests?"""
    liveness: LivenessProbe = LivenessProbe()
    """Must it be restarted?"""


class Logs(Model):
    """How the output of every instance is kept, as `<log_dir>/<instance>.log`."""

    max_size: Size = 50 * 1024 * 1024
    """A log file that would grow past this is rotated, at the end of a line."""
    keep: int = Field(default=5, ge=0, le=100)
    """Old files kept beside it (`.log.1` is the youngest)."""


# ---------------------------------------------------------------- what every service has

Env = dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]


def _scalars_as_text(value: Any) -> Any:
    """YAML reads ``OMP_NUM_THREADS: 4`` as a number; in an environment it is a text."""
    if isinstance(value, dict):
        return {k: _text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


EnvField = Annotated[Env, BeforeValidator(_scalars_as_text)]
Args = Annotated[tuple[str, ...], BeforeValidator(_scalars_as_text)]


class Service(Model):
    """What every entry of the file has."""

    description: str = ""
    """For people; changes nothing."""
    enabled: bool = True
    """false: left out, as if it were not in the file."""
    env: EnvField = {}
    """Environment variables, over those of the supervisor and of `env` at the top."""
    depends_on: tuple[str, ...] = ()
    """Services that must be ready before this one starts, besides those its role needs."""
    restart: RestartField = Restart()
    """Restart policy; `restart: never` is short for `restart: {policy: never}`."""
    probes: Probes = Probes()
    """Startup, readiness and liveness probes."""
    stop_grace: Duration = 30.0
    """Time between SIGTERM and sterner signals; a worker finishes its streams in it."""


class PythonService(Service):
    """A service that is a FastChat module."""

    python: str | None = None
    """Interpreter to run it with, for engines that need an environment of their own."""
    args: Args = ()
    """Flags passed on verbatim, after all others."""


# ---------------------------------------------------------------- controller, API server, web


class Controller(PythonService):
    """FastChat's controller, started here or somewhere else (`external`)."""

    external: str | None = Field(default=None, pattern=r"^https?://[^\s/]+(:\d+)?/?$")
    """Address of a controller that runs elsewhere, `http://host:21001`; nothing is started here."""
    host: str = "127.0.0.1"
    """Address to listen on. The controller has no authentication: keep it on loopback."""
    port: Port = 21001
    """Port to listen on."""
    dispatch_method: Literal["lottery", "shortest_queue"] = "shortest_queue"
    """How the controller picks one of a model's workers."""


def _split_keys(value: Any) -> Any:
    """``["a,b", ""]`` -> ``["a", "b"]``: commas as with FastChat's flag, empty ones left out."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(i, str | int | None) for i in items):
        return value
    return [key.strip() for item in items if item for key in str(item).split(",") if key.strip()]


class ApiServer(PythonService):
    """FastChat's OpenAI-compatible API server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens it to the network."""
    port: Port = 8000
    """Port to listen on."""
    allow_credentials: bool = False
    """CORS: allow credentials."""
    allowed_origins: tuple[str, ...] = ("*",)
    """CORS: allowed origins."""
    allowed_methods: tuple[str, ...] = ("*",)
    """CORS: allowed methods."""
    allowed_headers: tuple[str, ...] = ("*",)
    """CORS: allowed headers."""
    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_split_keys)] = ()
    """Keys that clients must send; none means: open to all who reach the port. Never shown."""
    api_keys_file: str | None = None
    """File with one key a line (`#` starts a comment), added to `api_keys`."""


class WebServer(PythonService):
    """FastChat's gradio web server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 7860
    """Port to listen on."""
    share: bool = False
    """Make a public gradio link."""
    concurrency_count: int = Field(default=10, ge=1)
    """Requests handled at once."""
    model_list_mode: Literal["once", "reload"] = "reload"
    """Read the list of models once, or at every page load."""


# ---------------------------------------------------------------- workers


class Gptq(Model):
    """GPTQ quantization."""

    ckpt: str | None = None
    """Checkpoint; the model path if left out."""
    wbits: Literal[2, 3, 4, 8, 16]
    """Bits per weight; 16 is FastChat's word for "off"."""
    groupsize: int = -1
    """Group size; -1 uses the full row."""
    act_order: bool = False
    """Activation-order heuristic."""


class Awq(Model):
    """AWQ quantization."""

    ckpt: str | None = None
    """Checkpoint; the model path if left out."""
    wbits: Literal[4, 16]
    """Bits per weight; 16 is FastChat's word for "off"."""
    groupsize: int = -1
    """Group size; -1 uses the full row."""


class Exllama(Model):
    """ExLlamaV2 kernel."""

    max_seq_len: int = Field(default=4096, ge=1)
    """Longest sequence."""
    gpu_split: str | None = None
    """GiB per GPU, as `20,7`."""
    cache_8bit: bool = False
    """8-bit cache."""


class Xft(Model):
    """xFasterTransformer (CPU)."""

    max_seq_len: int = Field(default=4096, ge=1)
    """Longest sequence."""
    dtype: Literal["fp16", "bf16", "int8", "bf16_fp16", "bf16_int8"] | None = None
    """Data type."""


def _split_commas(value: Any) -> Any:
    """FastChat writes ``--gpus 0,1``; a lone number is a list of one."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list):
        return [int(v) if isinstance(v, str) and v.isdigit() else v for v in value]
    return value


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise ValueError("the same GPU is listed twice")
    return value


Gpu = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(GPU|MIG)-[\w/-]+$")]
Gpus = Annotated[tuple[Gpu, ...], BeforeValidator(_split_commas), AfterValidator(_distinct)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1, pattern=r"^[^,]+$")], ...],
    BeforeValidator(lambda v: [p.strip() for p in v.split(",")] if isinstance(v, str) else v),
]
GpuMemory = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*([KMGT]i?B)$")]


class Worker(PythonService):
    """What every kind of worker has."""

    replicas: int = Field(default=1, ge=0, le=1000)
    """Running copies; each has its own port, and its own share of `gpus`."""
    host: str = "127.0.0.1"
    """Address to listen on. Workers have no authentication: keep it on loopback."""
    port: Port | None = None
    """Port of the first replica, the others follow; left out, one is taken from `port_range`."""
    gpus: Gpus = ()
    """GPUs of this service: indices as nvidia-smi shows them, or UUIDs. They are dealt out to the
    replicas, `num_gpus` to each, which sees no other (CUDA_VISIBLE_DEVICES)."""
    num_gpus: int | None = Field(default=None, ge=1)
    """GPUs of one replica; left out, `gpus` are divided evenly among the replicas."""
    limit_worker_concurrency: int | None = Field(default=None, ge=1)
    """Requests worked on at once; FastChat's default is 5, for vLLM, SGLang and LightLLM 1024."""
    model_names: Names = ()
    """Names under which clients ask for the model; left out, the worker's key."""
    conv_template: str | None = None
    """FastChat's conversation template; left out, chosen by the model path."""


class OneModel(Worker):
    """A worker with one model."""

    model_path: str = Field(min_length=1)
    """Folder (relative to this file) or Hugging Face repository."""


class ModelOptions(Worker):
    """Options of FastChat's own loader (`add_model_args`)."""

    device: Literal["cpu", "cuda", "mps", "xpu", "npu"] = "cuda"
    """Where the model runs; `cpu` sees no GPU at all."""
    max_gpu_memory: GpuMemory | None = None
    """Memory per GPU to use for weights, as `20GiB`."""
    load_8bit: bool = False
    """8-bit quantization while loading."""
    cpu_offloading: bool = False
    """Offload excess weights to the CPU; only with `load_8bit`."""
    gptq: Gptq | None = None
    """GPTQ quantization."""
    exllama: Exllama | None = None
    """ExLlamaV2 kernel for GPTQ models."""
    xft: Xft | None = None
    """xFasterTransformer (CPU only)."""
    stream_interval: int | None = Field(default=None, ge=1)
    """Tokens between two pieces of a stream; FastChat's default is 2."""


class ModelWorker(ModelOptions, OneModel):
    """FastChat's own worker (`fastchat.serve.model_worker`)."""

    kind: Literal["model_worker"] = "model_worker"
    """Kind of worker."""
    revision: str | None = None
    """Revision of the Hugging Face repository; FastChat's default is main."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Data type of the weights."""
    awq: Awq | None = None
    """AWQ quantization."""
    embed_in_truncate: bool = False
    """Truncate what is too long for an embedding."""
    seed: int | None = None
    """Random seed of every generation."""
    debug: bool = False
    """Debug output."""


class NamedModel(Model):
    """One of several models in a worker."""

    model_path: str = Field(min_length=1)
    """Folder (relative to this file) or Hugging Face repository."""
    model_names: Names
    """Names under which clients ask for it."""
    conv_template: str | None = None
    """FastChat's conversation template; left out, chosen by the model path."""


class MultiModelWorker(ModelOptions):
    """Several models in one process, on the same GPUs (`multi_model_worker`)."""

    kind: Literal["multi_model_worker"]
    """Kind of worker."""
    models: Annotated[tuple[NamedModel, ...], Field(min_length=1)]
    """The models."""


class VllmWorker(OneModel):
    """vLLM (`vllm_worker`). Any engine argument of vLLM can be given in `args`."""

    kind: Literal["vllm_worker"]
    """Kind of worker."""
    trust_remote_code: bool = True
    """Run code that comes with the model."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of each GPU's memory to use; vLLM's default here is 0.9."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = None
    """Data type of weights and activations."""
    quantization: str | None = None
    """How the weights are quantized, as `awq`, `gptq`, `fp8`."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest context."""
    revision: str | None = None
    """Revision of the Hugging Face repository."""


class SglangWorker(OneModel):
    """SGLang (`sglang_worker`)."""

    kind: Literal["sglang_worker"]
    """Kind of worker."""
    tokenizer_path: str | None = None
    """Tokenizer; the model path if left out."""
    trust_remote_code: bool = True
    """Run code that comes with the model."""
    mem_fraction_static: float | None = Field(default=None, gt=0, le=1)
    """Share of GPU memory for weights and cache; FastChat's default is 0.9."""
    multimodal: bool = False
    """Register as a multimodal model."""


class LightllmWorker(OneModel):
    """LightLLM (`lightllm_worker`)."""

    kind: Literal["lightllm_worker"]
    """Kind of worker."""
    tokenizer_mode: Literal["slow", "auto"] | None = None
    """Tokenizer load mode; FastChat's default is slow."""
    max_total_token_num: int | None = Field(default=None, ge=1)
    """Tokens that GPU and model can hold."""
    max_req_input_len: int | None = Field(default=None, ge=1)
    """Longest input."""
    max_req_total_len: int | None = Field(default=None, ge=1)
    """Longest input and output together."""
    mode: tuple[str, ...] = ()
    """LightLLM modes, as `triton_int8kv`."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


class MlxWorker(OneModel):
    """Apple MLX (`mlx_worker`)."""

    kind: Literal["mlx_worker"]
    """Kind of worker."""
    trust_remote_code: bool = True
    """Run code that comes with the model."""


class HuggingfaceApiWorker(Worker):
    """Models behind Hugging Face's inference API (`huggingface_api_worker`)."""

    kind: Literal["huggingface_api_worker"]
    """Kind of worker."""
    model_info_file: str
    """JSON file (relative to this file) that describes the models."""
    seed: int | None = None
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
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else "model_worker"


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
                fields[name] = (kept | None, Field(default=None, description=field.description))
    fields["kind"] = (
        Literal[tuple(WORKER_KINDS)] | None,
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

    command: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_scalars_as_text)]
    """Program and arguments, as a list. No shell is involved."""
    cwd: str | None = None
    """Working directory (relative to this file, whose folder is the default)."""
    ready: Question | None = None
    """What its startup and readiness probes ask; left out, it is ready once it runs."""


def _range(value: Any) -> Any:
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if not (dash and first.strip().isdigit() and last.strip().isdigit()):
            raise ValueError("not a range of ports; write it as 21002-21999")
        value = [int(first), int(last)]
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value)
    if pair and value[0] > value[1]:
        raise ValueError("the first port of the range is larger than the last; swap them")
    return value


PortRange = Annotated[
    tuple[Port, Port],
    BeforeValidator(_range),
    Field(json_schema_extra={"anyOf": [{"type": "array"}, {"type": "string"}]}),
]


class Cluster(Model):
    """One YAML file: all that should run on this machine for one cluster."""

    description: str = ""
    """For people; changes nothing."""
    controller: Controller | None = None
    """FastChat's controller; left out, one with default options if a worker needs it."""
    defaults: Defaults = Defaults()  # type: ignore[valid-type]
    """Options for every worker."""
    workers: dict[Name, AnyWorker] = {}
    """The workers; the key is the model's name for clients, unless `model_names` says otherwise."""
    api_server: ApiServer | None = None
    """FastChat's OpenAI-compatible API server."""
    web_server: WebServer | None = None
    """FastChat's gradio web server."""
    services: dict[Name, Command] = {}
    """Anything else that belongs to the cluster."""
    env: EnvField = {}
    """Environment variables for every service."""
    python: str | None = None
    """Interpreter for every FastChat service; left out, the supervisor's own."""
    port_range: PortRange = (21002, 21999)
    """Ports for workers that name none, as `21002-21999`."""
    logs: Logs = Logs()
    """How output is kept."""
    run_dir: str | None = None
    """Folder (relative to this file) of the control socket and state."""
    log_dir: str | None = None
    """Folder (relative to this file) of the log files."""
