"""Distillation: what is trained becomes like a fine-tuned model on the completions that this model writes.

It writes them once, before the first step; each step then compares the two models' whole next-token distributions at every
token of some of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steerlift.records.progress import Progress, progress
from steerlift.records.types import Problem
from steerlift.sampling.kept import KeptCompletions
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.models import Model, Tokenizer, decoder_body
from steerlift.training.batch import MicroBatch
from steerlift.training.head import chunked_kl, head_of
from steerlift.training.learn_config import LearnConfig
from steerlift.training.learner import Learner
from steerlift.training.memory import naming_memory, peak_memory
from steerlift.training.metrics import Clock
from steerlift.training.policy_loss import PolicyLoss, TokenResults
from steerlift.training.policy_sampling import PolicySampler
from steerlift.training.run_log import RunLog
from steerlift.training.schedule import learning_rate_factor
from steerlift.training.supervised import Example, example_batches
from steerlift.training.trainer import Trainer


def finetuned_examples(
    model: Model,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    few_shot: Sequence[Problem],
    config: LearnConfig,
    kept: KeptCompletions,
) -> dict[str, list[Example]]:
    """Problem text -> the fine-tuned model's completions of it; those that are kept are not sampled again."""
    sampler = LocalSampler(model, tokenizer, batch_rows=config.batch_rows)
    options = SamplingOptions(config.teacher_temperature, config.max_completion_length)
    tasks = [Task(problem, config.finetuned_completions, config.seed) for problem in problems]
    with progress("completions of the fine-tuned model", len(tasks) * config.finetuned_completions) as bar:
        sampled = kept.sample(sampler, tokenizer, tasks, options, bar.advance, few_shot)
    prompts = (prompt_ids(tokenizer, s.prompt) for s in sampled)
    return {
        s.problem.problem: [(prompt, completion.token_ids) for completion in s.completions]
        for s, prompt in zip(sampled, prompts, strict=True)
    }


def distill_loss(finetuned: Model, temperature: float, finetuned_temperature: float) -> PolicyLoss:
    """The weighted sum over tokens of KL(fine-tuned || policy), each at its temperature."""

    def loss(model: Model, batch: MicroBatch) -> TokenResults:
        with torch.no_grad():
            wanted_NH = batch.hidden(decoder_body(finetuned))
        hidden_NH = batch.hidden(decoder_body(model))
        total = chunked_kl(
            hidden_NH, head_of(model), temperature, wanted_NH, head_of(finetuned), finetuned_temperature, batch.weights_N
        )
        return TokenResults(total, torch.empty(0), torch.empty(0))

    return loss


class DistillTrainer(Trainer):
    """Steps of distillation. `examples`: problem text -> the fine-tuned model's completions."""

    def __init__(
        self,
        config: LearnConfig,
        learner: Learner,
        tokenizer: Tokenizer,
        policy: PolicySampler,
        log: RunLog | None,
        finetuned: Model,
        examples: Mapping[str, Sequence[Example]],
    ) -> None:
        super().__init__(config, learner, tokenizer, policy, log)
        self.examples = examples
        self.loss = distill_loss(finetuned, config.temperature, config.teacher_temperature)

    def _step(self, step: int, problems: Sequence[Problem], bar: Progress) -> dict[str, Any]:  # noqa: ARG002 - it shows nothing
        config, clock = self.config, Clock()
        chosen = [example for problem in problems for example in self.examples[problem.problem]]
        with clock.phase("update"), naming_memory(f"step {step}, update", "--micro_batch_size"):
            batches = example_batches(chosen, config.micro_batch_size or config.num_chains, self.processes)
            gradients = self.learner.backward(batches, self.loss)
            self._check_finite(step, 0, gradients)
            rate = self.learner.step(learning_rate_factor(step - 1, config))
        with clock.phase("sync"):
            self.policy.sync()
        metrics = {
            "loss": gradients.loss,
            "lr": rate,
            "kl": gradients.loss,
            "grad_norm": gradients.norm,
            "mean_length": sum(len(completion) for _, completion in chosen) / len(chosen),
            **{f"{name}_seconds": seconds for name, seconds in clock.seconds.items()},
            "peak_memory_gib": peak_memory(self.processes.device) / 2**30,
        }
        if self.log is not None:
            self.log.train_step(step, [], [], metrics)
        return metrics

    def _shown(self, metrics: dict[str, Any]) -> str:
        return f"KL {metrics['kl']:.3f}"
