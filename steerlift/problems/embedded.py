"""The problems that the embedded model is trained on: five families of two-step sums, enumerable, with worked solutions.

Also the imperfect solutions of its pre-training: a base model that knows the steps but mostly skips them has a skill that
reinforcement learning can bring out, as real pre-trained models do.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Literal, get_args

from steerlift.problems.splits import digest, sample
from steerlift.records.errors import InputError
from steerlift.records.types import Problem

Style = Literal["good", "careless", "skipped", "untagged"]
Mix = Mapping[str, float]
"""Weight of each style; the weights need not sum to 1."""

LIMITS = (4, 6, 8, 10, 12)
"""A problem of level L has operands up to LIMITS[L - 1], and one above LIMITS[L - 2]."""

SKIPPED = "guess"
"""What stands where the steps would be when they are skipped."""

LARGEST = 99
"""Every number in a problem and its steps is 0 to 99, one token each."""

_Family = Callable[[int, int, int], tuple[str, str]]

_STORIES = (
    "Pens: Ann has {a}, gets {b}, loses {c}. How many?",
    "Eggs: Ben has {a}, buys {b}, eats {c}. How many?",
    "Cards: Eva has {a}, wins {b}, sells {c}. How many?",
    "Coins: Tom has {a}, finds {b}, spends {c}. How many?",
)
_STEP = re.compile(r"(\d+)(\+|-|\*|/| mod )(\d+)=(\d+)")
_GUESS_SPREAD = 8


def _arithmetic(a: int, b: int, c: int) -> tuple[str, str]:
    return f"Compute {a}+{b}-{c}.", _steps(a, ("+", b), ("-", c))


def _prealgebra(a: int, b: int, c: int) -> tuple[str, str]:
    # Which story is told hangs on the operands alone, so no two wordings of one sum can fall into different splits.
    story = _STORIES[(a + b + c) % len(_STORIES)]
    return story.format(a=a, b=b, c=c), _steps(a, ("+", b), ("-", c))


def _counting(a: int, b: int, c: int) -> tuple[str, str]:
    return f"{a} bags of {b} balls and {c} more. How many balls?", _steps(a, ("*", b), ("+", c))


def _algebra(a: int, b: int, x: int) -> tuple[str, str]:
    total = a * x + b
    return f"Solve {a}x+{b}={total}.", _steps(total, ("-", b), ("/", a))


def _number_theory(a: int, b: int, d: int) -> tuple[str, str]:
    return f"Find ({a}+{b}) mod {d}.", _steps(a, ("+", b), (" mod ", d))


FAMILIES: Mapping[str, _Family] = {
    "Arithmetic": _arithmetic,
    "Prealgebra": _prealgebra,
    "Counting & Probability": _counting,
    "Algebra": _algebra,
    "Number Theory": _number_theory,
}
"""Subject to the text and the steps (`5+7=12; 12-3=9`) of three operands."""


def embedded_problems(split: Literal["train", "dev", "test"], size: int | None = None, seed: int = 0) -> list[Problem]:
    """`size` problems of a split (all when None, or when there are fewer), drawn without replacement in seeded order.

    A smaller size under the same seed gives the beginning of a larger one. The answer is an integer from 0 to 99, the
    solution `<think>5+7=12; 12-3=9</think><answer>9</answer>`. Raises InputError for an unknown split or a size below 1.
    """
    if size is not None and size < 1:
        raise InputError(f"size: got {size}; expected at least 1, or none for every problem of the split")
    problems = [problem for problem, where in _space() if where == split]
    if not problems:
        raise InputError(f"split: got {split!r}; expected one of train, dev, test")
    return sample(problems, size, seed)


def noisy_solution(problem: Problem, rng: random.Random, style: Style) -> str:
    """A solution of an embedded problem as an imperfect author writes it.

    `good` is the worked solution; `careless` has one slip in a step, carried on into a wrong answer; `skipped` leaves the
    steps out, says so and guesses near the answer; `untagged` has the right steps without all four tags.
    """
    if style == "good":
        return problem.solution
    steps = _STEP.findall(problem.solution)
    if not steps:
        raise InputError(f"problem: got {problem.problem!r} without worked steps; expected one of embedded_problems; use those")
    if style == "careless":
        return _tagged(*_careless(steps, rng))
    if style == "skipped":
        answer = int(problem.answer)
        return _tagged(SKIPPED, rng.randint(max(0, answer - _GUESS_SPREAD), min(LARGEST, answer + _GUESS_SPREAD)))
    if style == "untagged":
        worked = "; ".join(f"{left}{operator}{right}={result}" for left, operator, right, result in steps)
        forms = ("{0}", "<think>{0}</think>{1}", "{0}<answer>{1}</answer>", "<think>{0}<answer>{1}</answer>")
        return rng.choice(forms).format(worked, problem.answer)
    raise InputError(f"style: got {style!r}; expected one of {', '.join(get_args(Style))}")


def sample_solution(problem: Problem, rng: random.Random, mix: Mix) -> str:
    """A solution in a style drawn from the mix, `{"good": 0.3, "skipped": 0.7}`."""
    styles: tuple[Style, ...] = get_args(Style)
    weights = [mix.get(style, 0.0) for style in styles]
    unknown = sorted(set(mix) - set(styles))
    if unknown or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise InputError(f"mix: got {dict(mix)}; expected weights of at least 0, not all 0, for {', '.join(styles)}")
    return noisy_solution(problem, rng, rng.choices(styles, weights)[0])


@cache
def _space() -> tuple[tuple[Problem, str], ...]:
    """Every problem there is, with its split: about 80 % train, 8 % dev, 12 % test by the hash of family and operands."""
    problems = []
    for family, operands in _operands():
        text, steps = FAMILIES[family](*operands)
        answer = steps.rpartition("=")[2]
        name = f"{family} {' '.join(map(str, operands))}"
        level = next(level for level, limit in enumerate(LIMITS, start=1) if max(operands) <= limit)
        share = int(digest(name)[:8], 16) / 2**32
        split = "train" if share < 0.8 else "dev" if share < 0.88 else "test"
        problems.append((Problem(text, answer, _tagged(steps, answer), family, level, f"embedded/{name}"), split))
    return tuple(problems)


def _operands() -> Iterator[tuple[str, tuple[int, int, int]]]:
    numbers = range(1, LIMITS[-1] + 1)
    for family, (a, b, c) in product(FAMILIES, product(numbers, repeat=3)):
        usable = {
            "Arithmetic": a + b >= c,
            "Prealgebra": a + b >= c,
            "Counting & Probability": min(a, b) > 1 and a * b + c <= LARGEST,
            "Algebra": a > 1 and a * c + b <= LARGEST,
            "Number Theory": c > 1,
        }
        if usable[family]:
            yield family, (a, b, c)


def _steps(start: int, *operations: tuple[str, int]) -> str:
    """The chain of steps as text, each going on from the last one's result."""
    written = []
    for operator, right in operations:
        result = _apply(start, operator, right)
        assert result is not None, (start, operator, right)
        assert 0 <= result <= LARGEST, (start, operator, right)
        written.append(f"{start}{operator}{right}={result}")
        start = result
    return "; ".join(written)


def _apply(left: int, operator: str, right: int) -> int | None:
    """The result of one step; None for a division that leaves a remainder."""
    if operator == "/":
        return left // right if left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right, " mod ": left % right}[operator]


def _careless(steps: list[tuple[str, str, str, str]], rng: random.Random) -> tuple[str, int]:
    """Steps with one slip and the answer that follows from it: any of those that end in a number that is wrong."""
    slips = []
    for position, offset in product(range(len(steps)), (-10, -3, -2, -1, 1, 2, 3, 10)):
        written, results = [], [int(steps[0][0])]
        for index, (_, operator, right, _) in enumerate(steps):
            result = _apply(results[-1], operator, int(right))
            if result is None:
                break
            result += offset if index == position else 0
            written.append(f"{results[-1]}{operator}{right}={result}")
            results.append(result)
        whole = len(written) == len(steps) and all(0 <= result <= LARGEST for result in results)
        if whole and results[-1] != int(steps[-1][3]):
            slips.append(("; ".join(written), results[-1]))
    return rng.choice(slips)


def _tagged(steps: str, answer: str | int) -> str:
    return f"<think>{steps}</think><answer>{answer}</answer>"
