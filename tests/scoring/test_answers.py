import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlift.scoring.answers import extract_answer, extract_lenient, follows_format, last_boxed

STRICT = [
    # text, extracted, in the format
    ("<think>a</think><answer>5</answer>", "5", True),
    ("<think>a</think>\n<answer>\n 5 \n</answer> bye", "5", True),
    ("<THINK>a</Think> <Answer>x < 5</ANSWER>", "x < 5", True),
    ("<think>a</think><answer>a<b>c</answer>", "a<b>c", True),
    ("<think>a</think><answer>4</answer> no, <answer>5</answer>", "5", True),
    ("<think>a</think><answer>4</answer><answer>5", "4", True),
    ("<think>a</think><answer>4 <answer>5</answer></answer>", "5", True),
    ("<think>is it <answer>4</answer>?</think><answer>5</answer>", "5", True),
    ("<think>a</think><answer>5</answer><think>is it <answer>4</answer>?</think>", "5", True),
    ("<think>a</think><answer></answer>", "", True),
    ("<answer>5</answer>", "5", False),
    ("a</think><answer>5</answer>", "5", False),
    ("<answer>5</answer><think>a</think>", None, False),
    ("<answer>5</answer></think>", None, False),
    ("<think>is it <answer>5</answer>", None, False),
    ("<think>a</think><answer>5", None, False),
    ("<think>a</think>5</answer>", None, False),
    ("<think>a</think> 5", None, False),
    ("<think>a</think><anſwer>5</anſwer>", None, False),
    ("", None, False),
]


@pytest.mark.parametrize(("text", "extracted", "in_format"), STRICT)
def test_the_strict_answer_is_the_last_complete_one_after_thinking(text, extracted, in_format):
    assert extract_answer(text) == extracted
    assert follows_format(text) is in_format


LENIENT = [
    ("<think>a</think><answer>5</answer>, that is \\boxed{6}", "5"),
    ("<think>is it <answer>4</answer>", "4"),
    ("12-3=9<answer>9", "9"),
    ("<answer>3</answer></think>", "3"),
    ("<think>a</think><answer></answer> so \\boxed{7}", "7"),
    ("so \\boxed{\\frac{1}{2}} and \\boxed{\\{1,2\\}}. The answer is 8", "\\{1,2\\}"),
    ("so \\boxed{x=\\boxed{5}}", "5"),
    ("\\boxed{1} then \\boxed{2", "1"),
    ("\\boxed{\\left\\{3\\right.}", "\\left\\{3\\right."),
    ("\\fbox{3}", "3"),
    ("The answer is 4. No, the answer is 3.5. Done", "3.5"),
    ("the ANSWER IS: **7**", "7"),
    ("Answer: x < 3\nbecause 2", "x < 3"),
    ("She has 2 left.\n#### 1,234", "1,234"),
    ("the answer is 5</think>", "5"),
    ("The answer is\n\n8", "8"),
    ("5+7=12; 12-3=9", "9"),
    ("first 12, then x=-3.", "-3"),
    ("a list 1,2,3", "3"),
    ("it is 1,234,567.50 in all", "1,234,567.50"),
    ("about 3/4", "3/4"),
    ("half, -\\frac{1}{2}.", "-\\frac{1}{2}"),
    ("AZYUK2A", None),
    ("no idea", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "found"), LENIENT)
def test_the_lenient_answer_stands_anywhere(text, found):
    assert extract_lenient(text) == found


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "5", "x<y", " "]), max_size=12).map("".join)


@settings(deadline=None)  # a busy machine is no failure
@given(PIECES)
def test_the_format_holds_only_where_a_plain_pattern_sees_it(text):
    # An independent reading of the format; nesting may still make the strict one refuse.
    if follows_format(text):
        assert re.search(r"<think>.*?</think>.*<answer>.*?</answer>", text)
        assert extract_answer(text) is not None


@settings(deadline=None)  # a busy machine is no failure
@given(PIECES)
def test_whatever_is_extracted_strictly_is_extracted_leniently(text):
    strict = extract_answer(text)
    if strict:
        assert f"<answer>{strict}</answer>" in re.sub(r"\s", "", text)
        assert extract_lenient(text) == strict


@settings(deadline=None)  # a busy machine is no failure
@given(st.text().filter(lambda text: "<" not in text), st.text())
def test_any_answer_is_found_between_the_tags(thought, answer):
    completion = f"<think>{thought}</think><answer>{answer}</answer>"
    if re.search("</?(think|answer)>", answer, re.IGNORECASE) is None:
        assert extract_answer(completion) == answer.strip()
        assert follows_format(completion)


@settings(deadline=None)  # a busy machine is no failure
@given(st.recursive(st.sampled_from("abc"), lambda inner: st.lists(inner).map(lambda parts: "{" + "".join(parts) + "}")))
def test_boxes_are_read_with_their_braces_balanced(content):
    assert last_boxed(f"so \\boxed{{{content}}} {{}}") == content


@pytest.mark.parametrize(
    "unit", ["<answer>", "<answer></answer>", "<think>", "\\boxed{", "{", "}", "1,", "-", "answer is ", "\\"]
)
@pytest.mark.e2e
def test_a_megabyte_of_anything_takes_linear_time(unit):
    text = "<answer>" + unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    extract_answer(text)
    follows_format(text)
    extract_lenient(text)
    # Half a second each; anything quadratic would take hours.
    assert time.perf_counter() - start < 20
