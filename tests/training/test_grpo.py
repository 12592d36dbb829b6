import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlift.training.grpo import group_advantages, has_no_signal, token_losses, token_weights

rewards = st.lists(st.lists(st.sampled_from([-0.5, 0.2, 1.2]), min_size=4, max_size=4), min_size=1, max_size=6).map(
    torch.tensor
)
masks = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(
    lambda lengths: torch.tensor([[1.0] * n + [0.0] * (9 - n) for n in lengths])
)


@given(rewards)
def test_advantages_are_rewards_less_their_groups_mean(rewards_PG):
    advantages_PG = group_advantages(rewards_PG)
    torch.testing.assert_close(advantages_PG, rewards_PG - rewards_PG.mean(1, keepdim=True), rtol=0, atol=1e-6)
    assert bool((advantages_PG[has_no_signal(rewards_PG)] == 0).all())


@given(rewards)
def test_scaled_advantages_have_unit_deviation_where_there_is_signal(rewards_PG):
    deviations = group_advantages(rewards_PG, scale_rewards=True).std(dim=1)
    signal = ~has_no_signal(rewards_PG)
    torch.testing.assert_close(deviations[signal], torch.ones(int(signal.sum())), rtol=1e-3, atol=1e-3)


@given(masks)
def test_token_weights_are_what_each_loss_averages_over(mask_BT):
    batch = len(mask_BT)
    lengths = mask_BT.sum(1)
    weights = {kind: token_weights(mask_BT, kind, 20) for kind in ("grpo", "bnpo", "dr_grpo")}
    assert all(bool((w[mask_BT == 0] == 0).all()) for w in weights.values())
    torch.testing.assert_close(weights["grpo"].sum(1), torch.full((batch,), 1 / batch))
    torch.testing.assert_close(weights["bnpo"].sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights["dr_grpo"].sum(), lengths.sum() / (batch * 20))


@given(masks, st.integers(1, 5))
def test_more_padding_changes_no_weight(mask_BT, extra):
    padded = torch.nn.functional.pad(mask_BT, (0, extra))
    for kind in ("grpo", "bnpo", "dr_grpo"):
        assert torch.equal(token_weights(padded, kind, 20)[:, : mask_BT.shape[1]], token_weights(mask_BT, kind, 20))


def test_on_policy_loss_is_minus_the_advantage_with_the_policy_gradient():
    logprobs = torch.tensor([-0.5, -2.0], requires_grad=True)
    advantages = torch.tensor([1.5, -0.5])
    losses = token_losses(logprobs, None, advantages)
    assert torch.equal(losses.detach(), -advantages)
    losses.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, -1.3),  # beyond the upper clip: no more gain
        (1.5, -1.0, 1.5),  # the pessimistic side is never clipped
        (0.5, 1.0, -0.5),
        (0.5, -1.0, 0.8),  # beyond the lower clip
        (1.1, 2.0, -2.2),  # inside
    ],
)
def test_clipping_takes_the_pessimistic_side(ratio, advantage, expected):
    new = torch.tensor([ratio]).log()
    loss = token_losses(new, torch.zeros(1), torch.tensor([advantage]), epsilon_low=0.2, epsilon_high=0.3)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_kl_is_never_negative_and_zero_only_between_equals(policy, reference):
    new, ref = torch.tensor([policy], dtype=torch.float64), torch.tensor([reference], dtype=torch.float64)
    penalty = token_losses(new, None, torch.zeros(1, dtype=torch.float64), reference_logprobs_N=ref, beta=0.5)
    difference = reference - policy
    assert float(penalty) == pytest.approx(0.5 * (math.exp(difference) - difference - 1), abs=1e-9)
    assert float(penalty) >= -1e-12
