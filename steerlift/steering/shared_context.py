"""What several prompts begin with is computed once: by going through a model part by part, where the model allows it.

Shapes: R rows, T tokens of a part, C tokens of all parts so far, H hidden size.
"""

from collections.abc import Collection
from inspect import signature
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, PreTrainedConfig

_SHORTEST, _LEAST_SAVED = 16, 64
"""Tokens of a beginning, and tokens that computing it once saves. A pass of its own for less costs more than it saves: a
model's weights are read, and their gradients added up, once more."""
_WINDOWS = ("sliding_window", "window_size", "attention_window_size")
"""Where configurations say how many tokens some layers look back."""


class SharedContext:
    """What has gone through a decoder so far; the next part is computed as if it came after this in one sequence.

    Gradients flow back into all parts. Without `keeps` there is one part only, and its keys and values are not kept.
    """

    def __init__(self, body: nn.Module, keeps: bool) -> None:
        self.body = body
        # Without the model's configuration every layer keeps all positions; a sliding window is in the mask anyway.
        self.cache = DynamicCache() if keeps else None
        self.mask_RC: Tensor | None = None

    def read(self, ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        """The last hidden states of the next part, shape (R, T, H). Its mask is 0 at padding, which may be at either end."""
        self.mask_RC = mask_RT if self.mask_RC is None else torch.cat([self.mask_RC, mask_RT], dim=1)
        states_RTH: Tensor = self.body(
            input_ids=ids_RT,
            attention_mask=self.mask_RC,
            position_ids=_positions(self.mask_RC)[:, -ids_RT.shape[1] :],
            past_key_values=self.cache,
            use_cache=self.cache is not None,
        ).last_hidden_state
        return states_RTH

    def repeat(self, rows: int) -> None:
        """The one row so far becomes that of `rows` rows, without a copy: the next part makes one when it adds its own."""
        if self.cache is None or self.mask_RC is None:
            raise RuntimeError("no part was kept")
        self.mask_RC = self.mask_RC.expand(rows, -1)
        for layer in self.cache.layers:
            layer.keys, layer.values = (kept.expand(rows, -1, -1, -1) for kept in (layer.keys, layer.values))

    def select(self, rows_R: Tensor) -> None:
        """Goes on with these rows, each as often as it is named."""
        if self.cache is None or self.mask_RC is None:
            raise RuntimeError("no part was kept")
        self.mask_RC = self.mask_RC[rows_R]
        self.cache.batch_select_indices(rows_R)


def common_beginning(prompts: Collection[tuple[int, ...]]) -> int:
    """How many tokens all of the prompts begin with, less the last one of each: the state at it is wanted."""
    # What the first and the last in order begin with, all between them begin with.
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def common_prefix(prompts: Collection[tuple[int, ...]]) -> int:
    """How many tokens all of several distinct prompts begin with; 0 where a pass for them is not worth it.

    One token of every prompt is left: the state at its last gives the completion's first token.
    """
    if len(prompts) < 2:
        return 0
    length = common_beginning(prompts)
    saved = length * (len(prompts) - 1)
    return length if length >= _SHORTEST and saved >= _LEAST_SAVED else 0


def can_share(body: nn.Module) -> bool:
    """Gradient checkpointing keeps no keys and values; under FSDP2 processes have to go through the layers equally often."""
    recomputes = body.training and getattr(body, "gradient_checkpointing", False)
    return not recomputes and not any(isinstance(module, FSDPModule) for module in body.modules())


def can_share_beginnings(body: nn.Module) -> bool:
    """Whether prompts of several lengths may go on after one beginning, with padding between it and the shorter ones."""
    return can_share(body) and allows_gaps(body)


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


def _positions(mask: Tensor) -> Tensor:
    """Each token's place in its row, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
