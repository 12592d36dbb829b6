import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlift.sampling.draws import choose_tokens, row_seed, uniforms

seeds = st.integers(0, 2**64 - 1)


@given(st.lists(seeds, min_size=1, max_size=5), st.integers(1, 30))
def test_a_rows_numbers_depend_on_its_seed_alone(row_seeds, length):
    numbers = uniforms(row_seeds, length)
    assert numbers.shape == (len(row_seeds), length)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    for row, seed in enumerate(row_seeds):
        assert torch.equal(numbers[row], uniforms([seed], length + 7)[0, :length])


@given(st.integers(-(2**63), 2**63), st.integers(0, 1000), st.integers(0, 1000))
def test_row_seeds_differ_with_any_part(run, problem, sample):
    assert row_seed(run, problem, sample) == row_seed(run, problem, sample)
    assert len({row_seed(run, problem, sample), row_seed(run, problem, sample + 1), row_seed(run, problem + 1, sample)}) == 3


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=8), st.floats(0, 1, exclude_max=True), st.floats(0.1, 3))
def test_the_choice_is_the_inverse_of_the_cumulative_distribution(logits, uniform, temperature):
    row = torch.tensor([logits])
    token, logprob = choose_tokens(row, torch.tensor([uniform]).clamp(max=1 - 2**-22), temperature)
    probabilities = (row[0].double() / temperature).softmax(-1)
    assert float(probabilities[: int(token)].sum()) <= uniform + 1e-6
    assert uniform <= float(probabilities[: int(token) + 1].sum()) + 1e-6
    torch.testing.assert_close(logprob[0].double(), probabilities[int(token)].log(), rtol=1e-4, atol=1e-4)


def test_tokens_without_probability_are_never_chosen():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).repeat(3, 1)
    tokens, _ = choose_tokens(logits, torch.tensor([0.0, 0.5, 1 - 2**-22]), 1.0)
    assert set(tokens.tolist()) <= {1, 3}


def test_rows_that_are_computed_a_few_at_a_time_get_the_same_tokens(monkeypatch):
    torch.manual_seed(0)
    logits, draws = 3 * torch.randn(7, 600), torch.rand(7)
    whole = choose_tokens(logits, draws, 0.9)
    monkeypatch.setattr("steerlift.sampling.draws._CACHED", 1300)
    for few, all_together in zip(choose_tokens(logits, draws, 0.9), whole, strict=True):
        assert torch.equal(few, all_together)
