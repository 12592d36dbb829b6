from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlift.scoring.numerals import canonical_integer, compare_numerals, parse_numeral


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", Fraction(12)),
        ("-012", Fraction(-12)),
        ("+3", Fraction(3)),
        (".5", Fraction(1, 2)),
        ("-2.50", Fraction(-5, 2)),
        ("3.", Fraction(3)),
        ("10/4", Fraction(5, 2)),
        ("-1 / 2", Fraction(-1, 2)),
        ("3 1/2", Fraction(7, 2)),
        ("-3 1/2", Fraction(-7, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{3}{6}", Fraction(-1, 2)),
        (r"918\frac{1}{2}", Fraction(1837, 2)),
        (".", None),
        ("", None),
        ("-", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1e3", None),
        ("x", None),
        ("1,000", None),
        ("٣", None),  # a digit for Python, not for us
        ("1" * 201, None),
    ],
)
def test_plain_numbers_have_their_exact_value(text, value):
    assert parse_numeral(text) == value


@pytest.mark.parametrize(
    ("gold", "predicted", "equal"),
    [
        ("1/3", "0.333333", True),
        ("0.333333", "1/3", True),
        ("1/3", "0.3333", False),
        ("2/3", "0.666666", True),
        ("2/3", "0.666667", True),
        ("2/3", "0.666668", False),
        ("3.141593", "3.1415926", True),
        ("0.0000001", "0.0000002", False),
        ("5", "5.0000001", False),
        ("1000000.1", "1000000.2", False),
        ("7", "x", None),
    ],
)
def test_an_approximation_needs_six_places_and_digits(gold, predicted, equal):
    assert compare_numerals(gold, predicted) is equal


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(), st.integers())
def test_integers_are_equal_when_they_are(a, b):
    assert compare_numerals(str(a), str(b)) is (a == b)
    assert compare_numerals(f"{a:+05d}", f"{a}.0") is True
    assert canonical_integer(f"{a:+05d}") == str(a)


@settings(deadline=None)  # a busy machine is no failure
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_equal_when_they_are(a, b):
    assert compare_numerals(
        f"{a.numerator}/{a.denominator}".replace("+", ""), rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    ) is (a == b)


def test_five_thousand_digits_are_compared_as_digits():
    ones = "1" * 5000
    assert compare_numerals(ones, "+00" + ones) is True
    assert compare_numerals(ones, ones[:-1] + "2") is False
