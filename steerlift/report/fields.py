"""Numbers as the JSON of an evaluation has them, checked; `repair` is what each refusal tells the user to do."""

import re
from typing import Any

from steerlift.records.errors import InputError

SCORE_KEY = re.compile(r"pass_at_([1-9]\d*)")
"""The key of a score; its group is k."""


def percent(value: Any, where: str, repair: str) -> float:  # noqa: ANN401 - any JSON value
    """A number from 0 to 100. Raises InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise InputError(f"{where}: expected percent from 0 to 100, got {value!r}; {repair}")
    return float(value)


def interval(value: Any, where: str, repair: str) -> tuple[float, float] | None:  # noqa: ANN401 - any JSON value
    """Low and high in percent, or None for null. Raises InputError for anything else."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{where}: expected [low, high] in percent, got {value!r}; {repair}")
    low, high = (percent(bound, where, repair) for bound in value)
    if low > high:
        raise InputError(f"{where}: expected [low, high] in percent, got {value!r} with low above high; {repair}")
    return low, high


def problem_count(value: Any, where: str, repair: str) -> int | None:  # noqa: ANN401 - any JSON value
    """A whole number above 0, or None for null. Raises InputError for anything else."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: expected a whole number above 0, got {value!r}; {repair}")
    return value
