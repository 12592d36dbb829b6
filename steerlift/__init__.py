"""steerlift: a reasoning fine-tune's gain in a few megabytes.

The names below are the public Python interface; each is imported at first use, so that `import steerlift` and `--help` stay
fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerlift.problems.load import load_problems as load_problems
    from steerlift.scoring.equality import is_equal as is_equal
    from steerlift.scoring.statistics import pass_at_k as pass_at_k
    from steerlift.steering.apply import steer as steer
    from steerlift.steering.vectors import SteeringVectors as SteeringVectors

_HOMES = {
    "SteeringVectors": "steerlift.steering.vectors",
    "is_equal": "steerlift.scoring.equality",
    "load_problems": "steerlift.problems.load",
    "pass_at_k": "steerlift.scoring.statistics",
    "steer": "steerlift.steering.apply",
}

__all__ = ["SteeringVectors", "is_equal", "load_problems", "pass_at_k", "steer"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of the names above
    if name not in _HOMES:
        raise AttributeError(f"module 'steerlift' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
