"""The records that travel through the pipeline: a problem, its completions, their grades. Plain data, no torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its known answer."""

    problem: str
    answer: str
    solution: str = ""
    subject: str = "unknown"
    level: int | None = None
    unique_id: str = ""

    @property
    def problem_type(self) -> str:
        """Subject and level in the original's spelling, `Algebra_level_3`."""
        return f"{self.subject}_level_{self.level}"


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model sampled for one prompt.

    `token_ids` are the sampled ids, the end-of-sequence id included when the model ended by itself; `logprobs` their log
    probabilities at the sampling temperature; `text` the ids decoded without special tokens; `truncated` says that the
    limit of new tokens ended it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Grade:
    """What a completion is worth.

    `correct` is strict (the answer is right and stands in the required format); `lenient_correct` only asks that the answer
    is right wherever it stands.
    """

    extracted_answer: str | None
    format_ok: bool
    correct: bool
    lenient_correct: bool


@dataclass(frozen=True, slots=True)
class GradedProblem:
    """One problem, the prompt a model saw, its completions and their grades, one for one."""

    problem: Problem
    prompt: str
    completions: tuple[Completion, ...]
    grades: tuple[Grade, ...]

    def to_row(self) -> dict[str, Any]:
        """A JSON object that keeps everything but the logprobs."""
        return {
            "problem": asdict(self.problem),
            "prompt": self.prompt,
            "completions": [
                {"text": c.text, "token_ids": list(c.token_ids), "truncated": c.truncated, **asdict(g)}
                for c, g in zip(self.completions, self.grades, strict=True)
            ],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "GradedProblem":
        """Reads what `to_row` wrote; the completions come back without logprobs."""
        grade_fields = [field.name for field in fields(Grade)]
        return cls(
            Problem(**row["problem"]),
            row["prompt"],
            tuple(Completion(tuple(c["token_ids"]), (), c["text"], c["truncated"]) for c in row["completions"]),
            tuple(Grade(**{name: c[name] for name in grade_fields}) for c in row["completions"]),
        )
