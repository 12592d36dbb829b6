"""Rollouts: problems become prompts, the sampler answers them, the answers are graded. Training and evaluation share this."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from steerlift.problems.prompt import render_prompt
from steerlift.records.types import GradedProblem, Problem
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


def rollouts(
    sampler: Sampler, tokenizer: Tokenizer, tasks: Sequence[Task], options: SamplingOptions, on_done: OnDone | None = None
) -> list[GradedProblem]:
    """Samples and grades every task, in order."""
    prompts = [render_prompt(tokenizer, task.problem.problem) for task in tasks]
    requests = [
        Request(prompt_ids(tokenizer, prompt), _sample_seeds(task), task.weight)
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    sampled = sampler.sample(requests, options, on_done)
    answers = ((c.text, task.problem.answer) for task, completions in zip(tasks, sampled, strict=True) for c in completions)
    grades = iter(grade_all(list(answers)))
    return [
        GradedProblem(task.problem, prompt, tuple(completions), tuple(islice(grades, len(completions))))
        for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
    ]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """The token ids of a rendered prompt, which holds its special tokens already."""
    return tuple(tokenizer.encode(prompt, add_special_tokens=False))


def _sample_seeds(task: Task) -> tuple[int, ...]:
    """Seeds of a task's samples: they depend on the problem's text, not on its place among others."""
    text = int.from_bytes(hashlib.sha256(task.problem.problem.encode()).digest()[:8], "little")
    return tuple(row_seed(task.seed, text, sample) for sample in range(task.count))
