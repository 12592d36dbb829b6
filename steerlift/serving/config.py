"""The options of `steerlift serve`, the original's vllm_server.py; the command line is built from them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model with vLLM's OpenAI-compatible server, any steering strength per request."""

    model: str
    """Model: hub id or folder."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default, another needs VLLM_API_KEY to be set."""
    port: int = 8000
    """Port to listen on."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the weights and activations; auto is the model's own, float32 on a CPU."""
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
    vectors: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=PATH of steering vectors (.safetensors or .json) that requests can name; may be given several times."""
    weight_transfer: Literal["file", "nccl", "none"] = "file"
    """How a trainer hands over new weights: a file in memory on this machine, vLLM's NCCL engine between GPUs, or not."""
    max_num_seqs: int | None = None
    """Most requests that run at once; default: vLLM's."""
    max_num_batched_tokens: int | None = None
    """Most tokens in one step of the batch; default: vLLM's."""
    served_model_name: str | None = None
    """What clients call the model; default: --model."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; default: the model's."""
    quantization: str | None = None
    """Quantization method, by vLLM's name; default: what the model's files say."""
    attention_backend: str | None = None
    """Attention implementation, by vLLM's name; default: vLLM's choice."""
    seed: int = 0
    """Seed of the sampler of requests that bring none of their own."""
