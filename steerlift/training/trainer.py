"""The GRPO loop: sample, grade, update; evaluate and save when it is time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from steerlift.records.errors import InputError, NotFiniteError, OutOfMemoryError, ServerError, TrainingDivergedError
from steerlift.records.progress import Progress
from steerlift.records.types import GradedProblem, Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.rollouts import SampledProblem, Task, grade_sampled, prompt_ids
from steerlift.sampling.sampler import OnDone, SamplingOptions
from steerlift.scoring.plugins import RewardFunction, group_rewards
from steerlift.steering.models import Tokenizer
from steerlift.training.batch import StepBatch
from steerlift.training.checkpoints import checkpoint_path, save_checkpoint, saved_steps
from steerlift.training.config import TrainConfig
from steerlift.training.grpo import has_no_signal
from steerlift.training.learner import Gradients, Learner, check_finite
from steerlift.training.metrics import Clock, TokenTotals, completion_metrics, machine_metrics
from steerlift.training.policy_loss import liger_loss, our_loss
from steerlift.training.policy_sampling import PolicySampler
from steerlift.training.reference import Reference
from steerlift.training.run_log import RunLog
from steerlift.training.schedule import learning_rate_factor, problems_of_step


class Trainer:
    """One run on one process or many. `log` is there on the process that writes, and on no other."""

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
        self.config = config
        self.learner = learner
        self.processes = learner.processes
        self.tokenizer = tokenizer
        self.policy = policy
        self.rewards = rewards
        self.log = log
        self.reference = reference
        self.status = ""
        self.loss = (liger_loss if config.use_liger else our_loss)(config)

    def run(self, problems: Sequence[Problem], held_out: Sequence[Problem], done: int, bar: Progress) -> None:
        """All steps after the first `done`, with evaluations at step 0, every `eval_every` steps and the end."""
        config = self.config
        self.policy.sync()
        score = self._last_score() if self._is_evaluated(done) else self._evaluate(done, held_out, bar)
        for step in range(done + 1, config.num_train_iters + 1):
            chosen = problems_of_step(problems, step, config.gradient_accumulation_steps, config.seed)
            metrics = self._step(step, chosen, bar)
            if self._evaluates(step):
                score = self._evaluate(step, held_out, bar)
            if step % config.save_every == 0 or step == config.num_train_iters:
                self.save(step)
            self.status = f"reward {metrics['reward']:.2f}  right {metrics['accuracy']:.0%}  test {score:.1f} %"
            bar.advance(1, self.status)

    def _evaluates(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.num_train_iters

    def _is_evaluated(self, done: int) -> bool:
        """Whether the state to start from needs no evaluation: a server may have stopped the run just before it."""
        known = self.log is not None and str(done) in self.log.evaluations
        return not self._evaluates(done) or any(self.processes.gather([known]))

    def _evaluate(self, step: int, held_out: Sequence[Problem], bar: Progress) -> float:
        """Evaluates and returns the score."""
        config = self.config
        options = SamplingOptions(
            config.temperature if config.eval_temperature is None else config.eval_temperature,
            config.eval_max_completion_length or config.max_completion_length,
        )
        tasks = [Task(problem, config.num_completions_eval, config.seed) for problem in held_out]
        # At step 0 nothing is trained yet: a model that cannot be sampled from is the user's own.
        diverging = naming_divergence(f"step {step}, evaluation") if step else nullcontext()
        with diverging, naming_memory(f"step {step}, evaluation", "--batch_rows"):
            sampled = self._sample(step, tasks, options, self._counter(bar, f"evaluating step {step}"))
        graded = self.processes.gather(grade_sampled(sampled))
        if self.log is not None:
            self.log.evaluation(step, graded)
        return self._last_score()

    def _last_score(self) -> float:
        """pass@k of the first k in the last evaluation, in percent; 0 on processes that do not write."""
        summaries = list(self.log.evaluations.values()) if self.log is not None else []
        return float(summaries[-1][f"pass_at_{self.config.pass_at_k[0]}"]) if summaries else 0.0

    def save(self, step: int) -> None:
        """A checkpoint that the run can go on from."""
        # Every process has to give its part of what FSDP2 has cut up.
        weights, state = self.learner.weights(), self.learner.optimizer_state()
        if self.log is not None:
            save_checkpoint(checkpoint_path(self.config.output_dir, step), self.learner.model, self.tokenizer, weights, state)
            self.log.checkpoint(step)
        self.processes.wait()

    def _step(self, step: int, problems: Sequence[Problem], bar: Progress) -> dict[str, Any]:
        config, clock = self.config, Clock()
        # Whatever a model draws itself (dropout) depends on the step alone, not on the steps before: a resumed run repeats it.
        torch.manual_seed(row_seed(config.seed, step, self.processes.rank))
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

    def _sample(self, done: int, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone) -> list[SampledProblem]:
        """This process's share of the tasks, answered by the policy after `done` steps."""
        try:
            return self.policy.sample(self.processes.share(tasks), options, on_done)
        except (ServerError, InputError) as error:
            if self.processes.count == 1 and done > max(saved_steps(self.config.output_dir), default=0):
                # No step is lost. (Several processes cannot be asked any more.)
                self.save(done)
            if self.log is not None:
                self.log.close()
            raise type(error)(f"after step {done}: {error}; --resume goes on from the last checkpoint") from error

    def _counter(self, bar: Progress, doing: str) -> OnDone:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            bar.advance(0, f"{self.status}  [{doing}: {done}]".strip())

        return count

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

    def _check_finite(self, step: int, iteration: int, gradients: Gradients) -> None:
        try:
            check_finite(gradients)
        except NotFiniteError as error:
            self.learner.forget()
            kept = "the last checkpoint is whole" if saved_steps(self.config.output_dir) else "no checkpoint is saved yet"
            if iteration == 0 and step > 1:
                # The weights have not moved yet: what is saved is the state after the last good step.
                self.save(step - 1)
                kept = f"the state before it is in {checkpoint_path(self.config.output_dir, step - 1)}"
            if self.log is not None:
                self.log.close()
            raise TrainingDivergedError(
                f"step {step}: {error}; {kept}; lower --learning_rate, then --resume or start over"
            ) from error


@contextmanager
def naming_divergence(doing: str, option: str = "--learning_rate") -> Iterator[None]:
    """Turns numbers that are no longer finite into one line that says when and what to lower."""
    try:
        yield
    except NotFiniteError as error:
        raise TrainingDivergedError(f"{doing}: {error}; try a lower {option}") from error


@contextmanager
def naming_memory(doing: str, option: str) -> Iterator[None]:
    """Turns running out of memory into one line that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(doing, option) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise _out_of_memory(doing, option) from error


def _out_of_memory(doing: str, option: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{doing}: out of memory; lower {option} or --max_completion_length, or pass --gradient_checkpointing;"
        " --resume goes on from the last checkpoint"
    )
