"""Checks of options that several commands share; each failure is one line that names the flag, the value and the bounds."""

import math
from collections.abc import Sequence

from steerlift.records.errors import InputError


def check_number(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raises InputError for a number that is not finite or out of bounds; None (an option left out) passes."""
    if value is None:
        return
    bounds = {
        f"at least {least}": least is None or value >= least,
        f"above {above}": above is None or value > above,
        f"at most {most}": most is None or value <= most,
        f"below {below}": below is None or value < below,
    }
    if not math.isfinite(value) or not all(bounds.values()):
        given = {f"at least {least}": least, f"above {above}": above, f"at most {most}": most, f"below {below}": below}
        expected = " and ".join(text for text, bound in given.items() if bound is not None) or "a finite number"
        raise InputError(f"--{name} {value}: expected {expected}")


def check_pass_at_k(ks: Sequence[int], completions: int) -> None:
    """Raises InputError unless there is a k, each once, and 1 <= k <= completions: pass@k is undefined beyond."""
    if not ks or len(set(ks)) < len(ks):
        raise InputError(f"--pass_at_k {' '.join(map(str, ks))}: expected at least one k, each once")
    for k in ks:
        if not 1 <= k <= completions:
            raise InputError(
                f"--pass_at_k {k} with {completions} completions a problem: "
                "pass@k needs 1 <= k <= completions; lower k or raise --num_completions_eval"
            )
