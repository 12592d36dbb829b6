"""The numbers of one training step, and what they are measured with."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steerlift.records.types import GradedProblem
from steerlift.training.batch import MicroBatch
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import is_clipped, kl_estimates
from steerlift.training.memory import peak_memory
from steerlift.training.policy_loss import TokenResults

MEASURED = (
    "sampling_seconds",
    "grading_seconds",
    "update_seconds",
    "sync_seconds",
    "tokens_per_second",
    "peak_memory_gib",
)
"""Metrics of the machine: all others are the same whenever the same run is made again."""


class Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class TokenTotals:
    """Sums over the trained tokens of a step's updates: a vector, so that processes can add theirs up in one go."""

    def __init__(self) -> None:
        self.sums = torch.zeros(7, dtype=torch.float64)

    def add(self, batch: MicroBatch, result: TokenResults, config: TrainConfig) -> None:
        """Counts a micro-batch in; one that only fills up a process' share has weight 0 and does not count."""
        if not bool(batch.weights_N.any()) or not len(result.logprobs_N):
            return
        clipped = kl = gap = compared = capped = 0.0
        if batch.old_logprobs_N is None and batch.sampled_logprobs_N is not None:
            # The policy has not moved yet: what differs is how sampler and trainer compute.
            difference_N = result.logprobs_N - batch.sampled_logprobs_N
            gap, compared = float(difference_N.abs().double().sum()), float(len(difference_N))
            capped = float((difference_N > math.log(config.importance_cap)).sum()) if config.importance_cap else 0.0
        if batch.old_logprobs_N is not None:
            clips = (batch.advantages_N, config.epsilon_low, config.epsilon_high)
            clipped = float(is_clipped(result.logprobs_N, batch.old_logprobs_N, *clips).sum())
        if batch.reference_logprobs_N is not None:
            kl = float(kl_estimates(result.logprobs_N, batch.reference_logprobs_N).double().sum())
        entropy = float(result.entropies_N.double().sum())
        sums = [len(result.logprobs_N), entropy, clipped, kl, compared, gap, capped]
        self.sums += torch.tensor(sums, dtype=torch.float64)

    def means(self, sums: Tensor, config: TrainConfig) -> dict[str, float | None]:
        """Per trained token; null where no token was trained, or no KL is taken."""
        tokens, entropy, clipped, kl, compared, gap, capped = sums.tolist()
        return {
            "logprob_gap": gap / compared if compared else None,
            "importance_capped_rate": capped / compared if compared and config.use_vllm else None,
            "entropy": entropy / tokens if tokens else None,
            "clip_rate": clipped / tokens if tokens else None,
            "kl": kl / tokens if tokens and config.beta else None,
        }


def completion_metrics(graded: Sequence[GradedProblem]) -> dict[str, float]:
    """Shares in [0, 1] and the mean length in tokens, over all completions of a step."""
    grades = [grade for g in graded for grade in g.grades]
    completions = [completion for g in graded for completion in g.completions]
    count = len(completions)
    return {
        "accuracy": sum(grade.correct for grade in grades) / count,
        "lenient_accuracy": sum(grade.lenient_correct for grade in grades) / count,
        "format_rate": sum(grade.format_ok for grade in grades) / count,
        "mean_length": sum(len(c.token_ids) for c in completions) / count,
        "truncated_rate": sum(c.truncated for c in completions) / count,
    }


def machine_metrics(clock: Clock, sampled_tokens: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each phase, sampled tokens per second of sampling (of this process), and the peak of its memory so far."""
    seconds = {f"{name}_seconds": value for name, value in clock.seconds.items()}
    return {
        **seconds,
        "tokens_per_second": sampled_tokens / clock.seconds["sampling"],
        "peak_memory_gib": peak_memory(device) / 2**30,
    }
