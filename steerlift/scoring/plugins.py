"""Reward functions by name: `package.module:function`, ours or the user's own."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from steerlift.records.errors import InputError
from steerlift.records.types import GradedProblem

RewardFunction = Callable[[GradedProblem], Sequence[float]]
"""Takes a problem with its graded completions (the group); returns one finite number per completion, in their order."""


def load_reward(name: str) -> RewardFunction:
    """The function that `package.module:function` names; modules in the working directory can be imported too.

    Raises InputError for a name of another shape, and where the module or its function is not there or cannot be used.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f"reward {name!r}: expected package.module:function, such as steerlift.scoring.rewards:math_reward")
    module = _imported(module_name, name)
    if not hasattr(module, function_name):
        raise InputError(f"reward {name}: module {module_name} has no {function_name}; name one of its functions")
    function = getattr(module, function_name)
    if not callable(function):
        raise InputError(f"reward {name}: {function_name} is of type {type(function).__name__}, expected a function")
    reward: RewardFunction = function
    return reward


def group_rewards(functions: Sequence[tuple[str, RewardFunction]], graded: GradedProblem) -> list[float]:
    """The sum of the functions' rewards for each completion; the functions come with their names.

    Raises InputError for a function that does not return one finite number per completion.
    """
    rewards = [_checked(name, function(graded), len(graded.completions)) for name, function in functions]
    return [math.fsum(values) for values in zip(*rewards, strict=True)]


def _imported(module_name: str, name: str) -> ModuleType:
    # The console script does not have the working directory on its path. At the end: no installed module is hidden by it.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        # A module that is there may itself ask for one that is not.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name} here or among the installed packages"
        else:
            reason = f"importing {module_name} raised {type(error).__name__}: {_first_line(error)}"
        raise InputError(f"reward {name}: {reason}; expected package.module:function") from error


def _checked(name: str, values: object, count: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        got = " ".join(repr(values).split())[:60]
        raise InputError(f"reward {name} returned {got}, expected {count} numbers, one per completion") from error
    if len(numbers) != count:
        raise InputError(f"reward {name} returned {len(numbers)} numbers, expected {count}, one per completion")
    wrong = [number for number in numbers if not math.isfinite(number)]
    if wrong:
        raise InputError(f"reward {name} returned {wrong[0]}, expected finite numbers")
    return numbers


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
