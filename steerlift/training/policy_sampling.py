"""Where the trained policy is sampled: in this process, or (`served_policy`) on a vLLM server."""

from collections.abc import Sequence
from typing import Protocol

from steerlift.records.types import Problem
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import SampledProblem, Task, sample_tasks
from steerlift.sampling.sampler import OnDone, SamplingOptions
from steerlift.steering.models import Tokenizer
from steerlift.training.learner import Learner


class PolicySampler(Protocol):
    """Answers tasks with the policy as the learner has it now."""

    def sample(self, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone) -> list[SampledProblem]:
        """The tasks' completions, in order."""

    def sync(self) -> None:
        """Takes over the learner's weights; every process calls it whenever they have moved."""


class LocalPolicy:
    """Samples the learner's own model."""

    def __init__(
        self, learner: Learner, tokenizer: Tokenizer, few_shot: Sequence[Problem] = (), batch_rows: int | None = None
    ) -> None:
        self.learner = learner
        self.tokenizer = tokenizer
        self.few_shot = few_shot
        self.sampler = LocalSampler(learner.model, tokenizer, batch_rows=batch_rows)

    def sample(self, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone) -> list[SampledProblem]:
        """The tasks' completions, in order."""
        return self.learner.run(lambda _: sample_tasks(self.sampler, self.tokenizer, tasks, options, on_done, self.few_shot))

    def sync(self) -> None:
        """Nothing to do: it is the same model."""
