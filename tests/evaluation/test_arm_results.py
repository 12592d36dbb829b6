import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipeline import graded_problem

from steerlift.evaluation.results import arm_result, best_weight, examples, scores, summarize
from steerlift.records.errors import InputError
from steerlift.records.types import GradedProblem

ORIGINAL_METRICS = {"pass_at_1", "avg_format_reward", "num_eval_problems"}
OUR_METRICS = {
    "ci95", "ci95_method", "lenient_pass_at_1", "lenient_ci95", "format_rate", "truncated_rate", "mean_length",
    "completions_per_problem",
}  # fmt: skip
EXAMPLE = {
    "prompt", "question", "target_answer", "problem_type", "completions", "num_correct", "pass_at_1", "avg_format_reward",
}  # fmt: skip
COMPLETION = {"text", "extracted_answer", "correct", "format_reward"}

counts = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def arm(*right: int, count: int = 4) -> list[GradedProblem]:
    return [graded_problem(r, count, text=f"problem {i}") for i, r in enumerate(right)]


def test_an_arm_has_exactly_the_originals_keys_and_ours():
    ten = arm(0, 1, 2, 3, 4, 0, 1, 2, 3, 4)
    result = arm_result(ten, (1,), seed=0)
    assert set(result) == ORIGINAL_METRICS | OUR_METRICS | {"examples"}
    assert all(set(example) == EXAMPLE for example in result["examples"])
    assert all(set(completion) == COMPLETION for example in result["examples"] for completion in example["completions"])
    against_base = arm_result(ten, (1,), 0, arm(*[0, 1] * 5))
    assert set(against_base) - set(result) == {"difference_from_base", "difference_ci95", "lenient_difference_from_base"}
    against_both = arm_result(ten, (1,), 0, arm(*[0, 1] * 5), arm(*[3, 4] * 5))
    assert set(against_both) - set(against_base) == {"gap_recovered", "gap_recovered_ci95", "lenient_gap_recovered"}
    assert json.loads(json.dumps(against_both)) == against_both


def test_an_example_in_the_originals_words():
    (example,) = examples([graded_problem(1, 2, formatted=1)], 1)
    assert example == {
        "prompt": "<|user|>Compute 1+1-1.",
        "question": "Compute 1+1-1.",
        "target_answer": "7",
        "problem_type": "Sums_level_1",
        "completions": [
            {"text": "<think></think><answer>7</answer>", "extracted_answer": "7", "correct": True, "format_reward": 0.2},
            {"text": "<think></think><answer>3</answer>", "extracted_answer": "3", "correct": False, "format_reward": -0.5},
        ],
        "num_correct": 1,
        "pass_at_1": 0.5,
        "avg_format_reward": pytest.approx(-0.15),
    }


def test_numbers_by_hand():
    # Right 1, 2 and 4 of 4; of the second problem's two right answers one lacks the format, as do its two wrong ones.
    graded = [graded_problem(1, 4), graded_problem(2, 4, formatted=1), graded_problem(4, 4)]
    summary = summarize(graded, (1,), seed=0)
    assert summary["pass_at_1"] == 50.0
    assert summary["lenient_pass_at_1"] == pytest.approx(100 * 7 / 12, abs=1e-4)
    assert summary["format_rate"] == 75.0
    assert summary["avg_format_reward"] == pytest.approx((9 * 0.2 - 3 * 0.5) / 12)
    assert summary["truncated_rate"] == 25.0
    assert summary["mean_length"] == 3.0
    assert summary["num_eval_problems"] == 3
    assert summary["completions_per_problem"] == 4
    assert summary["note"] == "Wilson interval: 3 problems are too few to resample"


@settings(deadline=None)
@given(counts, st.integers(1, 4))
def test_pass_at_k_counts_the_subsets_with_a_right_answer(right, k):
    subsets = list(combinations(range(4), k))
    expected = [sum(any(i < r for i in subset) for subset in subsets) / len(subsets) for r in right]
    assert scores(arm(*right), k) == pytest.approx(expected)
    assert summarize(arm(*right), (k,), 0)[f"pass_at_{k}"] == pytest.approx(100 * sum(expected) / len(right), abs=1e-4)


def test_several_ks_give_a_score_and_an_interval_each_and_the_first_is_the_headline():
    graded = arm(0, 1, 2, 3, 4, 0, 1, 2, 3, 4)
    of = {k: summarize(graded, (k,), 0) for k in (1, 2, 4)}
    summary = summarize(graded, (2, 1, 4), 0)
    assert [key for key in summary if key.startswith("pass_at_")] == [
        "pass_at_2", "pass_at_1", "pass_at_4", "pass_at_1_ci95", "pass_at_4_ci95",
    ]  # fmt: skip
    further = {f"pass_at_{k}": of[k][f"pass_at_{k}"] for k in (1, 4)}
    further |= {f"pass_at_{k}_ci95": of[k]["ci95"] for k in (1, 4)}
    assert summary == of[2] | further
    # Comparisons and examples are the headline's.
    result, alone = (arm_result(graded, ks, 0, arm(*[0] * 10), arm(*[4] * 10)) for ks in ((2, 1, 4), (2,)))
    assert result == alone | further


def test_a_further_k_says_why_its_interval_is_not_the_usual_one():
    # With k = 4 every problem is solved; with k = 1 they differ.
    summary = summarize(arm(*[1, 2] * 5), (1, 4), 0)
    assert summary["note"] == "pass@4: Wilson interval: all 10 scores are the same (1)"
    assert summary["ci95_method"] == "BCa bootstrap over problems"
    # What holds for all of them is said once.
    assert summarize(arm(1, 2), (1, 2), 0)["note"] == "Wilson interval: 2 problems are too few to resample"
    both = summarize(arm(*[2] * 10), (1, 4), 0)["note"]
    assert both == "Wilson interval: all 10 scores are the same (0.5); pass@4: Wilson interval: all 10 scores are the same (1)"


def test_k_beyond_the_completions_is_refused():
    with pytest.raises(InputError, match="k = 5 with n = 4"):
        summarize(arm(1, 2), (5,), 0)


@settings(deadline=None, max_examples=25)
@given(counts)
def test_lenient_is_never_below_strict_and_results_survive_their_rows(right):
    graded = [graded_problem(r, 4, formatted=2, text=str(i)) for i, r in enumerate(right)]
    summary = summarize(graded, (1,), 0)
    assert summary["lenient_pass_at_1"] >= summary["pass_at_1"]
    assert summary["ci95"][0] <= summary["pass_at_1"] <= summary["ci95"][1]
    rows = json.loads(json.dumps([g.to_row() for g in graded]))
    assert arm_result([GradedProblem.from_row(row) for row in rows], (1,), 0) == arm_result(graded, (1,), 0)


@pytest.mark.parametrize(("right", "score", "end"), [(4, 100.0, 1), (0, 0.0, 0)])
def test_all_right_and_none_right_get_an_honest_interval_and_a_note(right, score, end):
    summary = summarize(arm(*[right] * 10), (1,), 0)
    assert summary["pass_at_1"] == score
    # 10 of 10: the Wilson interval begins at 72.2 %, and the other way round.
    assert summary["ci95"] == pytest.approx([72.2467, 100.0] if end else [0.0, 27.7533], abs=1e-3)
    assert summary["ci95_method"] == "Wilson over problems"
    assert summary["note"] == f"Wilson interval: all 10 scores are the same ({right / 4:g})"


def test_no_gap_is_said():
    base, steered = arm(*[0, 2, 4, 1, 3] * 2), arm(*[1, 2, 4, 1, 3] * 2)
    result = arm_result(steered, (1,), 0, base, base)
    assert result["gap_recovered"] is None
    assert result["gap_recovered_ci95"] is None
    assert result["gap_note"] == "no gap: the base and the fine-tuned model score the same"
    assert result["difference_from_base"] == 5.0


def test_a_gap_that_may_be_none_has_a_share_but_no_interval():
    base, finetuned = arm(*[0, 4] * 5), arm(*[4, 0] * 4, 4, 1)
    result = arm_result(finetuned, (1,), 0, base, finetuned)
    assert result["gap_recovered"] == 100.0
    assert result["gap_recovered_ci95"] is None
    assert result["gap_note"].startswith("unbounded interval: the gap of 2.5 points is not distinguishable from 0")


def test_a_loss_is_no_gain():
    result = arm_result(arm(*[3] * 9, 2), (1,), 0, arm(*[4] * 9, 3), arm(*[1] * 9, 2))
    assert result["gap_recovered"] == pytest.approx(100 * 10 / 28, abs=1e-3)
    assert "worse than the base" in result["gap_note"]


def test_shares_of_the_gap_by_hand():
    base, finetuned, steered = (arm(*[value] * 5, *[value + 1] * 5) for value in (0, 3, 2))
    result = arm_result(steered, (1,), 0, base, finetuned)
    assert result["gap_recovered"] == pytest.approx(200 / 3, abs=1e-4)
    assert arm_result(finetuned, (1,), 0, base, finetuned)["gap_recovered"] == 100.0
    assert arm_result(base, (1,), 0, base, finetuned)["gap_recovered"] == 0.0


def test_an_unpaired_interval_of_the_difference_is_said():
    # Every problem gains the same: there is nothing to resample, and the interval ignores the pairing.
    result = arm_result(arm(*[1, 2] * 5), (1,), 0, arm(*[0, 1] * 5))
    assert result["difference_from_base"] == 25.0
    assert "Newcombe" in json.dumps(result)


def test_the_best_weight_is_that_of_the_highest_score():
    by_weight = {0.5: arm(1, 2), 1.0: arm(3, 4), 1.5: arm(2, 2)}
    assert best_weight(by_weight, 1) == 1.0
    # With k = 2 a problem that is always solved counts no more than before; another weight may be best.
    assert best_weight({0.5: arm(4, 0), 1.0: arm(1, 2)}, 1) == 0.5
    assert best_weight({0.5: arm(4, 0), 1.0: arm(1, 2)}, 2) == 1.0


@pytest.mark.parametrize("order", [(1.0, 0.5, 1.5), (0.5, 1.0, 1.5), (1.5, 1.0, 0.5)])
def test_of_equal_weights_the_smallest_wins(order):
    assert best_weight({weight: arm(1, 3) for weight in order}, 1) == 0.5


def test_scores_that_differ_by_rounding_only_are_equal():
    # 1 + 2 + 3 right of 10 each, in two orders: the floating-point sums differ in the last bit.
    assert sum([0.3, 0.2, 0.1]) < sum([0.1, 0.2, 0.3])
    assert best_weight({0.5: arm(3, 2, 1, count=10), 1.0: arm(1, 2, 3, count=10)}, 1) == 0.5


def test_of_equal_weights_the_one_that_disturbs_least_wins_whatever_its_sign():
    assert best_weight({-1.0: arm(1, 3), 0.5: arm(1, 3)}, 1) == 0.5
