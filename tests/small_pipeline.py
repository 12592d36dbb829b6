"""A base model and its fine-tuned sibling, trained in seconds, and a file of problems that they half know.

Every answer is 7. The base says 7 or 3, half of the time without the tags around its thinking; the fine-tuned model nearly
always says 7 and keeps the format. So scores, rewards, gaps and vectors are all there, without a pre-trained model.
"""

import copy
import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from steerlift.problems.prompt import encode_prompt
from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.training.checkpoints import save_checkpoint
from steerlift.training.embedded import EmbeddedRecipe, embedded_model, embedded_tokenizer
from steerlift.training.supervised import SupervisedOptions, supervised

RECIPE = EmbeddedRecipe(hidden_size=32, layers=2, vocabulary=380)
ANSWER = "7"
GOOD, WRONG, UNTAGGED = "<think></think><answer>7</answer>", "<think></think><answer>3</answer>", "<answer>7</answer>"
TEXTS = tuple(f"Compute {a}+{b}-{a}." for a in range(8) for b in range(1, 6))


class Silent:
    """A progress bar that shows nothing."""

    def advance(self, count: int = 1, note: str = "") -> None:
        pass


@cache
def tokenizer() -> Any:
    return embedded_tokenizer(RECIPE)


@cache
def trained(kind: str) -> Any:
    """`base` or `finetuned`; the callers share it, so none of them may change it."""
    if kind == "finetuned":
        model = copy.deepcopy(trained("base"))
        _train(model, 15, [GOOD])
    else:
        model = embedded_model(RECIPE, tokenizer())
        _train(model, 50, [GOOD, WRONG, UNTAGGED, WRONG])
    return model


def untrained(**changes: Any) -> Any:
    return embedded_model(replace(RECIPE, **changes), tokenizer())


def saved(folder: Path, model: Any) -> str:
    return str(save_checkpoint(folder, model, tokenizer()))


def problem_file(folder: Path, count: int = len(TEXTS), solution: str = "") -> str:
    """A file of problems, each with the `solution`: 20 % are test, 10 % dev, the rest train."""
    path = folder / ("solved.jsonl" if solution else "problems.jsonl")
    rows = [{"problem": text, "answer": ANSWER, "solution": solution, "subject": "Sums", "level": 1} for text in TEXTS[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def graded_problem(right: int, count: int, formatted: int | None = None, text: str = "Compute 1+1-1.") -> GradedProblem:
    """A problem whose first `right` of `count` completions are right; the first `formatted` (all) keep the format."""
    formatted = count if formatted is None else formatted
    grades = [Grade("7" if i < right else "3", i < formatted, i < min(right, formatted), i < right) for i in range(count)]
    completions = [Completion((5, 6, 1), (), GOOD if i < right else WRONG, truncated=i == count - 1) for i in range(count)]
    return GradedProblem(Problem(text, ANSWER, subject="Sums", level=1), f"<|user|>{text}", tuple(completions), tuple(grades))


def _train(model: Any, steps: int, solutions: list[str]) -> None:
    rng = random.Random(0)
    prompts = [encode_prompt(tokenizer(), text) for text in TEXTS]
    answers = [[*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id] for text in solutions]
    supervised(
        model,
        lambda _: [(rng.choice(prompts), rng.choice(answers)) for _ in range(16)],
        SupervisedOptions(steps, 1e-2, warmup_steps=5),
        Silent(),
    )
