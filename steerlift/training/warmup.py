"""The optional warm-up before GRPO: a few supervised steps on worked solutions, so that a model uses the tags at all."""

import random
from collections.abc import Sequence

import torch

from steerlift.problems.prompt import encode_prompt, worked_example
from steerlift.records.errors import InputError
from steerlift.records.progress import progress, say
from steerlift.records.types import Problem
from steerlift.sampling.draws import row_seed
from steerlift.steering.models import Tokenizer
from steerlift.training.config import TrainConfig
from steerlift.training.learner import Learner
from steerlift.training.supervised import Example, SupervisedOptions, teach


def worked_solutions(
    tokenizer: Tokenizer, problems: Sequence[Problem], few_shot: Sequence[Problem], config: TrainConfig
) -> list[Example]:
    """The problems' own solutions, in the format that the system prompt asks for.

    Raises InputError when fewer problems than a step needs have one that fits into --max_completion_length.
    """
    examples: list[Example] = [
        (encode_prompt(tokenizer, p.problem, few_shot=few_shot), answer)
        for p in problems
        if p.solution.strip() and len(answer := _answer(tokenizer, p)) <= config.max_completion_length
    ]
    if len(examples) < config.sft_batch:
        raise InputError(
            f"--sft_steps {config.sft_steps}: {len(examples)} of {len(problems)} problems have a worked solution of at most "
            f"{config.max_completion_length} tokens, a step needs {config.sft_batch}; lower --sft_batch, "
            "raise --max_completion_length, or take problems with solutions"
        )
    return examples


def warm_up(learner: Learner, examples: Sequence[Example], config: TrainConfig) -> float:
    """`config.sft_steps` steps on worked solutions. Returns the last loss."""
    say(f"warm-up: {config.sft_steps} supervised steps of {config.sft_batch} of {len(examples)} worked solutions")
    rng = random.Random(config.seed)
    torch.manual_seed(row_seed(config.seed, 0, learner.processes.rank))  # for a model that draws itself (dropout)

    def batch(_: int) -> list[Example]:
        return rng.sample(examples, config.sft_batch)

    options = SupervisedOptions(
        steps=config.sft_steps,
        learning_rate=config.sft_learning_rate,
        warmup_steps=max(1, config.sft_steps // 10),
        micro_batch=config.micro_batch_size or config.num_chains,
    )
    learner.restart(options.adam())
    with progress("warm-up", config.sft_steps) as bar:
        return teach(learner, batch, options, bar)


def _answer(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    return [*tokenizer.encode(worked_example(problem), add_special_tokens=False), int(tokenizer.eos_token_id)]
