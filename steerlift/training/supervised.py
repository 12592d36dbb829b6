"""Supervised training on worked solutions: next-token prediction on the completion only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlift.records.progress import Progress
from steerlift.steering.models import Model, decoder_body
from steerlift.steering.precision import Precision
from steerlift.training.batch import MicroBatch, pack
from steerlift.training.head import chunked_loss, head_of
from steerlift.training.learner import AdamOptions, Learner, check_finite
from steerlift.training.policy_loss import TokenResults
from steerlift.training.processes import Processes

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the completion to learn."""


@dataclass(frozen=True, slots=True)
class SupervisedOptions:
    """AdamW with a linear warm-up and a cosine fall to `final_lr_percent` of the peak; gradients clipped at norm 1.

    `micro_batch` examples go through a forward and backward pass at a time; None: all of a step.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 30
    final_lr_percent: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    micro_batch: int | None = None

    def adam(self) -> AdamOptions:
        """The optimizer's part of them."""
        return AdamOptions(self.learning_rate, self.betas)


def supervised(model: Model, examples: Callable[[int], Sequence[Example]], options: SupervisedOptions, bar: Progress) -> float:
    """Trains a model in place on one process, at its own precision. See `teach`."""
    precision = Precision(model.dtype, None)
    return teach(Learner(model, options.adam(), Processes(model.device, precision), precision), examples, options, bar)


def teach(learner: Learner, examples: Callable[[int], Sequence[Example]], options: SupervisedOptions, bar: Progress) -> float:
    """Trains for `options.steps` steps; `examples(step)` is the batch of a step (from 0), for all processes together.

    Returns the last loss, the mean over the batch's completion tokens. Raises NotFiniteError when it is no number.
    """
    loss = 0.0
    for step in range(options.steps):
        batch = examples(step)
        gradients = learner.backward(
            example_batches(batch, options.micro_batch or len(batch), learner.processes), mean_surprise
        )
        check_finite(gradients)
        learner.step(_rate_factor(step, options))
        loss = gradients.loss
        bar.advance(1, f"loss {loss:.3f}")
    learner.model.eval()
    return loss


def mean_surprise(model: Model, batch: MicroBatch) -> TokenResults:
    """The weighted sum of the tokens' negative log probabilities, at temperature 1."""

    def chunk_loss(logprobs_C: Tensor, chunk: slice) -> Tensor:
        return -(logprobs_C * batch.weights_N[chunk]).sum()

    return TokenResults(*chunked_loss(batch.hidden(decoder_body(model)), head_of(model), batch.targets_N, 1.0, chunk_loss))


def example_batches(examples: Sequence[Example], rows: int, processes: Processes) -> list[MicroBatch]:
    """This process's share; one that has fewer examples than others repeats its last with weight 0."""
    tokens = sum(len(completion) for _, completion in examples)
    mine = processes.share(examples)
    most = -(-len(examples) // processes.count)
    batches = []
    for start in range(0, most, rows):
        some, weight = mine[start : start + rows], 1 / tokens
        if not some:
            some, weight = list(examples[:1]), 0.0
        prompts, completions = zip(*some, strict=True)
        weights_RT = torch.full((len(some), max(map(len, completions))), weight)
        batches.append(pack(prompts, completions, torch.ones(len(some)), weights_RT, processes.device))
    return batches


def _rate_factor(done: int, options: SupervisedOptions) -> float:
    if done < options.warmup_steps:
        return (done + 1) / options.warmup_steps
    share = (done - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    floor = options.final_lr_percent
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, share))) / 2
