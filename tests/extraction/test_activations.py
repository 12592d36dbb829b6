from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, random_prompts, tiny_model

from steerlift.extraction import activations
from steerlift.extraction.activations import MeanActivations, TokenSequence, mean_activations
from steerlift.extraction.extract import mean_difference
from steerlift.records.errors import InputError
from steerlift.steering.models import decoder_layers

CHOICES = ("prompt", "last", "completion")


@contextmanager
def watched(model) -> Iterator[list[list[torch.Tensor]]]:
    """What each decoder layer puts out, read by hooks of the test's own: per layer a list of (batch, tokens, hidden)."""
    seen: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]

    def read(index):
        def hook(_module, _inputs, output):
            seen[index].append((output if isinstance(output, torch.Tensor) else output[0]).detach().clone())

        return hook

    handles = [layer.register_forward_hook(read(index)) for index, layer in decoder_layers(model).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def some_sequences() -> list[TokenSequence]:
    """Prompts and completions of many lengths, one prompt of a single token among them."""
    lengths = [(5, 3), (1, 4), (12, 1), (3, 19), (9, 9), (2, 2)]
    return [TokenSequence((*random_prompts(p)[0], *random_prompts(c)[0]), p) for p, c in lengths]


def positions(sequence: TokenSequence, tokens: str, first: bool) -> list[int]:
    """Which positions count, by the words of the option."""
    wanted = {
        "prompt": [i for i in range(len(sequence.ids)) if i < sequence.start],
        "last": [sequence.start - 1],
        "completion": [i for i in range(len(sequence.ids)) if i >= sequence.start],
    }[tokens]
    return [i for i in wanted if first or i != 0]


@torch.no_grad()
def naive(model, sequences, tokens, first) -> tuple[list[torch.Tensor], list[float], int]:
    """Every sequence alone, every chosen state kept, then averaged: states and norms per layer, and how many tokens."""
    kept: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    for sequence in sequences:
        with watched(model) as seen:
            model.get_decoder()(torch.tensor([sequence.ids]), use_cache=False)
        for layer, (states,) in enumerate(seen):
            kept[layer].extend(states[0, i].double() for i in positions(sequence, tokens, first))
    states = [torch.stack(layer) for layer in kept]
    return [s.mean(0) for s in states], [float(s.norm(dim=1).mean()) for s in states], len(states[0])


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("tokens", CHOICES)
def test_a_known_bias_after_a_layer_is_given_back(layer, tokens):
    base, changed = (tiny_model("llama", mlp_bias=True) for _ in range(2))
    bias = torch.randn(HIDDEN)
    with torch.no_grad():
        changed.model.layers[layer].mlp.down_proj.bias += bias
    sequences = some_sequences()
    means = [mean_activations(model, sequences, tokens) for model in (base, changed)]
    vectors = mean_difference(*means, {"method": "mean_difference"})
    assert list(vectors.layers) == list(range(LAYERS))
    assert vectors.metadata == {"method": "mean_difference"}
    assert all(torch.equal(vectors.layers[below], torch.zeros(HIDDEN)) for below in range(layer))
    torch.testing.assert_close(vectors.layers[layer], bias, rtol=0, atol=1e-5)
    assert all(float((vectors.layers[above] - bias).norm()) > 0.1 for above in range(layer + 1, LAYERS))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tokens", CHOICES)
def test_means_are_those_of_a_naive_loop(family, tokens, first):
    sequences = some_sequences()
    states, norms, count = naive(family, sequences, tokens, first)
    means = mean_activations(family, sequences, tokens, first)
    assert means.count == count
    assert means.state_LH.dtype == means.norm_L.dtype == torch.float64
    scale = float(torch.stack(states).abs().max())
    torch.testing.assert_close(means.state_LH, torch.stack(states), rtol=0, atol=1e-6 * scale)
    assert means.norm_L.tolist() == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tokens", CHOICES)
def test_what_all_prompts_begin_with_changes_nothing(family, tokens, first, monkeypatch):
    (beginning,) = random_prompts(40)
    sequences = [TokenSequence((*beginning, *s.ids), 40 + s.start) for s in some_sequences()]
    states, norms, count = naive(family, sequences, tokens, first)
    monkeypatch.setattr(activations, "TOKENS_PER_BATCH", 40)  # two batches and more
    means = mean_activations(family, sequences, tokens, first)
    assert means.count == count
    scale = float(torch.stack(states).abs().max())
    torch.testing.assert_close(means.state_LH, torch.stack(states), rtol=0, atol=1e-6 * scale)
    assert means.norm_L.tolist() == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("tokens", CHOICES)
def test_what_all_prompts_begin_with_is_computed_once_a_batch(qwen2, tokens):
    (beginning,) = random_prompts(40)
    sequences = [TokenSequence((*beginning, *s.ids), 40 + s.start) for s in some_sequences()]
    with watched(qwen2) as seen:
        mean_activations(qwen2, sequences, tokens)
    longest = max(len(s.ids) for s in some_sequences())
    assert sum(states.shape[0] * states.shape[1] for states in seen[0]) == 40 + 6 * longest


@pytest.mark.parametrize("tokens", CHOICES)
def test_padding_never_counts(qwen2, tokens, monkeypatch):
    sequences = some_sequences()
    together = mean_activations(qwen2, sequences, tokens)
    # No two of them fit into one batch: nothing is padded.
    monkeypatch.setattr(activations, "TOKENS_PER_BATCH", 1)
    apart = mean_activations(qwen2, sequences, tokens)
    backwards = mean_activations(qwen2, sequences[::-1], tokens)
    assert together.count == apart.count == backwards.count
    scale = float(apart.state_LH.abs().max())
    torch.testing.assert_close(together.state_LH, apart.state_LH, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(backwards.state_LH, apart.state_LH, rtol=0, atol=1e-12 * scale)


def test_sequences_of_one_batch_are_padded_to_the_limit_only(qwen2, monkeypatch):
    monkeypatch.setattr(activations, "TOKENS_PER_BATCH", 40)
    with watched(qwen2) as seen:
        mean_activations(qwen2, some_sequences(), "completion")
    shapes = [tuple(states.shape[:2]) for states in seen[0]]
    assert sum(rows for rows, _ in shapes) == 6
    assert all(rows * tokens <= 40 or rows == 1 for rows, tokens in shapes)
    assert len(shapes) < 6


def test_position_zero_counts_only_when_asked(qwen2):
    single = [TokenSequence(random_prompts(1)[0], 1)]
    for tokens in ("prompt", "last"):
        assert mean_activations(qwen2, single, tokens, include_first_position=True).count == 1
        with pytest.raises(InputError, match=f"found no {tokens} token to average in 1 sequences"):
            mean_activations(qwen2, single, tokens)
    sequences = [TokenSequence(random_prompts(6)[0], 4)]
    counts = {c: [mean_activations(qwen2, sequences, c, first).count for first in (True, False)] for c in CHOICES}
    assert counts == {"prompt": [4, 3], "last": [1, 1], "completion": [2, 2]}


def test_sums_of_bfloat16_states_are_float64():
    # 20,000 tokens: a float32 sum would be off by 1e-7 and more, a bfloat16 sum would have stopped growing.
    model = tiny_model("llama", hidden_size=16, num_attention_heads=2, head_dim=8, intermediate_size=16).to(torch.bfloat16)
    ids = torch.randint(3, 97, (100, 200)).tolist()
    with watched(model) as seen:
        means = mean_activations(model, [TokenSequence(tuple(row), 1) for row in ids], "completion")
    states = torch.stack([torch.cat([batch[:, 1:].flatten(0, 1) for batch in layer]) for layer in seen])
    assert states.dtype == torch.bfloat16
    assert means.count == states.shape[1] == 100 * 199
    torch.testing.assert_close(means.state_LH, states.double().mean(1), rtol=1e-12, atol=1e-12)
    expected = states.double().norm(dim=-1).mean(1)
    torch.testing.assert_close(means.norm_L, expected, rtol=1e-7, atol=0)


def test_only_the_body_runs_and_nothing_is_left_behind(qwen2):
    def refuse(*_):
        raise AssertionError("the language-model head ran")

    handle = qwen2.lm_head.register_forward_pre_hook(refuse)
    done: list[int] = []
    means = mean_activations(qwen2, some_sequences(), "prompt", on_done=done.append)
    handle.remove()
    assert sum(done) == 6
    assert not means.state_LH.requires_grad
    assert not any(layer._forward_hooks for layer in decoder_layers(qwen2).values())


def test_the_difference_is_taken_before_rounding():
    large = torch.full((1, 2), 1e8, dtype=torch.float64)
    base = MeanActivations(large, torch.ones(1, dtype=torch.float64), 1)
    changed = MeanActivations(large + torch.tensor([[0.5, -0.25]]), torch.ones(1, dtype=torch.float64), 1)
    vector = mean_difference(base, changed, {}).layers[0]
    assert vector.dtype == torch.float32
    assert vector.tolist() == [0.5, -0.25]
