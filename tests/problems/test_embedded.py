import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlift.problems.embedded import embedded_problems, noisy_solution, sample_solution
from steerlift.problems.splits import text_key
from steerlift.records.errors import InputError
from steerlift.records.types import Problem

ALL = [problem for split in ("train", "dev", "test") for problem in embedded_problems(split)]
STRICT = re.compile(r"<think>([^<]*)</think><answer>(\d+)</answer>")
LIMITS = {1: 4, 2: 6, 3: 8, 4: 10, 5: 12}


def solved(problem):
    """The answer read off the problem's text alone: an oracle that knows no steps."""
    numbers = [int(number) for number in re.findall(r"\d+", problem.problem)]
    a, b, c = numbers
    return {
        "Arithmetic": a + b - c,
        "Prealgebra": a + b - c,
        "Counting & Probability": a * b + c,
        "Algebra": Fraction(c - b, a),
        "Number Theory": (a + b) % c,
    }[problem.subject]


def operands(problem):
    return [int(number) for number in problem.unique_id.rsplit(" ", 3)[1:]]


def follows(steps, slips=0):
    """Whether every step is right arithmetic, but for `slips`, and starts from the result before it."""
    result, wrong = None, 0
    for step in steps.split("; "):
        left, operator, right, written = re.fullmatch(r"(\d+)( mod |[-+*/])(\d+)=(\d+)", step).groups()
        if result is not None and left != result:
            return False
        a, b = int(left), int(right)
        exact = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b), " mod ": a % b}[operator]
        wrong += exact != int(written)
        result = written
    return wrong == slips


def test_split_sizes():
    sizes = {split: len(embedded_problems(split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 5806, "dev": 563, "test": 903}


def test_no_text_and_no_sum_stands_twice():
    assert len({text_key(problem.problem) for problem in ALL}) == len(ALL)
    assert len({problem.unique_id for problem in ALL}) == len(ALL)


def test_every_split_has_every_subject_and_level():
    for split in ("train", "dev", "test"):
        kinds = Counter(problem.problem_type for problem in embedded_problems(split))
        assert len(kinds) == 25


def test_every_answer_is_what_its_text_asks():
    for problem in ALL:
        assert Fraction(problem.answer) == solved(problem), problem


def test_every_solution_is_worked_and_right():
    for problem in ALL:
        steps, answer = STRICT.fullmatch(problem.solution).groups()
        assert answer == problem.answer
        assert steps.endswith(f"={answer}")
        assert steps.count(";") == 1
        assert follows(steps), problem


def test_numbers_stay_within_two_digits_and_operands_within_the_level():
    for problem in ALL:
        assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", problem.problem + problem.solution))
        largest = max(operands(problem))
        assert largest <= LIMITS[problem.level]
        assert problem.level == 1 or largest > LIMITS[problem.level - 1]


def test_texts_are_short():
    assert max(len(problem.problem) for problem in ALL) <= 54


def test_one_problem_of_every_family():
    by_id = {problem.unique_id: problem for problem in ALL}
    assert by_id["embedded/Arithmetic 5 7 3"] == Problem(
        "Compute 5+7-3.", "9", "<think>5+7=12; 12-3=9</think><answer>9</answer>", "Arithmetic", 3,
        "embedded/Arithmetic 5 7 3",
    )  # fmt: skip
    shown = {problem.subject: (problem.problem, problem.solution) for problem in ALL if operands(problem) == [12, 5, 3]}
    assert shown == {
        "Arithmetic": ("Compute 12+5-3.", "<think>12+5=17; 17-3=14</think><answer>14</answer>"),
        "Prealgebra": (
            "Pens: Ann has 12, gets 5, loses 3. How many?",
            "<think>12+5=17; 17-3=14</think><answer>14</answer>",
        ),
        "Counting & Probability": (
            "12 bags of 5 balls and 3 more. How many balls?",
            "<think>12*5=60; 60+3=63</think><answer>63</answer>",
        ),
        "Algebra": ("Solve 12x+5=41.", "<think>41-5=36; 36/12=3</think><answer>3</answer>"),
        "Number Theory": ("Find (12+5) mod 3.", "<think>12+5=17; 17 mod 3=2</think><answer>2</answer>"),
    }


def test_size_and_seed():
    whole = embedded_problems("dev", seed=4)
    assert embedded_problems("dev", 50, 4) == whole[:50]
    assert embedded_problems("dev", 10_000, 4) == whole
    assert embedded_problems("dev", 50, 5) != whole[:50]


@pytest.mark.parametrize("style", ["good", "careless", "skipped", "untagged"])
@given(index=st.integers(0, len(ALL) - 1), seed=st.integers(0, 2**32))
def test_styles(style, index, seed):
    problem = ALL[index]
    text = noisy_solution(problem, random.Random(seed), style)
    assert text == noisy_solution(problem, random.Random(seed), style)
    tagged = STRICT.fullmatch(text)
    if style == "untagged":
        assert tagged is None
        steps = re.search(r"[^<>]*; [^<>]*", text)[0]
        assert follows(steps)
        assert text.removesuffix("</answer>").endswith(problem.answer)
        return
    steps, answer = tagged.groups()
    assert 0 <= int(answer) <= 99
    if style == "good":
        assert text == problem.solution
    elif style == "careless":
        assert answer != problem.answer
        assert steps.endswith(f"={answer}")
        assert follows(steps, slips=1)
    else:
        assert steps == "guess"
        assert abs(int(answer) - int(problem.answer)) <= 8


def test_skipping_is_seldom_right():
    rng = random.Random(0)
    guesses = [
        noisy_solution(problem, rng, "skipped") == f"<think>guess</think><answer>{problem.answer}</answer>" for problem in ALL
    ]
    assert 0.05 < sum(guesses) / len(ALL) < 0.1


def test_a_mix_draws_its_styles_by_weight():
    rng = random.Random(0)
    texts = [sample_solution(ALL[0], rng, {"good": 3, "skipped": 1}) for _ in range(2000)]
    share = texts.count(ALL[0].solution) / len(texts)
    assert abs(share - 0.75) < 0.04
    assert all("<think>guess</think>" in text for text in texts if text != ALL[0].solution)
    assert sample_solution(ALL[0], rng, {"good": 0.1}) == ALL[0].solution


@pytest.mark.parametrize(
    "mix",
    [{}, {"good": 0}, {"good": 1, "sloppy": 1}, {"good": -1, "skipped": 2}, {"good": float("nan")}, {"good": float("inf")}],
)
def test_a_mix_that_is_none(mix):
    with pytest.raises(InputError) as error:
        sample_solution(ALL[0], random.Random(0), mix)
    assert str(error.value) == (
        f"mix: got {mix}; expected weights of at least 0, not all 0, for good, careless, skipped, untagged"
    )


def test_wrong_arguments():
    with pytest.raises(InputError, match=r"^split: got 'eval'; expected one of train, dev, test$"):
        embedded_problems("eval")
    with pytest.raises(InputError, match=r"^size: got 0; expected at least 1, or none for every problem of the split$"):
        embedded_problems("dev", 0)
    with pytest.raises(InputError, match=r"^style: got 'sloppy'; expected one of good, careless, skipped, untagged$"):
        noisy_solution(ALL[0], random.Random(0), "sloppy")
    with pytest.raises(InputError, match=r"^problem: got 'What\?' without worked steps; expected one of embedded_problems"):
        noisy_solution(Problem("What?", "1"), random.Random(0), "careless")
