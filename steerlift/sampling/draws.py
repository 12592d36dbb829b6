"""Random numbers that belong to a row, and the choice of a token by one of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The largest number that inverse_cdf may see: just enough below 1 that u * total stays below the float32 total.
_BELOW_ONE = 1.0 - 2.0**-22
# Tokens of a block: about the square root of a vocabulary.
_BLOCK = 256
# Logits that a processor's caches hold with what is computed from them: 128 rows of 151,936 take half the time a row at a time.
_CACHED = 2**18


def row_seed(*parts: int) -> int:
    """A 64-bit seed from integers such as (run seed, problem, sample); independent streams for any difference between them."""
    words = np.random.SeedSequence([part & 0xFFFFFFFFFFFFFFFF for part in parts]).generate_state(1, np.uint64)
    return int(words[0])


def uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """Uniform numbers in [0, 1), float32, shape (len(seeds), length); row i depends on seeds[i] alone (Philox counters)."""
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(length, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).clamp_(max=_BELOW_ONE)


def choose_tokens(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row and its log probability, both of shape (rows,).

    Inverse-CDF sampling from softmax(logits / temperature). Temperature 0 takes the likeliest token; its log probability is
    that of temperature 1.
    """
    rows, vocabulary = logits_RV.shape
    together = rows if logits_RV.device.type != "cpu" else max(1, _CACHED // vocabulary)
    parts = (
        _choose_tokens(logits, draws, temperature)
        for logits, draws in zip(torch.split(logits_RV, together), torch.split(uniforms_R, together), strict=True)
    )
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _choose_tokens(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled_RV = logits_RV.float() / (temperature or 1.0)
    peak_R1 = scaled_RV.amax(-1, keepdim=True)
    shares_RV = (scaled_RV - peak_R1).exp_()  # unnormalised: each row's largest is 1
    tokens_R = scaled_RV.argmax(-1) if temperature == 0 else _inverse_cdf(shares_RV, uniforms_R)
    chosen_R1 = scaled_RV.gather(1, tokens_R[:, None])
    return tokens_R, (chosen_R1 - peak_R1).squeeze(1) - shares_RV.sum(-1).log()


def _inverse_cdf(shares_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The token of each row in which uniform x total falls, shape (rows,).

    First the block of tokens, then the token in it: a running sum over a whole vocabulary is slow, and less exact.
    """
    rows, vocabulary = shares_RV.shape
    whole = vocabulary // _BLOCK * _BLOCK
    sums_RB = shares_RV[:, :whole].reshape(rows, whole // _BLOCK, _BLOCK).sum(-1)
    sums_RB = torch.cat([sums_RB, shares_RV[:, whole:].sum(-1, keepdim=True)], dim=1)
    cumulative_RB = sums_RB.cumsum(-1)
    targets_R1 = (uniforms_R * cumulative_RB[:, -1])[:, None]
    # Only logits that are not numbers get beyond the end; their logprob is not a number either, which the caller checks.
    block_R1 = torch.searchsorted(cumulative_RB, targets_R1, right=True).clamp(max=sums_RB.shape[1] - 1)
    before_R1 = (cumulative_RB - sums_RB).gather(1, block_R1)
    places_RC = block_R1 * _BLOCK + torch.arange(_BLOCK, device=shares_RV.device)
    within_RC = shares_RV.gather(1, places_RC.clamp(max=vocabulary - 1)) * (places_RC < vocabulary)
    within_RC = within_RC.cumsum(-1)
    # The two sums are rounded differently; what falls just beside the block is taken for its edge.
    targets_R1 = (targets_R1 - before_R1).clamp(min=0).minimum(within_RC[:, -1:] * _BELOW_ONE)
    offset_R1 = torch.searchsorted(within_RC, targets_R1, right=True)
    return (block_R1 * _BLOCK + offset_R1).squeeze(1).clamp(max=vocabulary - 1)
