"""The command line and the environment of vLLM's server, from the options of `steerlift serve`."""

import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steerlift.records.provenance import package_version
from steerlift.serving.config import ServeConfig
from steerlift.serving.private import FOLDER_VARIABLE

KEY_VARIABLES = ("STEERLIFT_API_KEY", "VLLM_API_KEY")

FILE_BACKEND = "steerlift_file"
"""The name under which vLLM knows our way of handing over weights."""

_BACKENDS = {"file": FILE_BACKEND, "nccl": "nccl"}
_ON_A_CPU = {
    # Binding threads to cores fails where a container does not own them.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # In GiB; vLLM's own choice takes most of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "2",
}


def cpu_build() -> bool:
    """Whether the vLLM installed here serves from a CPU."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return version("vllm").endswith("cpu")


def server_command(config: ServeConfig, on_cpu: bool) -> list[str]:
    """The command line of vLLM's server."""
    # `vllm serve` of the CPU build fails for want of package metadata; the module behind it is the same on both builds.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    values = {
        "model": config.model,
        "host": config.host,
        "port": config.port,
        # Greedy text equals transformers' in float32 only, and few CPUs are fast at anything else.
        "dtype": "float32" if on_cpu and config.dtype == "auto" else config.dtype,
        "tensor-parallel-size": config.tensor_parallel_size,
        "data-parallel-size": config.data_parallel_size,
        "gpu-memory-utilization": config.gpu_memory_utilization,
        "max-model-len": config.max_model_len,
        "kv-cache-dtype": config.kv_cache_dtype,
        "uvicorn-log-level": config.log_level,
        "revision": config.revision,
        "max-num-seqs": config.max_num_seqs,
        "max-num-batched-tokens": config.max_num_batched_tokens,
        "served-model-name": config.served_model_name,
        "tokenizer": config.tokenizer,
        "quantization": config.quantization,
        "attention-backend": config.attention_backend,
        "seed": config.seed,
        # What a trainer needs: logprobs of the distribution that was sampled from.
        "logprobs-mode": "processed_logprobs",
        "middleware": "steerlift.serving.guard.Guard",
        "logits-processors": "steerlift.serving.steering_rows:SteeringRows",
        # Part of the key of vLLM's compilation cache: without it the steered model and vLLM's own share a key (0.32), since
        # the key looks at the code of the outermost forward only, and a graph without our addition would be loaded.
        "additional-config": json.dumps({"steerlift": package_version()}),
        "allowed-origins": "[]",
    }
    if config.weight_transfer in _BACKENDS:
        values["weight-transfer-config"] = json.dumps({"backend": _BACKENDS[config.weight_transfer]})
    if not on_cpu and not config.enforce_eager:
        # A full CUDA graph would replay a step without asking whose tokens it holds.
        values["compilation-config"] = json.dumps({"cudagraph_mode": "PIECEWISE"})
    for name, value in values.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    switches = {"enforce-eager": config.enforce_eager, "trust-remote-code": config.trust_remote_code}
    command += [f"--{name}" for name, on in switches.items() if on]
    return [*command, "--enable-prefix-caching" if config.enable_prefix_caching else "--no-enable-prefix-caching"]


def environment(config: ServeConfig, folder: Path, on_cpu: bool, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of vLLM's processes: the user's `own`, with what steering and weight updates need."""
    # The guard checks the key, which stands in the private folder; no other process need know it.
    result = {name: value for name, value in own.items() if name not in KEY_VARIABLES}
    defaults = {"VLLM_LOGGING_LEVEL": config.log_level.upper(), "VLLM_NO_USAGE_STATS": "1", **(_ON_A_CPU if on_cpu else {})}
    for name, value in defaults.items():
        result.setdefault(name, value)
    result[FOLDER_VARIABLE] = str(folder)
    # The newer model runner does not call processors of logits, which tell the plugin whose tokens a step holds.
    result["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    result["VLLM_SERVER_DEV_MODE"] = "0" if config.weight_transfer == "none" else "1"
    if "VLLM_PLUGINS" in result:
        result["VLLM_PLUGINS"] = f"{result['VLLM_PLUGINS']},steerlift"
    return result
