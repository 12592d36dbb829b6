"""Which problem stands in which split: decided by hashes of the texts alone, never by a seed or the order of a file.

A seed only chooses and orders what is taken from a split, so a development problem under one seed is never a training
problem under another. Everything is ordered by SHA-256, so it is the same in every process and Python version.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from steerlift.records.types import Problem

NEAR_MINIMUM = 40
"""Letters and digits from which on two texts that agree in all of them count as copies of each other."""


def text_key(text: str) -> str:
    """The text with every run of white space as one space: two problems with this in common are one problem."""
    return " ".join(text.split())


def near_key(text: str) -> str:
    """What two texts share when one is too close to the other to be called unseen: their letters and their numbers.

    Spacing, LaTeX mark-up, punctuation and signs are left out. In a short text the signs may be the whole problem
    (`12+3`, `12-3`), so below `NEAR_MINIMUM` letters and digits this is `text_key`.
    """
    letters = re.sub(r"[\W\d_]+", "", text.casefold())
    numbers = re.findall(r"\d+", text)
    enough = len(letters) + sum(map(len, numbers)) >= NEAR_MINIMUM
    return " ".join([letters, *numbers]) if enough else text_key(text)


def digest(text: str) -> str:
    """The SHA-256 of the text, hexadecimal: ranks and memberships are read off it."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The first problem of every text, in the given order."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(text_key(problem.problem), problem)
    return list(first.values())


def without(problems: Iterable[Problem], held_out: Iterable[Problem]) -> list[Problem]:
    """The problems whose text is not, and is not nearly, that of a held-out one."""
    taken = {near_key(problem.problem) for problem in held_out}
    return [problem for problem in problems if near_key(problem.problem) not in taken]


def carve(problems: Sequence[Problem], count: int) -> tuple[list[Problem], list[Problem]]:
    """(`count` problems of the lowest hash, the rest); near copies of each other always stay on the same side.

    A group of near copies that would overfill the first part goes to the second, unless the first would stay empty.
    """
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[near_key(problem.problem)].append(problem)
    carved: list[Problem] = []
    rest: list[Problem] = []
    for key in sorted(groups, key=digest):
        fits = len(carved) + len(groups[key]) <= count
        (carved if fits else rest).extend(groups[key])
    if not carved and rest:
        smallest = min(sorted(groups, key=digest), key=lambda key: len(groups[key]))
        carved = groups[smallest]
        rest = without(rest, carved)
    return carved, rest


def sample(problems: Iterable[Problem], size: int | None, seed: int) -> list[Problem]:
    """`size` of the problems (all, when None or when there are fewer) in the order of the seed.

    A smaller size under the same seed gives the beginning of a larger one.
    """
    ordered = sorted(problems, key=lambda problem: digest(f"{seed} {text_key(problem.problem)}"))
    return ordered[:size]
