"""What several prompts begin with, and which models can compute it once: sampling and training both do."""

from collections.abc import Collection
from inspect import signature
from typing import cast

from torch import nn
from transformers import PreTrainedConfig

_WINDOWS = ("sliding_window", "window_size", "attention_window_size")
"""Where configurations say how many tokens some layers look back."""


def common_beginning(prompts: Collection[tuple[int, ...]]) -> int:
    """How many tokens all of the prompts begin with, less the last one of each: the state at it is wanted."""
    # What the first and the last in order begin with, all between them begin with.
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def allows_gaps(body: nn.Module) -> bool:
    """Whether a decoder computes the same with padding between one beginning and what goes on after it.

    Only where every layer sees all tokens and is told their places: a window, or a distance counted in the cache, counts
    the padding too.
    """
    if "position_ids" not in signature(body.forward).parameters:
        return False
    config = cast("PreTrainedConfig", body.config).get_text_config(decoder=True)
    windowed = any(getattr(config, name, None) is not None for name in _WINDOWS) and getattr(config, "use_sliding_window", True)
    return not windowed and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
