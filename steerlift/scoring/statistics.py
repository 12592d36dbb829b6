"""pass@k and how sure we are of it: intervals by resampling problems, paired differences, and the share of the gap recovered.

Every score here is a fraction in [0, 1] (the result files and the figure speak in percent). A problem, not a completion, is
the unit: the completions of one problem resemble each other, so resampling them would make the intervals too narrow.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlift.records.errors import InputError

RESAMPLES = 9_999
# Simulated, the bootstrap's 95 % interval covers 74 to 91 % with 2 to 6 problems and 91 % and more from 8 on.
FEWEST_TO_RESAMPLE = 8
# Scores are small fractions such as 3/5; what differs by less differs by rounding.
_ROUNDING = 1e-9
# Indices drawn at a time, so that memory does not grow with the number of problems.
_INDICES_AT_ONCE = 2_000_000

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An interval of fractions; `method` says how it was made and `note` why it was not made the usual way."""

    low: float
    high: float
    method: str
    note: str = ""


@dataclass(frozen=True)
class GapRecovered:
    """The share of the gap between base and fine-tuned model that steering recovers; 1.0 is all of it.

    `share` is None when there is no gap, `interval` when the gap is not distinguishable from none; `note` says so.
    """

    share: float | None
    interval: Interval | None
    note: str = ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of the probability that one of `k` completions is right, from `c` right ones among `n`.

    1 - C(n-c, k) / C(n, k), Chen et al. 2021 (arXiv:2107.03374). It is the correctly rounded quotient of two integers, so
    there is nothing to overflow or cancel: pass@1 is c / n to the last bit.
    Raises InputError when k > n (the estimate is undefined), k < 1, n < 1, c < 0 or c > n.
    """
    if n < 1:
        raise InputError(f"pass@k needs at least 1 completion of a problem, got n = {n}; sample some")
    if not 0 <= c <= n:
        raise InputError(f"pass@k got c = {c} right completions of n = {n}; expected 0 to {n}: check the grades")
    if not 1 <= k <= n:
        raise InputError(
            f"pass@k is undefined for k = {k} with n = {n} completions of a problem; choose a k from 1 to {n} or sample more"
        )
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets


def mean_interval(scores_per_problem: Sequence[float], seed: int = 0, level: float = 0.95) -> Interval:
    """The interval of the mean score over problems.

    `scores_per_problem`: each problem's pass@k, a fraction. The problems are resampled (BCa bootstrap, Efron 1987). Where
    that says nothing (all problems score the same, or there are fewer than 8 of them) it is the Wilson interval of the mean
    with the problems as trials, which is wide enough for any scores in [0, 1], and the note says so.
    Raises InputError for no scores, a score outside [0, 1] and a level outside (0, 1).
    """
    scores = _checked(scores_per_problem, "scores")
    _check_level(level)
    reason = _why_not_resample(scores, "scores")
    if not reason:
        low, high = _bca(scores, seed, level)
        if math.isfinite(low) and math.isfinite(high):
            return Interval(low, high, "BCa bootstrap over problems")
        reason = "the bootstrap is undefined for these scores"
    low, high = _wilson(float(scores.mean()), len(scores), level)
    return Interval(low, high, "Wilson over problems", f"Wilson interval: {reason}")


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, Interval]:
    """The mean of a - b over the same problems, in [-1, 1], with its interval.

    The problems are resampled with both scores of each kept together (BCa bootstrap), so what the two arms have in common
    cancels. Where all differences are the same, or there are fewer than 8 problems, it is Newcombe's interval from the two
    Wilson intervals (Statistics in Medicine 1998, 17:873), which ignores the pairing, and the note says so.
    Raises InputError as mean_interval does, and when the two differ in length.
    """
    first, second = _checked(a, "scores of the first arm"), _checked(b, "scores of the second arm")
    _check_same_problems({"the first arm": first, "the second arm": second})
    _check_level(level)
    differences = first - second
    difference = float(differences.mean())
    reason = _why_not_resample(differences, "differences")
    if not reason:
        low, high = _bca(differences, seed, level)
        if math.isfinite(low) and math.isfinite(high):
            return difference, Interval(low, high, "paired BCa bootstrap over problems")
        reason = "the bootstrap is undefined for these differences"
    low, high = _newcombe(first, second, level)
    return difference, Interval(low, high, "Newcombe over problems", f"Newcombe interval, unpaired: {reason}")


def paired_p_value(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """The two-sided p-value of no difference between two arms on the same problems: signs of the differences flipped at random.

    The permutation test of Fisher 1935 on the mean difference; all sign patterns where there are few, else RESAMPLES of them.
    Raises InputError as paired_difference does.
    """
    # Imported here: scipy.stats costs more than a second that `--help` should not pay.
    from scipy import stats

    first, second = _checked(a, "scores of the first arm"), _checked(b, "scores of the second arm")
    _check_same_problems({"the first arm": first, "the second arm": second})
    differences = first - second
    if np.abs(differences).max() < _ROUNDING:
        return 1.0
    result: Any = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(1, _INDICES_AT_ONCE // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests made so that the chance of any false alarm among them is what each says (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def gap_recovered(
    base: Sequence[float], finetuned: Sequence[float], steered: Sequence[float], seed: int = 0, level: float = 0.95
) -> GapRecovered:
    """(steered - base) / (finetuned - base) over the same problems, with a paired percentile bootstrap interval.

    No interval is given where the gap's own interval includes 0, because the share is then unbounded (Fieller 1954).
    Raises InputError as paired_difference does.
    """
    arms = {"base": base, "finetuned": finetuned, "steered": steered}
    scores = {name: _checked(values, f"scores of {name}") for name, values in arms.items()}
    _check_same_problems(scores)
    gap, gap_interval = paired_difference(finetuned, base, seed, level)
    if abs(gap) < _ROUNDING:
        return GapRecovered(None, None, "no gap: the base and the fine-tuned model score the same")
    gain = float((scores["steered"] - scores["base"]).mean())
    share = gain / gap
    if gap_interval.low <= 0 <= gap_interval.high:
        note = (
            f"unbounded interval: the gap of {100 * gap:.1f} points is not distinguishable from 0 "
            f"({100 * level:g} % interval {100 * gap_interval.low:.1f} to {100 * gap_interval.high:.1f}); use more problems"
        )
        return GapRecovered(share, None, note)
    interval, crossed = _share_interval(scores, seed, level)
    notes = []
    if gap < 0:
        notes.append("the fine-tuned model is worse than the base: this is the share of a loss")
    if crossed:
        notes.append(f"unreliable interval: the gap vanishes or turns over in {crossed} of {RESAMPLES} resamples")
    if interval.note:
        notes.append(interval.note)
    return GapRecovered(share, interval, "; ".join(notes))


def _share_interval(scores: dict[str, Scores], seed: int, level: float) -> tuple[Interval, int]:
    """The percentile interval of the share, and in how many resamples the gap was 0 or had the other sign."""
    base, finetuned, steered = scores["base"], scores["finetuned"], scores["steered"]
    gap = float((finetuned - base).mean())
    gains, gaps = _resampled_means(np.stack([steered - base, finetuned - base]), seed)
    usable = gaps * gap > 0
    shares = gains[usable] / gaps[usable]
    low, high = (float(bound) for bound in np.quantile(shares, [(1 - level) / 2, (1 + level) / 2]))
    crossed = int(np.count_nonzero(~usable))
    if max(np.ptp(base), np.ptp(finetuned), np.ptp(steered)) < _ROUNDING:
        bounds = [(bound - base[0]) / gap for bound in _wilson(float(steered[0]), len(steered), level)]
        note = "Wilson interval of the steered score alone: in every arm all problems score the same"
        return Interval(float(min(bounds)), float(max(bounds)), "Wilson over problems", note), crossed
    if high - low < _ROUNDING:
        note = "interval without width: the share is the same in every resample, as it is for base and fine-tuned themselves"
        return Interval(low, high, "paired percentile bootstrap over problems", note), crossed
    return Interval(low, high, "paired percentile bootstrap over problems"), crossed


def _resampled_means(rows_RP: Scores, seed: int) -> Scores:
    """Means of each row over the same resampled problems; shape (rows, RESAMPLES)."""
    rng = np.random.default_rng(seed)
    problems = rows_RP.shape[1]
    at_once = max(1, _INDICES_AT_ONCE // problems)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        indices = rng.integers(0, problems, size=(min(at_once, RESAMPLES - start), problems))
        parts.append(np.stack([row[indices].mean(axis=1) for row in rows_RP]))
    return np.concatenate(parts, axis=1)


def _bca(values: Scores, seed: int, level: float) -> tuple[float, float]:
    # Imported here: scipy.stats costs more than a second that `--help` should not pay.
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # It says by warnings and NaN that it is undefined; we say it in the interval's note.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result: Any = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            n_resamples=RESAMPLES,
            batch=max(1, _INDICES_AT_ONCE // len(values)),
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _wilson(mean: float, problems: int, level: float) -> tuple[float, float]:
    """Wilson 1927 (JASA 22:209), for a mean of scores in [0, 1]: none varies more than right-or-wrong answers do."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / problems
    centre = (mean + z * z / (2 * problems)) / shrink
    half = z / shrink * math.sqrt(mean * (1 - mean) / problems + (z / (2 * problems)) ** 2)
    # The bounds at a mean of 0 and 1 are exactly 0 and 1; rounding would leave the mean outside.
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _newcombe(first: Scores, second: Scores, level: float) -> tuple[float, float]:
    a, b = float(first.mean()), float(second.mean())
    a_low, a_high = _wilson(a, len(first), level)
    b_low, b_high = _wilson(b, len(second), level)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def _why_not_resample(values: Scores, what: str) -> str:
    if len(values) < FEWEST_TO_RESAMPLE:
        return f"{len(values)} problems are too few to resample" if len(values) > 1 else "there is one problem only"
    if np.ptp(values) < _ROUNDING:
        return f"all {len(values)} {what} are the same ({values[0]:g})"
    return ""


def _checked(scores: Sequence[float], what: str) -> Scores:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"{what}: expected one score per problem, got shape {values.shape}; evaluate at least 1 problem")
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise InputError(f"{what}: expected fractions from 0 to 1, got {wrong[0]:g}; divide percentages by 100")
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level: expected a number between 0 and 1, got {level}; 0.95 is the usual one")


def _check_same_problems(scores: dict[str, Scores]) -> None:
    if len({len(values) for values in scores.values()}) > 1:
        counts = ", ".join(f"{len(values)} of {name}" for name, values in scores.items())
        raise InputError(f"paired scores must be of the same problems, got {counts}; evaluate all arms on the same ones")
