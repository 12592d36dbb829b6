"""Attention by groups is transformers' attention, and takes its place only while samples are drawn."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SpellingTokenizer, tiny_model
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steerlift.records.errors import NotFiniteError
from steerlift.sampling.attention import attention_by_groups, fast_decoding
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions

SIZE = 8


@given(
    rows=st.integers(1, 3), groups=st.integers(1, 3), heads_per_group=st.integers(1, 7), queries=st.integers(1, 3),
    tokens=st.integers(3, 40), mask=st.sampled_from(["none", "for all heads", "for each head"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_transformers_attention(rows, groups, heads_per_group, queries, tokens, mask, seed):
    torch.manual_seed(seed)
    heads = groups * heads_per_group
    # As in a model: heads are the third axis before they are moved, and the cache has more room than tokens.
    query = torch.randn(rows, queries, heads, SIZE).transpose(1, 2)
    key, value = (torch.randn(rows, groups, tokens + 5, SIZE)[:, :, :tokens] for _ in range(2))
    seen = None if mask == "none" else torch.rand(rows, 1 if mask == "for all heads" else heads, queries, tokens) < 0.5
    if seen is not None:
        seen[..., 0] = True
    module = SimpleNamespace(num_key_value_groups=heads_per_group, is_causal=True)
    ours, _ = attention_by_groups(module, query, key, value, seen, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=0.3)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_sampler_decodes_with_it_and_puts_transformers_attention_back(monkeypatch):
    single_queries = []

    def counting(module, query, *arguments, **options):
        single_queries.append(query.shape[2] == 1)
        return attention_by_groups(module, query, *arguments, **options)

    monkeypatch.setattr("steerlift.sampling.attention.attention_by_groups", counting)
    model = tiny_model("qwen2")
    sampler = LocalSampler(model, SpellingTokenizer())
    completions = sampler.sample([Request((5, 6, 7), (1, 2))], SamplingOptions(0.0, 6))[0]
    layers = model.config.num_hidden_layers
    assert single_queries == [False] * layers + [True] * layers * (max(len(c.token_ids) for c in completions) - 1)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward

    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        sampler.sample([Request((5, 6, 7), (1,))], SamplingOptions(0.0, 6))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_an_attention_that_the_user_has_put_there_is_left_alone(monkeypatch):
    def own(*arguments, **options):
        return sdpa_attention_forward(*arguments, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", own)
    with fast_decoding():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_one_sampler_inside_another_leaves_nothing_behind():
    with fast_decoding(), fast_decoding():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention_by_groups
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
