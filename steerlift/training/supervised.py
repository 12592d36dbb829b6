"""Supervised training on worked solutions: next-token prediction on the completion only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlift.records.progress import Progress
from steerlift.steering.models import Model, decoder_body
from steerlift.training.batch import pack
from steerlift.training.head import ChunkLoss, chunked_loss, head_of

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the completion to learn."""


@dataclass(frozen=True, slots=True)
class SupervisedOptions:
    """AdamW with a linear warm-up and a cosine fall to `final_lr_percent` of the peak; gradients clipped at norm 1."""

    steps: int
    learning_rate: float
    warmup_steps: int = 30
    final_lr_percent: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def supervised(model: Model, examples: Callable[[int], Sequence[Example]], options: SupervisedOptions, bar: Progress) -> float:
    """Trains in place for `options.steps` steps; `examples(step)` is the batch of a step (from 0). Returns the last loss."""
    body, head = decoder_body(model), head_of(model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, betas=options.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate_factor(done, options))
    model.train()
    loss = torch.zeros(())
    for step in range(options.steps):
        prompts, completions = zip(*examples(step), strict=True)
        tokens = sum(map(len, completions))
        weights_RT = torch.full((len(prompts), max(map(len, completions))), 1 / tokens)
        batch = pack(prompts, completions, torch.ones(len(prompts)), weights_RT, model.device)
        loss, _, _ = chunked_loss(batch.hidden(body), head, batch.targets_N, 1.0, _mean_surprise(batch.weights_N))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.advance(1, f"loss {loss.item():.3f}")
    model.eval()
    return loss.item()


def _mean_surprise(weights_N: Tensor) -> ChunkLoss:
    return lambda logprobs_C, chunk: -(logprobs_C * weights_N[chunk]).sum()


def _rate_factor(done: int, options: SupervisedOptions) -> float:
    if done < options.warmup_steps:
        return (done + 1) / options.warmup_steps
    share = (done - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    floor = options.final_lr_percent
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, share))) / 2
