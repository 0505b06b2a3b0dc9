"""Which flags FastChat gets for a service of the file (FastChat 0.2.36, fastchat/serve/*.py).

``--gpus`` is never given: FastChat sets CUDA_VISIBLE_DEVICES from it after importing torch (#2360),
so we set the variable before the process starts. ``--no-register`` always is: the supervisor owns
registration.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from supervisor.spec.model import (
    ApiServer,
    Controller,
    HuggingfaceApiWorker,
    LightllmWorker,
    LimitedWorker,
    MlxWorker,
    ModelOptions,
    ModelWorker,
    MultiModelWorker,
    OneModel,
    SglangWorker,
    VllmWorker,
    WebServer,
    Worker,
)

Value = str | int | float | bool | Sequence[str] | None


def flags(**values: Value) -> list[str]:
    """``load_8bit=True, num_gpus=2`` -> ``--load-8bit --num-gpus 2``; None is left out."""
    words: list[str] = []
    for name, value in values.items():
        words += _flag(f"--{name.replace('_', '-')}", value)
    return words


def _flag(flag: str, value: Value) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    text = str(value)
    # argparse takes a word that begins with a dash for the next flag.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def controller_flags(controller: Controller) -> list[str]:
    return flags(
        host=controller.host,
        port=controller.port,
        dispatch_method=controller.dispatch_method,
    )


def api_server_flags(server: ApiServer, controller_address: str) -> list[str]:
    """Without the keys, which go through stdin: FastChat logs its arguments."""
    return flags(
        host=server.host,
        port=server.port,
        controller_address=controller_address,
        allow_credentials=server.allow_credentials,
        allowed_origins=json.dumps(list(server.allowed_origins)),
        allowed_methods=json.dumps(list(server.allowed_methods)),
        allowed_headers=json.dumps(list(server.allowed_headers)),
    )


def web_server_flags(server: WebServer, controller_address: str) -> list[str]:
    return flags(
        host=server.host,
        port=server.port,
        controller_url=controller_address,
        share=server.share,
        concurrency_count=server.concurrency_count,
        model_list_mode=server.model_list_mode,
    )


def worker_flags(
    worker: Worker,
    *,
    port: int,
    address: str,
    controller_address: str,
    models: Sequence[str],
    model_path: str | None,
    paths: Sequence[str] = (),
    gpu_count: int | None = None,
) -> list[str]:
    """``model_path`` and ``paths`` (a multi_model_worker's, or a model_info_file) are resolved."""
    words = flags(
        host=worker.host,
        port=port,
        worker_address=address,
        controller_address=controller_address,
        model_path=model_path,
    )
    match worker:
        case MultiModelWorker():
            words += _multi_model(worker, paths) + _model_options(worker, gpu_count)
        case ModelWorker():
            words += _names(models, worker) + _model_worker(worker, gpu_count)
        case VllmWorker():
            words += _names(models, worker) + _vllm(worker, gpu_count)
        case SglangWorker():
            words += _names(models, worker) + _sglang(worker, gpu_count)
        case LightllmWorker():
            words += _names(models, worker) + _lightllm(worker, gpu_count)
        case MlxWorker():
            words += _names(models, worker) + _distrust(worker)
        case HuggingfaceApiWorker():
            words += flags(model_info_file=paths[0], seed=worker.seed)
    if isinstance(worker, LimitedWorker):  # mlx_worker does not know --no-register either
        words += flags(limit_worker_concurrency=worker.limit_worker_concurrency, no_register=True)
    return words


def _names(models: Sequence[str], worker: OneModel) -> list[str]:
    return flags(model_names=",".join(models), conv_template=worker.conv_template)


def _model_options(worker: ModelOptions, gpu_count: int | None) -> list[str]:
    words = flags(
        device=worker.device,
        num_gpus=gpu_count,
        max_gpu_memory=worker.max_gpu_memory,
        load_8bit=worker.load_8bit,
        cpu_offloading=worker.cpu_offloading,
        stream_interval=worker.stream_interval,
    )
    if gptq := worker.gptq:
        words += flags(
            gptq_ckpt=gptq.ckpt,
            gptq_wbits=gptq.wbits,
            gptq_groupsize=gptq.groupsize,
            gptq_act_order=gptq.act_order,
        )
    if exllama := worker.exllama:
        words += flags(
            enable_exllama=True,
            exllama_max_seq_len=exllama.max_seq_len,
            exllama_gpu_split=exllama.gpu_split,
            exllama_cache_8bit=exllama.cache_8bit,
        )
    if xft := worker.xft:
        words += flags(enable_xft=True, xft_max_seq_len=xft.max_seq_len, xft_dtype=xft.dtype)
    return words


def _model_worker(worker: ModelWorker, gpu_count: int | None) -> list[str]:
    words = _model_options(worker, gpu_count)
    words += flags(
        revision=worker.revision,
        dtype=worker.dtype,
        embed_in_truncate=worker.embed_in_truncate,
        seed=worker.seed,
        debug="yes" if worker.debug else None,  # type=bool: any text is true, even "False"
    )
    if awq := worker.awq:
        words += flags(awq_ckpt=awq.ckpt, awq_wbits=awq.wbits, awq_groupsize=awq.groupsize)
    return words


def _multi_model(worker: MultiModelWorker, paths: Iterable[str]) -> list[str]:
    words: list[str] = []
    for model, path in zip(worker.models, paths, strict=True):
        words += flags(model_path=path, model_names=",".join(model.model_names))
    templates = [model.conv_template or worker.conv_template or "" for model in worker.models]
    if any(templates):
        # Aligned with the models by position, so all or none must be given; of an empty one
        # FastChat makes the model's own (serve/base_model_worker.py, make_conv_template).
        for template in templates:
            words += flags(conv_template=template)
    return words


def _distrust(worker: VllmWorker | MlxWorker) -> list[str]:
    """FastChat's flag is a store_false: giving it turns trust off."""
    return [] if worker.trust_remote_code else ["--trust_remote_code"]


def _vllm(worker: VllmWorker, gpu_count: int | None) -> list[str]:
    words = flags(
        num_gpus=gpu_count,
        dtype=worker.dtype,
        quantization=worker.quantization,
        max_model_len=worker.max_model_len,
        revision=worker.revision,
    )
    words += _flag("--gpu_memory_utilization", worker.gpu_memory_utilization)
    return words + _distrust(worker)


def _sglang(worker: SglangWorker, gpu_count: int | None) -> list[str]:
    return flags(
        num_gpus=gpu_count,
        tokenizer_path=worker.tokenizer_path,
        mem_fraction_static=worker.mem_fraction_static,
        multimodal=worker.multimodal,
        trust_remote_code=not worker.trust_remote_code,  # a store_false, as above
    )


def _lightllm(worker: LightllmWorker, gpu_count: int | None) -> list[str]:
    words = _flag("--tp", gpu_count)
    for name in ("tokenizer_mode", "max_total_token_num", "max_req_input_len", "max_req_total_len"):
        words += _flag(f"--{name}", getattr(worker, name))
    words += _flag("--trust_remote_code", worker.trust_remote_code)
    return words + (["--mode", *worker.mode] if worker.mode else [])
