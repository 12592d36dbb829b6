"""Answers of earlier evaluations: the same model asked the same problem with the same random numbers is not asked again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import Journal, completions_path
from steerlift.records.types import GradedProblem, Problem

# What every answer depends on, beside the model and the problem.
_SAMPLING = ("few_shot", "completions", "max_completion_length", "temperature", "seed", "engine", "dtype")


Answered = tuple[str, str, int, GradedProblem]
"""Split, arm, the problem's index, and its graded completions."""


def reusable_answers(
    settings: Mapping[str, Any], results: Sequence[Path], problems: Mapping[str, Sequence[Problem]]
) -> list[Answered]:
    """What the evaluations that wrote `results` have answered of `problems` (by split), as an evaluation with `settings` would.

    The base's answers are among them where the base is the same, the fine-tuned model's where that is, the steered base's
    where the vectors are too; those of controls are not. Raises MissingInputError where a file of completions is not there,
    InputError where it was sampled in another way.
    """
    places = {(s, p.problem, p.answer): index for s, asked in problems.items() for index, p in enumerate(asked)}
    answered: list[Answered] = []
    for path in results:
        source = completions_path(path)
        if not source.exists():
            raise MissingInputError(f"--reuse {path}: no {source} beside it, where its completions would be")
        header, *rows = Journal(source).read() or [{}]
        theirs = header.get("settings", {})
        different = [name for name in _SAMPLING if theirs.get(name) != settings[name]]
        if different:
            raise InputError(f"--reuse {path}: its answers have other settings ({', '.join(different)}); leave it out")
        same = {name for name in ("base_model", "finetuned_model", "vectors") if theirs.get(name) == settings[name]}
        for row in rows:
            problem = row["problem"]
            index = places.get((row["split"], problem["problem"], problem["answer"]))
            if index is not None and _depends_on(row["arm"]) <= same:
                answered.append((row["split"], row["arm"], index, GradedProblem.from_row(row)))
    return answered


def _depends_on(arm: str) -> set[str]:
    """What has to be the same for an arm's answers to be the same; for controls, something that never is."""
    if arm == "base":
        return {"base_model"}
    if arm == "finetuned":
        return {"finetuned_model"}
    return {"base_model", "vectors"} if arm.startswith(("steered:", "random:")) else {"control"}
