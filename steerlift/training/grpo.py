"""GRPO as formulas: advantages, the weight of each token and the clipped loss. Pure functions of tensors.

Sources: GRPO, Shao et al. 2024 (arXiv 2402.03300); Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783); the asymmetric clip and
the token-mean of `bnpo` as in DAPO, Yu et al. 2025 (arXiv 2503.14476). The original divides advantages by the group's
standard deviation even for Dr. GRPO; here that is an option (`scale_rewards`), off by default as published.

Shapes: P problems, G completions of each (the group), B = P x G completions, T completion tokens, N tokens that count.
"""

from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo"]

# Keeps a group of nearly equal rewards from being blown up; the value of the reference implementations.
_STD_EPSILON = 1e-4


def group_advantages(rewards_PG: Tensor, scale_rewards: bool = False) -> Tensor:
    """Reward less the group's mean, shape (problems, group); divided by the group's standard deviation if asked."""
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    # The mean of equal rewards is rounded; its residue must not make a group without signal look like one with.
    centred_PG = torch.where(has_no_signal(rewards_PG)[:, None], torch.zeros_like(centred_PG), centred_PG)
    return centred_PG / (rewards_PG.std(dim=1, keepdim=True) + _STD_EPSILON) if scale_rewards else centred_PG


def has_no_signal(rewards_PG: Tensor) -> Tensor:
    """Which groups have equal rewards, shape (problems,): their advantages are zero and they need no forward pass."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)


def token_weights(mask_BT: Tensor, loss_type: LossType, max_completion_length: int) -> Tensor:
    """The factor of each token's loss, shape (B, T); the loss of a batch is the sum of token losses times these.

    `dr_grpo`: 1 / (B * max_completion_length), a constant; `grpo`: the mean over completions of their token means; `bnpo`:
    the mean over all tokens of the batch. They are known before the forward pass, so a batch can be cut into micro-batches
    and tokens into chunks without changing the result. B counts every completion, also those of skipped groups.
    """
    mask_BT = mask_BT.float()
    if loss_type == "dr_grpo":
        return mask_BT / (mask_BT.shape[0] * max_completion_length)
    if loss_type == "bnpo":
        return mask_BT / mask_BT.sum().clamp(min=1.0)
    return mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0) / mask_BT.shape[0]


def token_losses(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor | None,
    advantages_N: Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float | None = None,
    reference_logprobs_N: Tensor | None = None,
    beta: float = 0.0,
    importance_N: Tensor | None = None,
) -> Tensor:
    """The clipped policy-gradient loss of each token, shape (N,), plus `beta` times its KL to the reference if given.

    `old_logprobs_N` are those of the policy that sampled; None means that it is the policy itself: the ratio is 1 and only
    its gradient matters. `epsilon_high` None is `epsilon_low`. `importance_N` weighs each token's policy-gradient loss, not its
    KL: see importance_weights.
    """
    old_N = logprobs_N.detach() if old_logprobs_N is None else old_logprobs_N
    ratio_N = (logprobs_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - epsilon_low, 1 + (epsilon_low if epsilon_high is None else epsilon_high))
    losses_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    if importance_N is not None:
        losses_N = losses_N * importance_N
    if beta and reference_logprobs_N is not None:
        losses_N = losses_N + beta * kl_estimates(logprobs_N, reference_logprobs_N)
    return losses_N


def importance_weights(logprobs_N: Tensor, sampled_logprobs_N: Tensor, cap: float) -> Tensor:
    """How much likelier each token is here than where it was sampled, at most `cap`, shape (N,), without a gradient.

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"): an engine with other kernels samples a slightly other policy than the one that is trained.
    """
    return (logprobs_N.detach() - sampled_logprobs_N).exp().clamp(max=cap)


def kl_estimates(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """The estimator k3 (Schulman 2020) of each token's KL to the reference, shape (N,): exp(d) - d - 1, d = reference - policy.

    Unbiased over the policy's own samples, and never negative.
    """
    difference_N = reference_logprobs_N - logprobs_N
    return difference_N.exp() - difference_N - 1


def is_clipped(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float | None = None,
) -> Tensor:
    """Which tokens the clip leaves without a gradient, shape (N,): they have moved far enough already."""
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    above_N = ratio_N > 1 + (epsilon_low if epsilon_high is None else epsilon_high)
    return torch.where(advantages_N > 0, above_N, (ratio_N < 1 - epsilon_low) & (advantages_N < 0))
