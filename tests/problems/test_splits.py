import random

from hypothesis import given
from hypothesis import strategies as st

from steerlift.problems.splits import carve, digest, distinct, near_key, sample, text_key, without
from steerlift.records.types import Problem

LONG = "What is the smallest positive integer n such that all the roots of"


def made(*texts):
    return [Problem(text, "1", unique_id=str(index)) for index, text in enumerate(texts)]


def texts(problems):
    return [problem.problem for problem in problems]


def test_digest_is_sha256_of_the_utf8_text():
    assert digest("café") == "850f7dc43910ff890f8879c0ed26fe697c93a067ad93a7d50f466a7028a9bf4e"


def test_white_space_does_not_make_another_problem():
    assert text_key("What  is\n 1+1? ") == text_key("What is 1+1?") == "What is 1+1?"
    assert texts(distinct(made("a  b", "c", "a b", "c\n"))) == ["a  b", "c"]


def test_a_long_text_with_another_sign_or_mark_up_is_near():
    assert near_key(f"{LONG} $z^4 + z^2 + 1 = 0$?") == near_key(f"{LONG}  $z^{{4}} - z^2+1=0$.")
    assert near_key(f"{LONG} 22.5") != near_key(f"{LONG} 225")
    assert near_key(f"{LONG} 12 and 3") != near_key(f"{LONG} 1 and 23")


def test_a_short_text_with_another_sign_is_another_problem():
    assert len({near_key(text) for text in ("12+3", "12-3", "1+23", "+", "-", "一加二", "一减二")}) == 7
    assert near_key("12 +  3") == near_key("12 + 3")


def test_without_takes_copies_and_near_copies_away():
    problems = made("keep", "drop  me", f"{LONG} z-1", f"{LONG} z-2")
    assert texts(without(problems, made("drop me", f"{LONG} $z + 1$."))) == ["keep", f"{LONG} z-2"]


@given(st.lists(st.text(alphabet="abc 12", min_size=1), max_size=15), st.integers(0, 16), st.randoms())
def test_carve_depends_on_the_texts_alone(names, count, shuffler: random.Random):
    problems = distinct(made(*names))
    carved, rest = carve(problems, count)
    assert len(carved) == (min(max(count, 1), len(problems)))
    assert sorted(texts(carved) + texts(rest)) == sorted(texts(problems))
    shuffler.shuffle(problems)
    again, _ = carve(problems, count)
    assert set(texts(again)) == set(texts(carved))


def test_carve_takes_the_lowest_hashes():
    problems = made(*"abcdefgh")
    carved, _ = carve(problems, 3)
    assert texts(carved) == sorted("abcdefgh", key=digest)[:3]


def test_carve_keeps_near_copies_together():
    pairs = [f"{LONG} x{sign}{number}" for number in range(9) for sign in "+-"]
    carved, rest = carve(made(*pairs), 5)
    assert len(carved) == 4
    assert not {near_key(text) for text in texts(carved)} & {near_key(text) for text in texts(rest)}
    one_pair, others = carve(made(*pairs), 1)
    assert (len(one_pair), len(others)) == (2, 16)
    assert len({near_key(text) for text in texts(one_pair)}) == 1


@given(st.integers(), st.integers(1, 12))
def test_a_smaller_sample_begins_a_larger_one(seed, size):
    problems = made(*"abcdefghij")
    whole = sample(problems, None, seed)
    assert sample(reversed(problems), size, seed) == whole[:size]
    assert sorted(texts(whole)) == list("abcdefghij")


def test_seeds_give_different_samples():
    problems = made(*(str(number) for number in range(100)))
    assert len({tuple(texts(sample(problems, 10, seed))) for seed in range(20)}) == 20
