"""A beginning that is kept once gives what keeping it for every row gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import HIDDEN, LAYERS, SpellingTokenizer, full_forward_logprobs, random_prompts, tiny_model
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steerlift.sampling.beginning import Beginning
from steerlift.sampling.cache import RoomyLayer
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.apply import steer
from steerlift.steering.precision import MIXED
from steerlift.steering.vectors import SteeringVectors

SIZE, LONG = 8, 140
"""Of a head; tokens that are enough to be kept apart."""


@given(
    groups=st.integers(1, 3), heads_per_group=st.integers(1, 7), of_row=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    tokens=st.integers(1, 40), masked=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_to_beginning_and_row_is_attention_to_both_as_one(groups, heads_per_group, of_row, tokens, masked, seed):
    torch.manual_seed(seed)
    rows, of_row_R = len(of_row), torch.tensor(of_row)
    # As in a model: heads are the third axis before they are moved, and the cache has more room than tokens.
    query = torch.randn(rows, 1, groups * heads_per_group, SIZE).transpose(1, 2)
    key, value = (torch.randn(rows, groups, tokens + 5, SIZE)[:, :, :tokens] for _ in range(2))
    keys, values = torch.randn(2, 3, groups, 17, SIZE)
    seen = torch.rand(rows, 1, 1, tokens) < 0.5 if masked else None
    if seen is not None:
        seen[..., -1] = True  # the new token itself
    beginning = Beginning({4: (keys, values)}, of_row_R)
    ours = beginning.attend(4, query, key, value, seen, 0.3)
    whole_seen = None if seen is None else torch.nn.functional.pad(seen, (17, 0), value=True)
    whole_key, whole_value = torch.cat([keys[of_row_R], key], 2), torch.cat([values[of_row_R], value], 2)
    module = torch.nn.Module()
    module.num_key_value_groups = heads_per_group
    theirs, _ = sdpa_attention_forward(module, query, whole_key, whole_value, whole_seen, scaling=0.3, is_causal=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def kept_apart(monkeypatch):
    """The beginnings that samplers keep apart."""
    made = []
    plain = Beginning.__init__

    def noting(self, *arguments):
        plain(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Beginning, "__init__", noting)
    return made


def requests_with_a_long_beginning(*weights):
    """Prompts of several lengths, one of which is all beginning but its last token, and rows that end at different times."""
    beginning = random_prompts(LONG)[0]
    prompts = [beginning + rest for rest in random_prompts(1, 30, 4)]
    return [Request(prompt, (1, 2, 3), weight) for prompt in prompts for weight in weights]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_a_long_beginning_stays_apart_and_changes_nothing(name, kept_apart):
    model = tiny_model(name)
    vectors = SteeringVectors({0: 0.5 * torch.randn(HIDDEN), 2: 0.5 * torch.randn(HIDDEN)})
    requests = requests_with_a_long_beginning(0.0, 1.5)
    lengths = set()
    sampled = LocalSampler(model, SpellingTokenizer(), vectors).sample(requests, SamplingOptions(0.7, 40))
    assert [beginning.was_read() for beginning in kept_apart] == [True]
    assert {keys.shape for keys, _ in kept_apart[0].layers.values()} == {(2, 2, LONG, 16)}
    for request, completions in zip(requests, sampled, strict=True):
        for completion in completions:
            with steer(model, vectors, request.weight):
                expected = full_forward_logprobs(model, request.prompt_ids, completion, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)
            lengths.add(len(completion.token_ids))
    assert len(lengths) > 1


def test_a_model_that_computes_attention_in_a_way_of_its_own_gets_every_row_whole(monkeypatch, kept_apart):
    def own(*arguments, **options):
        return sdpa_attention_forward(*arguments, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", own)
    model = tiny_model("qwen2")
    requests = requests_with_a_long_beginning(0.0)
    sampler = LocalSampler(model, SpellingTokenizer())
    for _ in range(2):
        for request, completions in zip(requests, sampler.sample(requests, SamplingOptions(0.7, 20)), strict=True):
            for completion in completions:
                expected = full_forward_logprobs(model, request.prompt_ids, completion, 0.7)
                torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)
    assert [beginning.was_read() for beginning in kept_apart] == [False, False]


@pytest.mark.parametrize(
    ("tokens", "value_size", "attention", "apart"),
    [(128, 16, "sdpa", True), (127, 16, "sdpa", False), (128, 8, "sdpa", False), (128, 16, "eager", False)],
)
def test_what_is_short_or_cannot_be_asked_for_stays_with_the_rows(tokens, value_size, attention, apart):
    model = tiny_model("qwen2")
    model.set_attn_implementation(attention)
    beginning = Beginning({0: (torch.zeros(1, 2, tokens, 16), torch.zeros(1, 2, tokens, value_size))}, torch.tensor([0]))
    assert beginning.can_be_apart(model) is apart


def test_mixed_precision_keeps_keys_and_values_in_one_format(kept_apart):
    """A rotation under autocast leaves keys in float32; the product that takes them would convert them for every new token."""
    model = tiny_model("qwen2")
    formats = set()
    plain = RoomyLayer.update

    def noting(self, *states, **options):
        kept = plain(self, *states, **options)
        formats.update(state.dtype for state in kept)
        return kept

    with pytest.MonkeyPatch.context() as patch, MIXED.without_gradients(model, torch.device("cpu")):
        patch.setattr(RoomyLayer, "update", noting)
        sampled = LocalSampler(model, SpellingTokenizer()).sample(requests_with_a_long_beginning(0.0), SamplingOptions(0.7, 20))
    assert formats == {torch.bfloat16}
    assert kept_apart[0].was_read()
    assert all(torch.tensor(c.logprobs).isfinite().all() for group in sampled for c in group)


def test_the_head_is_given_states_that_lie_together():
    """torch multiplies a slice of the states with a copy of the head's weights for every row."""
    model = tiny_model("qwen2")
    together = []
    model.lm_head.register_forward_pre_hook(lambda _, states: together.append(states[0].is_contiguous()))
    LocalSampler(model, SpellingTokenizer()).sample(requests_with_a_long_beginning(0.0), SamplingOptions(0.7, 4))
    assert len(together) > 2
    assert all(together)


def test_all_layers_of_a_tiny_model_are_asked(kept_apart):
    LocalSampler(tiny_model("qwen2"), SpellingTokenizer()).sample(requests_with_a_long_beginning(0.0), SamplingOptions(0.7, 2))
    assert set(kept_apart[0].layers) == set(range(LAYERS))
