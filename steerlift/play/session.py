"""What one tab has tried so far, and what that comes to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from steerlift.records.types import Completion, Grade, GradedProblem, Problem


@dataclass(frozen=True, slots=True)
class Tried:
    """One problem with a known answer, answered without and with steering."""

    problem: Problem
    weight: float
    base: Grade
    steered: Grade


class Session:
    """Begins empty with each tab, and with each reload."""

    def __init__(self, seed: int) -> None:
        self.tried: list[Tried] = []
        self._seed = seed
        self._runs: Counter[str] = Counter()

    def next_seed(self, problem: Problem) -> int:
        """The seed of the problem's next answers: the first are those of an evaluation of that seed, every other is new."""
        seed = self._seed + self._runs[problem.problem]
        self._runs[problem.problem] += 1
        return seed

    def record(self, weight: float, base: GradedProblem, steered: GradedProblem) -> None:
        """Keeps a pair of answers. A problem without a known answer counts for neither."""
        if base.problem.answer:
            self.tried.append(Tried(base.problem, weight, base.grades[0], steered.grades[0]))

    def problems(self) -> list[Problem]:
        """The problems tried, each once."""
        return list(dict.fromkeys(tried.problem for tried in self.tried))

    def accuracy(self) -> dict[str, list[float]]:
        """The share of strictly right answers after each try, of `base` and of `steered`."""
        return {
            "base": _running_share([tried.base.correct for tried in self.tried]),
            "steered": _running_share([tried.steered.correct for tried in self.tried]),
        }


def verdict(grade: Grade, completion: Completion, answer: str) -> tuple[str, str]:
    """A grade in words, and its kind: right, almost, wrong or unknown."""
    if not answer:
        found = f"answers {grade.extracted_answer}" if grade.extracted_answer else "gives no answer in the format"
        return found, "unknown"
    if grade.correct:
        return "right", "right"
    if grade.lenient_correct:
        return "right, but not in the format", "almost"
    return ("wrong: cut off at the longest length" if completion.truncated else "wrong"), "wrong"


def sweep_weights(largest: float) -> list[float]:
    """0, 0.25, 0.5 ... and `largest`."""
    steps = [0.25 * step for step in range(int(largest / 0.25) + 1)]
    return steps if steps[-1] == largest else [*steps, largest]


def _running_share(rights: Sequence[bool]) -> list[float]:
    return [total / count for count, total in enumerate(accumulate(map(int, rights)), start=1)]
