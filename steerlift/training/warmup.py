"""The optional warm-up before GRPO: a few supervised steps on worked solutions, so that a model uses the tags at all."""

import random
from collections.abc import Sequence

from steerlift.problems.prompt import encode_prompt, worked_example
from steerlift.records.errors import InputError
from steerlift.records.progress import progress, say
from steerlift.records.types import Problem
from steerlift.steering.models import Tokenizer
from steerlift.training.config import TrainConfig
from steerlift.training.learner import Learner
from steerlift.training.supervised import Example, SupervisedOptions, teach


def warm_up(
    learner: Learner, tokenizer: Tokenizer, problems: Sequence[Problem], few_shot: Sequence[Problem], config: TrainConfig
) -> float:
    """`config.sft_steps` steps on the problems' own solutions, in the format that the system prompt asks for.

    Returns the last loss. Raises InputError when fewer problems than a step needs have a solution that fits into
    --max_completion_length.
    """
    examples = [
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
    say(f"warm-up: {config.sft_steps} supervised steps of {config.sft_batch} of {len(examples)} worked solutions")
    rng = random.Random(config.seed)

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
