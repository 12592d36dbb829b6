"""How many rows are sampled at a time: as many as the memory that is free holds."""

import ctypes
import sys

import psutil
import torch

from steerlift.steering.models import Model, text_config

MOST_ROWS = 1024


def rows_that_fit(model: Model, length: int, wanted: int = MOST_ROWS) -> int:
    """How many of `wanted` rows of `length` tokens fit in the free memory: keys, values and one step's logits.

    At least 1 and at most MOST_ROWS.
    """
    config = text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    # Growing the cache and dropping rows copy it a layer at a time, which leaves holes: 1.3 times its size on Qwen2.5-0.5B's
    # shapes. Logits exist as scaled, logprobs and cumulative sums in float32.
    per_row = int(1.5 * per_token * length + 4 * 4 * config.vocab_size)
    wanted = min(MOST_ROWS, wanted)
    rows = memory_budget(model.device) // per_row
    if rows < wanted and model.device.type == "cpu" and give_back_freed_memory():
        rows = memory_budget(model.device) // per_row
    return max(1, min(wanted, rows))


def memory_budget(device: torch.device) -> int:
    """Bytes that may be used for caches and activations: half of what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return int(psutil.virtual_memory().available) // 2


def give_back_freed_memory() -> bool:
    """Gives the system what this process has freed and kept for the next tensor; whether this C library can.

    After an update that may be most of the memory: without this a model of 0.5B on 24 GB was sampled from two rows at a time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is None:
        return False
    trim(0)
    return True
