"""What a figure needs of a results file: each arm's score and interval, the weights, the number of problems.

The file has the shape of steering_eval_results.json: base_model, finetuned_model (null where none was named) and
base_with_steering[weight], each with pass_at_K in percent, the first of them where there are several. `ci95`,
`num_eval_problems`, `random_control` and `chosen` are used where they are there.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json
from steerlift.report.fields import SCORE_KEY, interval, percent, problem_count

_REPAIR = "evaluate again"


@dataclass(frozen=True)
class Arm:
    """One evaluated configuration: pass@k and the ends of its 95 % interval in percent, and how many problems it saw."""

    score: float
    interval: tuple[float, float] | None = None
    problems: int | None = None


@dataclass(frozen=True)
class Results:
    """The arms of one evaluation; `steered` and `control` go from weight to arm, smallest weight first."""

    k: int
    base: Arm
    finetuned: Arm | None
    steered: dict[float, Arm]
    control: dict[float, Arm]
    chosen: float | None

    def arms(self) -> list[Arm]:
        """All arms, the base first."""
        models = [self.base] if self.finetuned is None else [self.base, self.finetuned]
        return [*models, *self.steered.values(), *self.control.values()]

    def problem_counts(self) -> list[int]:
        """The different numbers of problems that arms were evaluated on; empty when the file does not say."""
        return sorted({arm.problems for arm in self.arms() if arm.problems is not None})


def load_results(path: Path) -> Results:
    """Reads a results file. Raises MissingInputError when it is not there and InputError when it cannot be used."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with base_model, got {_kind(content)}; give a file of `evaluate`")
    alone = "finetuned_model" in content and content["finetuned_model"] is None
    names = ("base_model", "base_with_steering") if alone else ("base_model", "finetuned_model", "base_with_steering")
    parts = {name: _object(content, name, path) for name in names}
    if not parts["base_with_steering"]:
        raise InputError(f"{path}: base_with_steering holds no weight, expected at least one; evaluate some weights")
    control = _object(content, "random_control", path) if "random_control" in content else {}
    k = _which_k(parts["base_model"], f"{path}: base_model")
    steered = _by_weight(parts["base_with_steering"], k, f"{path}: base_with_steering")
    return Results(
        k=k,
        base=_arm(parts["base_model"], k, f"{path}: base_model"),
        finetuned=None if alone else _arm(parts["finetuned_model"], k, f"{path}: finetuned_model"),
        steered=steered,
        control=_by_weight(control, k, f"{path}: random_control"),
        chosen=_chosen(content, steered, path),
    )


def _object(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in content:
        found = ", ".join(content) or "nothing"
        raise InputError(f"{path}: no {name!r} in it (found: {found}); give a results file of `steerlift evaluate`")
    value = content[name]
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name}: expected an object, got {_kind(value)}; evaluate again")
    return value


def _which_k(base: dict[str, Any], where: str) -> int:
    found = [int(match[1]) for key in base if (match := SCORE_KEY.fullmatch(key))]
    if not found:
        raise InputError(f"{where}: no score in it (found: {', '.join(base) or 'nothing'}); expected pass_at_1 in percent")
    return found[0]


def _by_weight(arms: dict[str, Any], k: int, where: str) -> dict[float, Arm]:
    by_weight: dict[float, Arm] = {}
    for key, fields in arms.items():
        weight = _weight(key, where)
        if weight in by_weight:
            raise InputError(f"{where}: weight {weight:g} is there twice; keep one of them")
        by_weight[weight] = _arm(fields, k, f"{where}[{key!r}]")
    return dict(sorted(by_weight.items()))


def _weight(key: Any, where: str) -> float:  # noqa: ANN401 - any JSON value
    try:
        weight = float(key)
    except (TypeError, ValueError):
        weight = math.nan
    if isinstance(key, bool) or not math.isfinite(weight):
        raise InputError(f"{where}: expected a number as steering weight, got {key!r}; only single weights can be drawn")
    return weight


def _arm(fields: Any, k: int, where: str) -> Arm:  # noqa: ANN401 - any JSON value
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object with pass_at_{k}, got {_kind(fields)}; evaluate again")
    if f"pass_at_{k}" not in fields:
        found = ", ".join(fields) or "nothing"
        raise InputError(f"{where}: no pass_at_{k} in it (found: {found}); evaluate every arm with the same --pass_at_k")
    score = percent(fields[f"pass_at_{k}"], f"{where}.pass_at_{k}", _REPAIR)
    problems = problem_count(fields.get("num_eval_problems"), f"{where}.num_eval_problems", _REPAIR)
    return Arm(score, interval(fields.get("ci95"), f"{where}.ci95", _REPAIR), problems)


def _chosen(content: dict[str, Any], weights: Iterable[float], path: Path) -> float | None:
    if content.get("chosen") is None:
        return None
    chosen = _object(content, "chosen", path)
    if "weight" not in chosen:
        raise InputError(f"{path}: chosen: no 'weight' in it (found: {', '.join(chosen) or 'nothing'}); name a steering weight")
    weight = _weight(chosen["weight"], f"{path}: chosen.weight")
    known = list(weights)
    if weight not in known:
        listed = ", ".join(f"{known_weight:g}" for known_weight in known)
        raise InputError(f"{path}: chosen.weight {weight:g} is not in base_with_steering ({listed}); choose one of these")
    return weight


def _kind(value: Any) -> str:  # noqa: ANN401 - any JSON value
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
