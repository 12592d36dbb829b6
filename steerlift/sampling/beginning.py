"""The keys and values of what all prompts of a batch begin with, kept once instead of once for every row.

A new token then reads them once for all rows: with 430 tokens of worked examples before each problem that takes Qwen2.5-0.5B's
attention, on a CPU, to a third of its time, and its memory to a quarter.

Shapes: R rows, H query heads, G groups of them, Q queries, T tokens of a row after the beginning, S of the beginning, D size of
a head; W distinct beginnings: one for each steering weight, since steered keys differ.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from steerlift.sampling.cache import RoomyLayer
from steerlift.steering.models import Model, text_config

# Fewer tokens cost more as a part of their own than reading them for every row.
_LEAST = 128
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


class Beginning:
    """Keys and values (W, G, S, D) of every layer, and which of the W stands before each row."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]], of_row_R: Tensor) -> None:
        self.layers = layers
        self._read: set[int] = set()
        self._take(of_row_R)

    def can_be_apart(self, model: Model) -> bool:
        """Whether it is long enough to be kept apart, and this model's attention can ask for it with torch's kernel."""
        keys, values = next(iter(self.layers.values()))
        return (
            keys.shape[2] >= _LEAST
            and keys.device.type == "cpu"
            and keys.shape == values.shape  # others' values are narrower than their keys (DeepSeek's)
            and text_config(model)._attn_implementation == "sdpa"
            and hasattr(torch.ops.aten, _KERNEL)
        )

    def was_read(self) -> bool:
        """Whether every layer's attention has asked for its part, as it does unless a model computes it in its own way."""
        return self._read == set(self.layers)

    def select(self, rows: Tensor) -> None:
        """Rows `rows` take the places of all rows; a row may be taken several times."""
        self._take(self._of_row_R[rows])

    def with_own(
        self, layer: int, queries: int, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (R, G, S + T, D) of beginning and row, and what a query sees of them: all before it unless masked."""
        self._read.add(layer)
        keys, values = self.layers[layer]
        tokens = key.shape[2]
        if mask is None:
            mask = torch.ones(queries, tokens, dtype=torch.bool, device=key.device).tril(tokens - queries)[None, None]
        seen = torch.nn.functional.pad(mask, (keys.shape[2], 0), value=1 if mask.dtype == torch.bool else 0)
        return (
            torch.cat([keys[self._of_row_R], key], dim=2),
            torch.cat([values[self._of_row_R], value], dim=2),
            seen,
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        """The attention of single queries (R, H, 1, D) to beginning and row, shape (R, 1, H, D).

        Two softmaxes become one by their sums of exponentials (Milakov and Gimelshein 2018), which torch's CPU kernel gives.
        """
        self._read.add(layer)
        keys, values = self.layers[layer]
        rows, heads, _, size = query.shape
        groups = key.shape[1]
        query_RGHD = query.to(key.dtype).reshape(rows, groups, heads // groups, size)
        own, own_sums = _attention(query_RGHD, key, value, _additive(mask, key.dtype), scaling)
        shared, shared_sums = torch.empty_like(own), torch.empty_like(own_sums)
        for beginning, its_rows in self._rows_of_W:
            # All rows' queries of a group as those of one sequence.
            asked = query_RGHD[its_rows].transpose(0, 1).reshape(1, groups, -1, size)
            attended, sums = _attention(asked, keys[beginning, None], values[beginning, None], None, scaling)
            shared[its_rows] = attended.reshape(groups, -1, heads // groups, size).transpose(0, 1)
            shared_sums[its_rows] = sums.reshape(groups, -1, heads // groups).transpose(0, 1)
        share = (shared_sums - own_sums).sigmoid()[..., None]
        return own.lerp(shared, share.to(own.dtype)).reshape(rows, 1, heads, size)

    def put_back(self, cache: DynamicCache) -> None:
        """The cache holds the beginning of every row, and nothing after it: for a model that would not ask for it here."""
        cache.layers = [RoomyLayer() for _ in self.layers]
        for layer, (keys, values) in zip(cache.layers, self.layers.values(), strict=True):
            layer.update(keys[self._of_row_R], values[self._of_row_R])

    def _take(self, of_row_R: Tensor) -> None:
        self._of_row_R = of_row_R
        present = sorted(set(of_row_R.tolist()))
        self._rows_of_W: list[tuple[int, Tensor | slice]] = (
            [(present[0], slice(None))]
            if len(present) == 1
            else [(beginning, (of_row_R == beginning).nonzero().squeeze(1)) for beginning in present]
        )


def take_beginning(cache: DynamicCache, of_row_R: Tensor) -> Beginning:
    """Moves all that is in the cache to a beginning, whose entry `of_row_R` stands before each of the rows to come."""
    layers = {index: (layer.keys, layer.values) for index, layer in enumerate(cache.layers)}
    cache.layers = [RoomyLayer() for _ in layers]
    return Beginning(layers, of_row_R)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> tuple[Tensor, Tensor]:
    """Attention (R, G, Q, D) and the logarithms of its sums of exponentials (R, G, Q), which the public function leaves out."""
    attended, sums = getattr(torch.ops.aten, _KERNEL)(query, key, value, attn_mask=mask, scale=scaling)
    return attended, sums


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
