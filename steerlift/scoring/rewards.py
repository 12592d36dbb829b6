"""Grades completions and turns grades into rewards: correctness, plus a little for the format that the prompt asks for."""

from collections.abc import Sequence

from steerlift.records.types import Grade, GradedProblem
from steerlift.scoring.answers import extract_answer, extract_lenient, follows_format
from steerlift.scoring.equality import are_equal

CORRECT_REWARD = 1.0
FORMAT_REWARD = 0.2
FORMAT_PENALTY = -0.5


def grade(text: str, answer: str) -> Grade:
    """The grade of one completion's text against the known answer."""
    return grade_all([(text, answer)])[0]


def grade_all(pairs: Sequence[tuple[str, str]]) -> list[Grade]:
    """The grades of (text, known answer) pairs, in order; all comparisons go to the workers as one batch.

    `correct` asks that the format is right and the answer between the tags equals the known one; `lenient_correct` that
    the answer is right wherever it stands, so that it holds whenever `correct` does.
    """
    readings = [(extract_answer(text), follows_format(text), extract_lenient(text)) for text, _ in pairs]
    asked = {
        (answer, found)
        for (strict, _, lenient), (_, answer) in zip(readings, pairs, strict=True)
        for found in (strict, lenient)
        if found
    }
    questions = sorted(asked)
    right = {pair for pair, equal in zip(questions, are_equal(questions), strict=True) if equal}
    return [
        _grade(strict, format_ok, (answer, strict) in right, (answer, lenient) in right)
        for (strict, format_ok, lenient), (_, answer) in zip(readings, pairs, strict=True)
    ]


def format_reward(grade: Grade) -> float:
    """0.2 when both tag pairs are there in the asked order, otherwise -0.5."""
    return FORMAT_REWARD if grade.format_ok else FORMAT_PENALTY


def reward(grade: Grade) -> float:
    """What GRPO maximises: 1.2 for a right answer in the format, 0.2 for a wrong one, -0.5 without the format."""
    return CORRECT_REWARD * grade.correct + format_reward(grade)


def math_reward(graded: GradedProblem) -> list[float]:
    """`reward` of each completion: the reward function of training unless others are named."""
    return [reward(grade) for grade in graded.grades]


def _grade(strict: str | None, format_ok: bool, strict_equal: bool, lenient_equal: bool) -> Grade:
    correct = format_ok and strict_equal
    return Grade(strict, format_ok, correct, lenient_correct=correct or lenient_equal)
