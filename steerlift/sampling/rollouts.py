"""Rollouts: problems become prompts, the sampler answers them, the answers are graded.

Training and evaluation share this; extraction, which has no use for grades, samples only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from steerlift.problems.prompt import render_prompt
from steerlift.records.types import Completion, GradedProblem, Problem
from steerlift.sampling.draws import row_seed
from steerlift.sampling.sampler import OnDone, Request, Sampler, SamplingOptions
from steerlift.scoring.rewards import grade_all
from steerlift.steering.models import Tokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """One problem to be answered `count` times under a steering weight; `seed` names the random numbers used."""

    problem: Problem
    count: int
    seed: int
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class SampledProblem:
    """One problem, the prompt a model saw and its completions, without grades."""

    problem: Problem
    prompt: str
    completions: tuple[Completion, ...]

    def to_row(self) -> dict[str, Any]:
        """A JSON object of the shape of GradedProblem's, without the grades."""
        return {
            "problem": asdict(self.problem),
            "prompt": self.prompt,
            "completions": [
                {"text": c.text, "token_ids": list(c.token_ids), "truncated": c.truncated} for c in self.completions
            ],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "SampledProblem":
        """Reads what `to_row` wrote; the completions come back without logprobs."""
        completions = (Completion(tuple(c["token_ids"]), (), c["text"], c["truncated"]) for c in row["completions"])
        return cls(Problem(**row["problem"]), row["prompt"], tuple(completions))


def rollouts(
    sampler: Sampler,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    options: SamplingOptions,
    on_done: OnDone | None = None,
    few_shot: Sequence[Problem] = (),
) -> list[GradedProblem]:
    """Samples and grades every task, in order; the problems of `few_shot` stand worked out before each."""
    return grade_sampled(sample_tasks(sampler, tokenizer, tasks, options, on_done, few_shot))


def sample_tasks(
    sampler: Sampler,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    options: SamplingOptions,
    on_done: OnDone | None = None,
    few_shot: Sequence[Problem] = (),
) -> list[SampledProblem]:
    """The first half of `rollouts`: every task's prompt and completions, in order."""
    prompts = [render_prompt(tokenizer, task.problem.problem, few_shot=few_shot) for task in tasks]
    requests = [
        Request(prompt_ids(tokenizer, prompt), _sample_seeds(task), task.weight)
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    sampled = sampler.sample(requests, options, on_done)
    return [
        SampledProblem(task.problem, prompt, tuple(completions))
        for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
    ]


def grade_sampled(sampled: Sequence[SampledProblem]) -> list[GradedProblem]:
    """The second half: the same problems with a grade for each completion; all are graded as one batch."""
    grades = iter(grade_all([(c.text, s.problem.answer) for s in sampled for c in s.completions]))
    return [GradedProblem(s.problem, s.prompt, s.completions, tuple(islice(grades, len(s.completions)))) for s in sampled]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """The token ids of a rendered prompt, which holds its special tokens already."""
    return tuple(tokenizer.encode(prompt, add_special_tokens=False))


def _sample_seeds(task: Task) -> tuple[int, ...]:
    """Seeds of a task's samples: they depend on the problem's text, not on its place among others."""
    text = int.from_bytes(hashlib.sha256(task.problem.problem.encode()).digest()[:8], "little")
    return tuple(row_seed(task.seed, text, sample) for sample in range(task.count))
