import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlift.records.types import Grade
from steerlift.scoring.rewards import format_reward, grade, grade_all, reward

GRADES = [
    # text, answer, grade, reward
    ("<think>a</think><answer>5</answer>", "5", Grade("5", True, True, True), 1.2),
    ("<think>a</think><answer>$\\dfrac12$</answer>", "0.5", Grade("$\\dfrac12$", True, True, True), 1.2),
    ("<think>a</think><answer>4</answer>", "5", Grade("4", True, False, False), 0.2),
    ("<think>a</think><answer></answer>", "5", Grade("", True, False, False), 0.2),
    ("<think>a</think><answer></answer> so 5", "5", Grade("", True, False, True), 0.2),
    ("<answer>5</answer>", "5", Grade("5", False, False, True), -0.5),
    ("<think>5+7=12; 12-3=9</think>", "9", Grade(None, False, False, True), -0.5),
    ("<think>it is <answer>9</answer>", "9", Grade(None, False, False, True), -0.5),
    ("The answer is \\boxed{9}.", "9", Grade(None, False, False, True), -0.5),
    ("9 or 8", "9", Grade(None, False, False, False), -0.5),
    ("", "9", Grade(None, False, False, False), -0.5),
]


@pytest.mark.parametrize(("text", "answer", "expected", "value"), GRADES)
def test_a_completion_is_graded_strictly_and_leniently(text, answer, expected, value):
    graded = grade(text, answer)
    assert graded == expected
    assert reward(graded) == pytest.approx(value)
    assert format_reward(graded) == (0.2 if expected.format_ok else -0.5)


def test_a_batch_is_graded_as_its_members_are():
    pairs = [(text, answer) for text, answer, _, _ in GRADES] * 2
    assert grade_all(pairs) == [expected for _, _, expected, _ in GRADES] * 2
    assert grade_all([]) == []


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "5", "6", " ", "\\boxed{5}", "the answer is 5\n"]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_strictly_right_is_leniently_right_and_pays_most(text):
    graded = grade(text, "5")
    assert not graded.correct or (graded.lenient_correct and graded.format_ok and graded.extracted_answer == "5")
    assert reward(graded) in (1.2, 0.2, -0.5)
    assert (reward(graded) == 1.2) is graded.correct
