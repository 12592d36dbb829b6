"""pass@k against counting subsets; intervals against their laws, published values and simulated coverage."""

import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steerlift.records.errors import InputError
from steerlift.scoring import statistics
from steerlift.scoring.statistics import gap_recovered, mean_interval, paired_difference, pass_at_k

BOOTSTRAP = "BCa bootstrap over problems"


def sampled_scores(seed: int, problems: int, ease: float = 1.0) -> np.ndarray:
    """pass@1 of 4 samples on problems of U-shaped difficulty; the true mean is ease / (ease + 1)."""
    rng = np.random.default_rng(seed)
    return rng.binomial(4, rng.beta(ease, 1.0, problems)) / 4


# --- pass@k ---


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_completion(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [index < c for index in range(n)]
        subsets = list(itertools.combinations(right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets), abs=1e-15)


@given(st.integers(1, 400), st.data())
def test_pass_at_1_is_the_share_of_right_completions_exactly(n, data):
    c = data.draw(st.integers(0, n))
    assert pass_at_k(n, c, 1) == c / n


@given(st.integers(2, 300), st.data())
def test_pass_at_k_grows_with_k_and_with_c(n, data):
    c = data.draw(st.integers(0, n - 1))
    k = data.draw(st.integers(1, n - 1))
    assert 0 <= pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1) <= 1
    assert pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k)


def test_pass_at_k_neither_overflows_nor_cancels():
    assert pass_at_k(20_000, 1, 10_000) == 0.5
    assert pass_at_k(10**15, 1, 1) == 1e-15
    assert type(pass_at_k(20, 5, 5)) is float
    assert pass_at_k(np.int64(20), np.int64(5), 1) == 0.25


@pytest.mark.parametrize(
    ("n", "c", "k", "line"),
    [
        (4, 1, 5, "pass@k is undefined for k = 5 with n = 4 completions of a problem; choose a k from 1 to 4 or sample more"),
        (4, 1, 0, "pass@k is undefined for k = 0 with n = 4 completions of a problem; choose a k from 1 to 4 or sample more"),
        (4, 5, 1, "pass@k got c = 5 right completions of n = 4; expected 0 to 4: check the grades"),
        (4, -1, 1, "pass@k got c = -1 right completions of n = 4; expected 0 to 4: check the grades"),
        (0, 0, 1, "pass@k needs at least 1 completion of a problem, got n = 0; sample some"),
    ],
)
def test_pass_at_k_refuses(n, c, k, line):
    with pytest.raises(InputError) as caught:
        pass_at_k(n, c, k)
    assert str(caught.value) == line


# --- the interval of a mean ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 3))
def test_interval_contains_the_mean_and_stays_inside_0_and_1(counts, seed):
    scores = [count / 4 for count in counts]
    interval = mean_interval(scores, seed)
    assert 0 <= interval.low <= np.mean(scores) <= interval.high <= 1
    assert interval.low < interval.high
    assert (interval.note == "") == (interval.method == BOOTSTRAP)


def test_interval_of_many_problems_is_that_of_student():
    scores = sampled_scores(0, 400)
    interval = mean_interval(list(scores))
    low, high = stats.t.interval(0.95, 399, scores.mean(), stats.sem(scores))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.004)
    assert (interval.method, interval.note) == (BOOTSTRAP, "")


@pytest.mark.e2e
def test_interval_covers_the_true_mean_as_often_as_it_says():
    covered = [
        (interval := mean_interval(list(sampled_scores(seed, 20)), seed)).low <= 0.5 <= interval.high for seed in range(200)
    ]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_interval_is_narrower_at_a_lower_level_and_repeats_with_its_seed():
    scores = list(sampled_scores(3, 60))
    usual, narrow = mean_interval(scores, 5), mean_interval(scores, 5, level=0.5)
    assert usual.low < narrow.low < narrow.high < usual.high
    assert mean_interval(scores, 5) == usual
    assert mean_interval(scores, 6) != usual


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.0] * 30, "all 30 scores are the same (0)"),
        ([1.0] * 30, "all 30 scores are the same (1)"),
        ([0.5] * 30, "all 30 scores are the same (0.5)"),
        ([1.0], "there is one problem only"),
        ([0.0, 1.0, 1.0], "3 problems are too few to resample"),
    ],
)
def test_degenerate_scores_get_the_wilson_interval_and_say_so(scores, reason):
    interval = mean_interval(scores)
    expected = stats.binomtest(round(sum(scores)), len(scores)).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.method == "Wilson over problems"
    assert interval.note == f"Wilson interval: {reason}"


@pytest.mark.parametrize("problems", range(1, 60))
def test_the_wilson_interval_of_none_or_all_right_reaches_the_end_exactly(problems):
    assert mean_interval([0.0] * problems).low == 0.0
    assert mean_interval([1.0] * problems).high == 1.0


def test_an_undefined_bootstrap_falls_back_too(monkeypatch):
    # With this seed both of two resamples lie on one side of the mean, which makes the bias correction infinite.
    monkeypatch.setattr(statistics, "RESAMPLES", 2)
    scores = list(sampled_scores(0, 11))
    interval = mean_interval(scores, seed=3)
    assert interval.note == "Wilson interval: the bootstrap is undefined for these scores"
    assert interval.low < np.mean(scores) < interval.high
    _, difference = paired_difference(scores, [0.5] * 11, seed=3)
    assert difference.note == "Newcombe interval, unpaired: the bootstrap is undefined for these differences"


def test_400_problems_cost_less_than_a_tenth_of_a_second():
    scores = list(sampled_scores(0, 400))
    mean_interval(scores)  # pays for scipy's import
    # The quickest of five, in processor time: other work on the machine must not fail this.
    seconds = []
    for seed in range(5):
        start = time.process_time()
        mean_interval(scores, seed)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


@pytest.mark.parametrize(
    ("scores", "level", "line"),
    [
        ([], 0.95, "scores: expected one score per problem, got shape (0,); evaluate at least 1 problem"),
        ([[0.5]], 0.95, "scores: expected one score per problem, got shape (1, 1); evaluate at least 1 problem"),
        ([0.5, 33.75], 0.95, "scores: expected fractions from 0 to 1, got 33.75; divide percentages by 100"),
        ([0.5, math.nan], 0.95, "scores: expected fractions from 0 to 1, got nan; divide percentages by 100"),
        ([0.5], 95, "level: expected a number between 0 and 1, got 95; 0.95 is the usual one"),
    ],
)
def test_mean_interval_refuses(scores, level, line):
    with pytest.raises(InputError) as caught:
        mean_interval(scores, level=level)
    assert str(caught.value) == line


# --- paired differences ---


def test_pairing_takes_out_what_the_arms_share():
    base = sampled_scores(1, 200)
    better = np.minimum(base + 0.25 * (np.arange(200) % 5 == 0), 1.0)
    difference, interval = paired_difference(list(better), list(base))
    assert difference == pytest.approx((better - base).mean())
    alone = mean_interval(list(base))
    assert 0 < interval.low < difference < interval.high
    assert interval.high - interval.low < 0.3 * (alone.high - alone.low)
    assert interval.method == "paired BCa bootstrap over problems"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_difference_lies_in_its_interval(pairs):
    a, b = ([pair[side] / 4 for pair in pairs] for side in (0, 1))
    difference, interval = paired_difference(a, b)
    assert -1 <= interval.low <= difference <= interval.high <= 1
    assert interval.low < interval.high


def test_equal_differences_get_newcombes_interval():
    # 10/10 against 0/10: table II (g), method 10 of Newcombe 1998.
    difference, interval = paired_difference([1.0] * 10, [0.0] * 10)
    assert difference == 1
    assert (interval.low, interval.high) == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert interval.method == "Newcombe over problems"
    assert interval.note == "Newcombe interval, unpaired: all 10 differences are the same (1)"


def test_differences_that_only_rounding_tells_apart_count_as_equal():
    _, interval = paired_difference([0.6, 0.4] * 10, [0.4, 0.2] * 10)
    assert interval.note == "Newcombe interval, unpaired: all 20 differences are the same (0.2)"
    assert interval.low < 0.2 < interval.high


def test_pairs_need_the_same_problems():
    with pytest.raises(InputError) as caught:
        paired_difference([0.5, 1.0], [0.5])
    expected = "paired scores must be of the same problems, got 2 of the first arm, 1 of the second arm; "
    assert str(caught.value) == expected + "evaluate all arms on the same ones"


# --- the gap recovered ---


BASE, FINETUNED = list(sampled_scores(1, 100, ease=0.4)), list(sampled_scores(2, 100, ease=6.0))


def test_the_finetuned_model_recovers_all_of_its_gap_and_the_base_none():
    everything, nothing = (gap_recovered(BASE, FINETUNED, arm) for arm in (FINETUNED, BASE))
    assert everything.share == 1
    assert (everything.interval.low, everything.interval.high) == (1, 1)
    assert nothing.share == 0
    assert (nothing.interval.low, nothing.interval.high) == (0, 0)
    note = "interval without width: the share is the same in every resample, as it is for base and fine-tuned themselves"
    assert everything.note == nothing.note == note


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1))
def test_an_arm_on_the_way_has_the_share_of_its_way(way):
    steered = [b + way * (f - b) for b, f in zip(BASE, FINETUNED, strict=True)]
    assert gap_recovered(BASE, FINETUNED, steered).share == pytest.approx(way, abs=1e-9)


def test_share_and_interval_of_a_usual_case():
    steered = list(sampled_scores(3, 100, ease=2.0))
    recovered = gap_recovered(BASE, FINETUNED, steered, seed=4)
    expected = (np.mean(steered) - np.mean(BASE)) / (np.mean(FINETUNED) - np.mean(BASE))
    assert recovered.share == pytest.approx(expected)
    assert recovered.note == recovered.interval.note == ""
    assert recovered.interval.method == "paired percentile bootstrap over problems"
    # Oracle: the delta method's normal interval of a ratio of means.
    gain, gap = np.array(steered) - BASE, np.array(FINETUNED) - BASE
    error = np.std(gain - expected * gap, ddof=1) / math.sqrt(100) / gap.mean()
    assert (recovered.interval.low, recovered.interval.high) == pytest.approx(
        (expected - 1.96 * error, expected + 1.96 * error), abs=0.03
    )
    assert gap_recovered(BASE, FINETUNED, steered, seed=4) == recovered
    assert gap_recovered(BASE, FINETUNED, steered, seed=5) != recovered


def test_every_problem_is_resampled_and_paired():
    # The share is the proportion of resamples' problems that are the last one: binomial.
    recovered = gap_recovered([0.0] * 8, [1.0] * 8, [0.0] * 7 + [1.0])
    low, high = stats.binom.ppf([0.025, 0.975], 8, 1 / 8) / 8
    assert (recovered.interval.low, recovered.interval.high) == (low, high) == (0, 0.375)


def test_no_gap_has_no_share():
    recovered = gap_recovered(BASE, BASE[::-1], FINETUNED)
    assert (recovered.share, recovered.interval) == (None, None)
    assert recovered.note == "no gap: the base and the fine-tuned model score the same"


def test_a_gap_that_may_be_none_leaves_the_share_unbounded():
    recovered = gap_recovered([0.0, 1.0] * 5, [0.0, 1.0] * 4 + [1.0, 1.0], [1.0] * 10)
    assert recovered.share == pytest.approx(5)
    assert recovered.interval is None
    assert recovered.note.startswith("unbounded interval: the gap of 10.0 points is not distinguishable from 0 (95 % interval ")
    assert recovered.note.endswith("; use more problems")


def test_a_gap_that_sometimes_vanishes_makes_the_interval_unreliable():
    base = [0.5] * 40
    finetuned = [0.75] * 12 + [0.25] * 3 + [0.5] * 25
    recovered = gap_recovered(base, finetuned, [0.75] * 6 + [0.5] * 34)
    assert recovered.share == pytest.approx(6 / 9)
    assert recovered.interval is not None
    assert recovered.note.startswith("unreliable interval: the gap vanishes or turns over in ")
    assert recovered.note.endswith(" of 9999 resamples")


def test_a_loss_is_called_a_loss():
    steered = [(b + f) / 2 for b, f in zip(BASE, FINETUNED, strict=True)]
    recovered = gap_recovered(FINETUNED, BASE, steered)
    assert recovered.share == pytest.approx(0.5)
    assert recovered.note.startswith("the fine-tuned model is worse than the base: this is the share of a loss")


def test_arms_without_variation_fall_back_to_wilson():
    recovered = gap_recovered([0.0] * 50, [1.0] * 50, [0.5] * 50)
    expected = stats.binomtest(25, 50).proportion_ci(method="wilson")
    assert recovered.share == 0.5
    assert (recovered.interval.low, recovered.interval.high) == pytest.approx((expected.low, expected.high))
    assert recovered.interval.method == "Wilson over problems"
    assert recovered.note == "Wilson interval of the steered score alone: in every arm all problems score the same"


def test_gap_needs_the_same_problems():
    with pytest.raises(InputError) as caught:
        gap_recovered([0.0, 1.0], [1.0, 1.0], [1.0])
    expected = "paired scores must be of the same problems, got 2 of base, 2 of finetuned, 1 of steered; "
    assert str(caught.value) == expected + "evaluate all arms on the same ones"


def test_importing_costs_neither_scipy_nor_torch():
    code = "import sys, steerlift.scoring.statistics; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
