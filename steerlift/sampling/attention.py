"""The attention of one new token, where several query heads share their keys and values (grouped-query attention).

transformers' sdpa first copies keys and values once for every query head, and torch then takes a row and a head at a time. All
query heads of a group ask the same keys, so they can stand where a sequence's queries stand: nothing is copied, and a product
has as many rows as the group has heads. The same sums; `python -m bench sampling` times both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


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
    """What transformers' `sdpa_attention_forward` returns, shape (rows, queries, heads, size); all but single queries go there.

    `query` is (rows, heads, queries, size), `key` and `value` (rows, groups, tokens, size).
    """
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
    try:
        yield
    finally:
        if replaces:
            del ALL_ATTENTION_FUNCTIONS["sdpa"]
