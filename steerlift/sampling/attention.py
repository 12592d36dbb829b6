"""The attention of one new token: query heads that share keys and values, and rows that share the beginning of their prompts.

transformers' sdpa first copies keys and values once for every query head, and torch then takes a row and a head at a time. All
query heads of a group ask the same keys, so they can stand where a sequence's queries stand: nothing is copied, and a product
has as many rows as the group has heads. What all prompts begin with is likewise kept once (`beginning`), and the queries of all
rows ask it in one product. The same sums; `python -m bench sampling` times both against transformers' way.

Shapes: R rows, H query heads, G groups of them, Q queries, T tokens of a row, S of a beginning, D size of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steerlift.sampling.beginning import Beginning

# What comes before the keys and values that a model gives: of this thread, since others may be sampling from other models.
_before: ContextVar[Beginning | None] = ContextVar("before", default=None)


def attention_by_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa_attention_forward` returns, shape (R, Q, H, D); all but single queries go there.

    `query` is (R, H, Q, D), `key` and `value` (R, G, T, D).
    """
    beginning = _before.get()
    layer = getattr(module, "layer_idx", None)
    if beginning is not None and layer in beginning.layers:
        if query.shape[2] == 1:
            return beginning.attend(layer, query, key, value, attention_mask, scaling), None
        key, value, attention_mask = beginning.with_own(layer, query.shape[2], key, value, attention_mask)
    rows, heads, queries, size = query.shape
    groups = key.shape[1]
    is_plain = options.get("position_bias") is None and options.get("cache") is None
    if queries != 1 or groups == heads or not is_plain or (attention_mask is not None and attention_mask.shape[1] != 1):
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return whole
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, groups, heads // groups, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.reshape(rows, 1, heads, value.shape[-1]), None


@contextmanager
def fast_decoding() -> Iterator[None]:
    """Within it, transformers' models whose attention is sdpa compute single queries by `attention_by_groups`."""
    replaces = ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    if replaces:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attention_by_groups
    outer = _before.set(None)
    try:
        yield
    finally:
        _before.reset(outer)
        if replaces:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]


def go_on_after(beginning: Beginning | None) -> None:
    """From here on, until `fast_decoding` ends, what this thread gives to a model comes after this beginning."""
    _before.set(beginning)
