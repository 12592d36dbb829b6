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


def summarize(graded: Graded, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """The numbers of one arm: the original's keys, then ours.

    The first k is the headline: `ci95` and the lenient scores are its own. Every further k has its `pass_at_<k>_ci95`.
    """
    headline, *further = ks
    strict = {k: scores(graded, k) for k in ks}
    intervals = {k: mean_interval(values, seed=seed) for k, values in strict.items()}
    lenient = scores(graded, headline, lenient=True)
    completions = [c for g in graded for c in g.completions]
    grades = [grade for g in graded for grade in g.grades]
    summary = {
        **{f"pass_at_{k}": percent(_mean(values)) for k, values in strict.items()},
        "avg_format_reward": _mean([format_reward(grade) for grade in grades]),
        "num_eval_problems": len(graded),
        "ci95": _percents(intervals[headline]),
        "ci95_method": intervals[headline].method,
        **{f"pass_at_{k}_ci95": _percents(intervals[k]) for k in further},
        f"lenient_pass_at_{headline}": percent(_mean(lenient)),
        "lenient_ci95": _percents(mean_interval(lenient, seed=seed)),
        "format_rate": percent(_mean([grade.format_ok for grade in grades])),
        "truncated_rate": percent(_mean([c.truncated for c in completions])),
        "mean_length": _mean([len(c.token_ids) for c in completions]),
        "completions_per_problem": len(grades) // len(graded),
    }
    note = _notes(intervals)
    return {**summary, "note": note} if note else summary


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
    graded: Graded, ks: Sequence[int], seed: int, base: Graded | None = None, finetuned: Graded | None = None
) -> dict[str, Any]:
    """One arm of a results file; with the base it is compared to it, with both the gap it recovers is given.

    Comparisons and examples are those of the first k.
    """
    k = ks[0]
    result = summarize(graded, ks, seed)
    if base is not None:
        difference, interval = paired_difference(scores(graded, k), scores(base, k), seed=seed)
        result["difference_from_base"] = percent(difference)
        result["difference_ci95"] = _percents(interval)
        if interval.note:
            result["difference_note"] = interval.note
        lenient_difference, _ = paired_difference(scores(graded, k, lenient=True), scores(base, k, lenient=True), seed=seed)
        result["lenient_difference_from_base"] = percent(lenient_difference)
    if base is not None and finetuned is not None:
        result.update(gap_fields(gap_recovered(scores(base, k), scores(finetuned, k), scores(graded, k), seed=seed)))
        lenient_base, lenient_finetuned, lenient = (scores(arm, k, lenient=True) for arm in (base, finetuned, graded))
        share = gap_recovered(lenient_base, lenient_finetuned, lenient, seed=seed).share
        result["lenient_gap_recovered"] = None if share is None else percent(share)
    return {**result, "examples": examples(graded, k)}


def gap_fields(gap: GapRecovered) -> dict[str, Any]:
    """Gap recovered as the results file has it, in percent; null where there is no gap to recover."""
    return {
        "gap_recovered": None if gap.share is None else percent(gap.share),
        "gap_recovered_ci95": None if gap.interval is None else _percents(gap.interval),
        **({"gap_note": gap.note} if gap.note else {}),
    }


def best_weight(by_weight: Mapping[float, Graded], k: int) -> float:
    """The weight of the highest score; of equal ones the one nearest 0, which disturbs the model least."""
    return min(by_weight, key=lambda weight: (-round(_mean(scores(by_weight[weight], k)), 9), abs(weight)))


def _notes(intervals: Mapping[int, Interval]) -> str:
    """Why intervals were not made the usual way: the first k's as it is, of the others what it does not say already."""
    first, *further = intervals
    notes = [intervals[first].note]
    notes += [f"pass@{k}: {intervals[k].note}" for k in further if intervals[k].note not in ("", intervals[first].note)]
    return "; ".join(note for note in notes if note)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def percent(fraction: float) -> float:
    """A fraction in percent, rounded to four places."""
    return round(100 * fraction, 4)


def _percents(interval: Interval) -> list[float]:
    return [percent(interval.low), percent(interval.high)]
