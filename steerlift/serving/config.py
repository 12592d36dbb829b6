"""The options of `steerlift serve`, the original's vllm_server.py; the command line is built from them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model with vLLM's OpenAI-compatible server."""

    model: str
    """Model: hub id or folder."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default."""
    port: int = 8000
    """Port to listen on."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the weights and activations."""
    tensor_parallel_size: int = 1
    """GPUs that share each layer."""
    data_parallel_size: int = 1
    """Copies of the model."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory to use."""
    max_model_len: int | None = None
    """Longest prompt and completion, in tokens; default: the model's own."""
    enable_prefix_caching: bool = True
    """Keep the caches of shared prompt beginnings."""
    enforce_eager: bool = False
    """Run without compilation or CUDA graphs."""
    kv_cache_dtype: str = "auto"
    """Data type of the KV cache."""
    trust_remote_code: bool = False
    """Allow code that comes with the model."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """How much the server prints."""
    revision: str | None = None
    """Revision of the model on the hub."""
