"""The training loop: step after step; evaluate and save when it is time. What a step is, its subclasses say."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from steerlift.records.errors import InputError, NotFiniteError, ServerError, TrainingDivergedError
from steerlift.records.progress import Progress
from steerlift.records.types import Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.rollouts import SampledProblem, Task, grade_sampled
from steerlift.sampling.sampler import OnDone, SamplingOptions
from steerlift.steering.models import Tokenizer
from steerlift.training.checkpoints import checkpoint_path, save_checkpoint, saved_steps
from steerlift.training.config import TrainConfig
from steerlift.training.learner import Gradients, Learner, check_finite
from steerlift.training.memory import naming_memory
from steerlift.training.policy_sampling import PolicySampler
from steerlift.training.run_log import RunLog
from steerlift.training.schedule import problems_of_step


class Trainer(ABC):
    """One run on one process or many. `log` is there on the process that writes, and on no other."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        tokenizer: Tokenizer,
        policy: PolicySampler,
        log: RunLog | None,
    ) -> None:
        self.config = config
        self.learner = learner
        self.processes = learner.processes
        self.tokenizer = tokenizer
        self.policy = policy
        self.log = log
        self.status = ""

    def run(self, problems: Sequence[Problem], held_out: Sequence[Problem], done: int, bar: Progress) -> None:
        """All steps after the first `done`, with evaluations at step 0, every `eval_every` steps and the end."""
        config = self.config
        self.policy.sync()
        score = self._last_score() if self._is_evaluated(done) else self._evaluate(done, held_out, bar)
        for step in range(done + 1, config.num_train_iters + 1):
            chosen = problems_of_step(problems, step, config.gradient_accumulation_steps, config.seed)
            # Whatever a model draws itself (dropout) depends on the step alone: a resumed run repeats it.
            torch.manual_seed(row_seed(config.seed, step, self.processes.rank))
            metrics = self._step(step, chosen, bar)
            if self._evaluates(step):
                score = self._evaluate(step, held_out, bar)
            if step % config.save_every == 0 or step == config.num_train_iters:
                self.save(step)
            self.status = f"{self._shown(metrics)}  {config.eval_split} {score:.1f} %"
            bar.advance(1, self.status)

    @abstractmethod
    def _step(self, step: int, problems: Sequence[Problem], bar: Progress) -> dict[str, Any]:
        """One update, or a few, from these problems, logged; returns the step's metrics."""

    @abstractmethod
    def _shown(self, metrics: dict[str, Any]) -> str:
        """What the progress bar says of a step."""

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
