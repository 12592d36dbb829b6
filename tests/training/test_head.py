import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_prompts, tiny_model

from steerlift.records.errors import InputError
from steerlift.training import head as head_module
from steerlift.training.head import Head, chunk_tokens, chunked_logprobs, chunked_loss, head_of

ROOT = Path(__file__).parents[2]
TOKENS, HIDDEN, VOCABULARY, TEMPERATURE = 150, 24, 211, 0.9


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "_CHUNK_BYTES", {"cpu": 0})  # the least chunk: 64 tokens
    assert chunk_tokens(VOCABULARY) == 64


def make_head(bias: bool, softcap: float | None, scale: float) -> Head:
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    return Head(weight, torch.randn(VOCABULARY, requires_grad=True) if bias else None, softcap, scale)


def naive_logprobs(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """All logits at once, by the definition."""
    logits = hidden @ head.weight_VH.T
    logits = (logits if head.bias_V is None else logits + head.bias_V) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return (logits / TEMPERATURE).log_softmax(-1)


@pytest.mark.parametrize(
    ("bias", "softcap", "scale"), [(False, None, 1.0), (True, None, 0.5), (True, 5.0, 1.0), (False, 3.0, 2.0)]
)
def test_loss_and_gradients_equal_all_logits_at_once(bias, softcap, scale):
    head = make_head(bias, softcap, scale)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    factors = torch.randn(TOKENS)
    inputs = [hidden, head.weight_VH, *([head.bias_V] if bias else [])]

    # A loss that is not linear in the logprobs, so that its slope matters.
    def of(logprobs_C, chunk):
        return (factors[chunk] * logprobs_C.exp()).sum()

    loss, logprobs, entropies = chunked_loss(hidden, head, targets, TEMPERATURE, of)
    ours = torch.autograd.grad(3 * loss, inputs)
    everything = naive_logprobs(hidden, head)
    chosen = everything.gather(1, targets[:, None]).squeeze(1)
    expected = of(chosen, slice(None))
    theirs = torch.autograd.grad(3 * expected, inputs)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logprobs, chosen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, -(everything.exp() * everything).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chunked_logprobs(hidden, head, targets, TEMPERATURE), chosen, rtol=1e-5, atol=1e-5)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient():
    head = Head(torch.randn(VOCABULARY, HIDDEN))
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    loss, _, _ = chunked_loss(
        hidden, head, torch.zeros(TOKENS, dtype=torch.long), 1.0, lambda logprobs_C, chunk: logprobs_C.sum()
    )
    loss.backward()
    assert hidden.grad is not None
    assert head.weight_VH.grad is None


def test_the_head_of_a_model_gives_its_logits(family):
    ids = torch.tensor(random_prompts(9, 9))
    with torch.no_grad():
        expected = (family(ids).logits[:, :-1] / TEMPERATURE).log_softmax(-1).gather(2, ids[:, 1:, None]).flatten()
        hidden = family.get_decoder()(ids).last_hidden_state[:, :-1].flatten(0, 1)
    logprobs = chunked_logprobs(hidden, head_of(family), ids[:, 1:].flatten(), TEMPERATURE)
    torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_not_linear_is_refused():
    model = tiny_model("qwen2")
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(InputError, match="has a Identity as its head"):
        head_of(model)


_PEAK = """
import sys, torch
from bench.measure import highest_memory
torch.set_num_threads(1)
rows, tokens, valid, hidden, vocabulary = 8, 128, 404, 256, 151_936
states = torch.randn(rows * tokens, hidden, requires_grad=True)
weight = (torch.randn(vocabulary, hidden) * 0.02).requires_grad_()
targets = torch.randint(0, vocabulary, (rows * tokens,))
chosen = torch.randperm(rows * tokens)[:valid]
mask = torch.zeros(rows * tokens).index_fill(0, chosen, 1.0)
if sys.argv[1] == "plain":
    before = highest_memory()
    logprobs = (states @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (logprobs * mask).sum().backward()
else:
    from steerlift.training.head import Head, chunked_loss
    before = highest_memory()
    chunked_loss(states[chosen], Head(weight), targets[chosen], 1.0, lambda logprobs_C, chunk: logprobs_C.sum())[0].backward()
print(highest_memory() - before)
"""


@pytest.mark.e2e
def test_peak_memory_at_a_vocabulary_of_150k_is_at_most_half_of_plain_logits():
    peaks = {
        kind: float(
            subprocess.run([sys.executable, "-c", _PEAK, kind], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        )
        for kind in ("plain", "chunked")
    }
    assert peaks["chunked"] <= peaks["plain"] / 2, peaks
