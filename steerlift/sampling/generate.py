"""The slow way that works for every model: transformers' `generate`, drawing with the same random numbers per row."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from steerlift.sampling.draws import choose_tokens
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.models import Model


def decode_with_generate(
    model: Model,
    prompts_RT: Tensor,
    mask_RT: Tensor,
    draws_RT: Tensor,
    options: SamplingOptions,
    end_ids: list[int],
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and logprobs, shape (rows, max_completion_length), and lengths, shape (rows,), of left-padded prompts."""
    chooser = _Chooser(draws_RT.to(model.device), options.temperature)
    sequences_RT = model.generate(
        input_ids=prompts_RT,
        attention_mask=mask_RT,
        max_new_tokens=options.max_completion_length,
        do_sample=False,
        logits_processor=LogitsProcessorList([chooser]),
        eos_token_id=end_ids,
        pad_token_id=pad_id,
        # Everything a checkpoint's generation config may add would change the policy that is sampled.
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
    )
    tokens_RT = sequences_RT[:, prompts_RT.shape[1] :]
    steps = torch.arange(tokens_RT.shape[1], device=tokens_RT.device)
    ended_RT = torch.isin(tokens_RT, torch.tensor(end_ids, device=tokens_RT.device))
    never = torch.full_like(tokens_RT, tokens_RT.shape[1] - 1)
    lengths_R = torch.where(ended_RT, steps, never).min(dim=1).values + 1
    return tokens_RT, torch.stack(chooser.logprobs, dim=1), lengths_R


class _Chooser(LogitsProcessor):  # type: ignore[misc] # transformers is untyped
    """Chooses each row's token itself and leaves `generate` nothing else to pick."""

    def __init__(self, draws_RT: Tensor, temperature: float) -> None:
        self.draws_RT = draws_RT
        self.temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:  # noqa: ANN401, ARG002 - transformers' signature
        tokens_R, logprobs_R = choose_tokens(scores, self.draws_RT[:, len(self.logprobs)], self.temperature)
        self.logprobs.append(logprobs_R)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens_R[:, None], 0.0)
