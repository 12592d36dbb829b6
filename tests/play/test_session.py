import pytest
from small_pipeline import ANSWER, graded_problem

from steerlift.play.session import Session, sweep_weights, verdict
from steerlift.records.types import Completion, Grade, GradedProblem, Problem


def pair(base, steered, text="Compute 1+1-1."):
    return graded_problem(base, 1, text=text), graded_problem(steered, 1, text=text)


def test_accuracy_is_the_share_after_each_try():
    session = Session(0)
    for base, steered in ((0, 1), (1, 1), (0, 0)):
        session.record(1.0, *pair(base, steered))
    assert session.accuracy() == {"base": [0.0, 0.5, 1 / 3], "steered": [1.0, 1.0, 2 / 3]}


def test_a_problem_without_a_known_answer_counts_for_nothing():
    session = Session(0)
    unknown = [GradedProblem(Problem("What?", ""), "", each.completions, each.grades) for each in pair(1, 1)]
    session.record(1.0, *unknown)
    assert session.tried == []
    assert session.accuracy() == {"base": [], "steered": []}


def test_problems_are_listed_once():
    session = Session(0)
    for text in ("Compute 1.", "Compute 2.", "Compute 1."):
        session.record(1.0, *pair(1, 1, text))
    assert [problem.problem for problem in session.problems()] == ["Compute 1.", "Compute 2."]


def test_every_run_of_a_problem_has_new_random_numbers_from_the_seed_on():
    session = Session(5)
    first, second = Problem("a", ANSWER), Problem("b", ANSWER)
    assert [session.next_seed(problem) for problem in (first, first, second)] == [5, 6, 5]


@pytest.mark.parametrize(
    ("grade", "truncated", "answer", "expected"),
    [
        (Grade("7", True, True, True), False, "7", ("right", "right")),
        (Grade("7", False, False, True), False, "7", ("right, but not in the format", "almost")),
        (Grade("3", True, False, False), False, "7", ("wrong", "wrong")),
        (Grade(None, False, False, False), True, "7", ("wrong: cut off at the longest length", "wrong")),
        (Grade("3", True, False, False), False, "", ("answers 3", "unknown")),
        (Grade(None, False, False, False), False, "", ("gives no answer in the format", "unknown")),
    ],
)
def test_a_grade_in_words(grade, truncated, answer, expected):
    assert verdict(grade, Completion((5,), (-0.1,), "", truncated), answer) == expected


@pytest.mark.parametrize(
    ("largest", "weights"),
    [(1.0, [0, 0.25, 0.5, 0.75, 1.0]), (0.6, [0, 0.25, 0.5, 0.6]), (0.1, [0, 0.1])],
)
def test_a_sweep_goes_in_quarters_to_the_largest_weight(largest, weights):
    assert sweep_weights(largest) == weights
