"""Random numbers that belong to a row, and the choice of a token by one of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The largest number that inverse_cdf may see: just enough below 1 that u * total stays below the float32 total.
_BELOW_ONE = 1.0 - 2.0**-22


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
    scaled_RV = logits_RV.float() / (temperature or 1.0)
    logprobs_RV = scaled_RV.log_softmax(-1)
    if temperature == 0:
        tokens_R = logprobs_RV.argmax(-1)
    else:
        cumulative_RV = logprobs_RV.exp().cumsum(-1)
        # The total differs from 1 by rounding; scaling by it keeps every token's share.
        targets_R = uniforms_R * cumulative_RV[:, -1]
        tokens_R = torch.searchsorted(cumulative_RV, targets_R[:, None], right=True).squeeze(1)
        # Only logits that are not numbers get there; their logprob is not a number either, which the caller checks.
        tokens_R = tokens_R.clamp(max=logits_RV.shape[1] - 1)
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None]).squeeze(1)
