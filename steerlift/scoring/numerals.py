r"""Plain numbers, compared exactly and without sympy: integers, decimals, fractions and mixed numbers.

Most wrong answers are plain numbers, so most comparisons end here, in microseconds.
"""

import re
from fractions import Fraction

# Longer numbers are compared as digit strings only: Python refuses to convert more than 4,300 digits, and slowly before.
MAX_DIGITS = 200
# An approximation counts when it agrees in as many digits as a referee would ask for.
MIN_SIGNIFICANT_DIGITS = 6

_INTEGER = re.compile(r"([+-]?)([0-9]+)")
_DECIMAL = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)")
_QUOTIENT = re.compile(r"([+-]?)([0-9]*) ?\\frac ?\{ ?([+-]?[0-9]+) ?\} ?\{ ?([+-]?[0-9]+) ?\}")
_SLASHED = re.compile(r"([+-]?)(?:([0-9]+) )?([0-9]+) ?/ ?([0-9]+)")


def compare_numerals(gold: str, predicted: str) -> bool | None:
    """Whether two plain numbers are equal; None when either is not one, or is too long to decide.

    Integers and fractions are exact. A decimal also equals a number that it approximates to all of its places, if it has
    at least six of them and six significant digits (`0.333333` equals `1/3`, `0.3333` does not).
    """
    a, b = canonical_integer(gold), canonical_integer(predicted)
    if a is not None and b is not None:
        return a == b
    x, y = parse_numeral(gold), parse_numeral(predicted)
    if x is None or y is None:
        return None
    if x == y:
        return True
    places = [_places(text) for text in (gold, predicted) if "." in text]
    return bool(places) and _approximates(x, y, min(places))


def canonical_integer(text: str) -> str | None:
    """The digits of a plain integer without `+` and leading zeros (`-0` is `0`); None for anything else."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].lstrip("0")
    return ("-" if match[1] == "-" else "") + digits if digits else "0"


def parse_numeral(text: str) -> Fraction | None:
    """The exact value of a plain number; None for anything else, a zero denominator and more than 200 characters."""
    if len(text) > MAX_DIGITS:
        return None
    if match := _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if match := _DECIMAL.fullmatch(text):
        if not match[2] and not match[3]:
            return None
        digits = match[3]
        return _signed(match[1], Fraction(int(match[2] + digits), 10 ** len(digits)))
    match = _QUOTIENT.fullmatch(text) or _SLASHED.fullmatch(text)
    if match is None or int(match[4]) == 0:
        return None
    # In a mixed number the sign belongs to the whole: -3 1/2 is -(3 + 1/2).
    return _signed(match[1], int(match[2] or 0) + Fraction(int(match[3]), int(match[4])))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _places(text: str) -> int:
    return len(text) - text.index(".") - 1


def _approximates(x: Fraction, y: Fraction, places: int) -> bool:
    unit = Fraction(1, 10**places)
    return (
        places >= MIN_SIGNIFICANT_DIGITS
        and abs(x - y) < unit
        and min(abs(x), abs(y)) >= unit * 10 ** (MIN_SIGNIFICANT_DIGITS - 1)
    )
