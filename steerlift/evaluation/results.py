"""From graded problems to scores: pass@k with intervals, format, length, gap recovered, in the original's JSON shape.

Works on plain records: a result can be recomputed from its completions file alone. Scores in the JSON are percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlift.records.types import GradedProblem
from steerlift.scoring.rewards import format_reward
from steerlift.scoring.statistics import GapRecovered, Interval, gap_recovered, mean_interval, paired_difference, pass_at_k

Graded = Sequence[GradedProblem]


def scores(graded: Graded, k: int, lenient: bool = False) -> list[float]:
    """pass@k of each problem, a fraction in [0, 1]. Raises InputError for k beyond the number of completions."""
    return [
        pass_at_k(len(g.grades), sum(grade.lenient_correct if lenient else grade.correct for grade in g.grades), k)
        for g in graded
    ]


def summarize(graded: Graded, k: int, seed: int) -> dict[str, Any]:
    """The numbers of one arm: the original's keys, then ours."""
    strict = scores(graded, k)
    interval = mean_interval(strict, seed=seed)
    lenient = scores(graded, k, lenient=True)
    completions = [c for g in graded for c in g.completions]
    grades = [grade for g in graded for grade in g.grades]
    summary = {
        f"pass_at_{k}": _percent(_mean(strict)),
        "avg_format_reward": _mean([format_reward(grade) for grade in grades]),
        "num_eval_problems": len(graded),
        "ci95": _percents(interval),
        "ci95_method": interval.method,
        f"lenient_pass_at_{k}": _percent(_mean(lenient)),
        "lenient_ci95": _percents(mean_interval(lenient, seed=seed)),
        "format_rate": _percent(_mean([grade.format_ok for grade in grades])),
        "truncated_rate": _percent(_mean([c.truncated for c in completions])),
        "mean_length": _mean([len(c.token_ids) for c in completions]),
        "completions_per_problem": len(grades) // len(graded),
    }
    return {**summary, "note": interval.note} if interval.note else summary


def examples(graded: Graded, k: int) -> list[dict[str, Any]]:
    """Every problem with its completions, in the original's shape."""
    return [
        {
            "prompt": g.prompt,
            "question": g.problem.problem,
            "target_answer": g.problem.answer,
            "problem_type": g.problem.problem_type,
            "completions": [
                {
                    "text": c.text,
                    "extracted_answer": grade.extracted_answer,
                    "correct": grade.correct,
                    "format_reward": format_reward(grade),
                }
                for c, grade in zip(g.completions, g.grades, strict=True)
            ],
            "num_correct": sum(grade.correct for grade in g.grades),
            f"pass_at_{k}": score,
            "avg_format_reward": _mean([format_reward(grade) for grade in g.grades]),
        }
        for g, score in zip(graded, scores(graded, k), strict=True)
    ]


def arm_result(
    graded: Graded, k: int, seed: int, base: Graded | None = None, finetuned: Graded | None = None
) -> dict[str, Any]:
    """One arm of a results file; with the base it is compared to it, with both the gap it recovers is given."""
    result = summarize(graded, k, seed)
    if base is not None:
        difference, interval = paired_difference(scores(graded, k), scores(base, k), seed=seed)
        result["difference_from_base"] = _percent(difference)
        result["difference_ci95"] = _percents(interval)
        if interval.note:
            result["difference_note"] = interval.note
    if base is not None and finetuned is not None:
        result.update(gap_fields(gap_recovered(scores(base, k), scores(finetuned, k), scores(graded, k), seed=seed)))
    return {**result, "examples": examples(graded, k)}


def gap_fields(gap: GapRecovered) -> dict[str, Any]:
    """Gap recovered as the results file has it, in percent; null where there is no gap to recover."""
    return {
        "gap_recovered": None if gap.share is None else _percent(gap.share),
        "gap_recovered_ci95": None if gap.interval is None else _percents(gap.interval),
        **({"gap_note": gap.note} if gap.note else {}),
    }


def best_weight(by_weight: Mapping[float, Graded], k: int) -> float:
    """The weight of the highest score; of equal ones the one nearest 0, which disturbs the model least."""
    return min(by_weight, key=lambda weight: (-round(_mean(scores(by_weight[weight], k)), 9), abs(weight)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)


def _percents(interval: Interval) -> list[float]:
    return [_percent(interval.low), _percent(interval.high)]
