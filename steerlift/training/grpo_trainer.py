"""One step of GRPO: sample each problem's completions, grade them, move what is trained towards the better ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from steerlift.records.progress import Progress
from steerlift.records.types import GradedProblem, Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.rollouts import Task, grade_sampled, prompt_ids
from steerlift.sampling.sampler import SamplingOptions
from steerlift.scoring.plugins import RewardFunction, group_rewards
from steerlift.steering.models import Tokenizer
from steerlift.training.batch import StepBatch
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import has_no_signal
from steerlift.training.learner import Learner
from steerlift.training.memory import naming_memory
from steerlift.training.metrics import Clock, TokenTotals, completion_metrics, machine_metrics
from steerlift.training.policy_loss import liger_loss, our_loss
from steerlift.training.policy_sampling import PolicySampler
from steerlift.training.reference import Reference
from steerlift.training.run_log import RunLog
from steerlift.training.schedule import learning_rate_factor
from steerlift.training.trainer import Trainer, naming_divergence


class GrpoTrainer(Trainer):
    """Trains whatever of the learner's model wants a gradient: its weights, adapters, or vectors."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        tokenizer: Tokenizer,
        policy: PolicySampler,
        rewards: Sequence[tuple[str, RewardFunction]],
        log: RunLog | None,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(config, learner, tokenizer, policy, log)
        self.rewards = rewards
        self.reference = reference
        self.loss = (liger_loss if config.use_liger else our_loss)(config)

    def _step(self, step: int, problems: Sequence[Problem], bar: Progress) -> dict[str, Any]:
        config, clock = self.config, Clock()
        # Seeds per place too: a problem may end one epoch and begin the next within a step.
        tasks = [Task(p, config.num_chains, row_seed(config.seed, step, place)) for place, p in enumerate(problems)]
        options = SamplingOptions(config.temperature, config.max_completion_length)
        with (
            clock.phase("sampling"),
            naming_divergence(f"step {step}"),
            naming_memory(f"step {step}, sampling", "--batch_rows"),
        ):
            sampled = self._sample(step - 1, tasks, options, self._counter(bar, "sampling"))
        with clock.phase("grading"):
            graded = self.processes.gather(grade_sampled(sampled))
            rewards = [group_rewards(self.rewards, g) for g in graded]
        with clock.phase("update"), naming_memory(f"step {step}, update", "--micro_batch_size"):
            update = self._update(step, graded, rewards)
        with clock.phase("sync"):
            self.policy.sync()
        metrics = {
            **update,
            **completion_metrics(graded),
            **machine_metrics(clock, sum(len(c.token_ids) for s in sampled for c in s.completions), self.processes.device),
        }
        if self.log is not None:
            self.log.train_step(step, graded, rewards, metrics)
        return metrics

    def _shown(self, metrics: dict[str, Any]) -> str:
        return f"reward {metrics['reward']:.2f}  right {metrics['accuracy']:.0%}"

    def _update(self, step: int, graded: Sequence[GradedProblem], rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
        """`num_iterations` updates from the completions just sampled, those of all processes."""
        config = self.config
        rewards_PG = torch.tensor(rewards)
        batch = StepBatch.build(
            [prompt_ids(self.tokenizer, g.prompt) for g in graded],
            graded,
            rewards_PG,
            config.loss_type,
            config.max_completion_length,
            config.scale_rewards,
            config.mask_truncated,
            keep_all=bool(config.beta),
        )
        rows = config.micro_batch_size or config.num_chains
        batches = batch.micro_batches(rows, self.processes.device, self.processes.rank, self.processes.count)
        if self.reference is not None:
            batches = self.reference.with_logprobs(batches, config.temperature)
        totals = TokenTotals()
        losses, norms = [], []
        for iteration in range(config.num_iterations):
            gradients = self.learner.backward(batches, self.loss)
            self._check_finite(step, iteration, gradients)
            for part, result in zip(batches, gradients.results, strict=True):
                totals.add(part, result, config)
            if iteration == 0 and config.num_iterations > 1:
                # Nothing has moved yet: these are the logprobs of the policy that sampled.
                old = (result.logprobs_N for result in gradients.results)
                batches = [replace(part, old_logprobs_N=logprobs_N) for part, logprobs_N in zip(batches, old, strict=True)]
            rate = self.learner.step(learning_rate_factor(step - 1, config))
            losses.append(gradients.loss)
            norms.append(gradients.norm)
        return {
            "loss": sum(losses) / len(losses),
            "lr": rate,
            "reward": float(rewards_PG.mean()),
            **totals.means(self.processes.sum(totals.sums), config),
            "grad_norm": sum(norms) / len(norms),
            "no_signal_rate": float(has_no_signal(rewards_PG).float().mean()),
        }
