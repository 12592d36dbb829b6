"""What the training curves need of a run directory: the metrics of every step and the scores of every evaluation.

Only reads, so a run that is still going on can be looked at: the last line of metrics.jsonl may be cut off. Metrics are in
the units of the file (shares from 0 to 1), scores in percent.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import read_json
from steerlift.report.fields import SCORE_KEY, interval, percent, problem_count

# What is drawn of a step; the file holds more.
METRICS = (
    "reward", "accuracy", "lenient_accuracy", "format_rate", "mean_length", "truncated_rate", "entropy", "grad_norm", "lr",
    "no_signal_rate", "clip_rate", "kl", "sampling_seconds", "grading_seconds", "update_seconds",
)  # fmt: skip
_REPAIR = "repair or delete the file"


@dataclass(frozen=True)
class Score:
    """pass@k and the ends of its 95 % interval, in percent."""

    percent: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its scores by k, the headline first, and how many problems it saw."""

    step: int
    scores: dict[int, Score]
    problems: int | None = None


@dataclass(frozen=True)
class TrainingRun:
    """Steps in rising order, each metric's values at them (None: not there), evaluations in rising order."""

    name: str
    steps: list[int]
    metrics: dict[str, list[float | None]]
    evaluations: list[Evaluation]

    def has(self, metric: str) -> bool:
        """Whether any step has a value of it."""
        return any(value is not None for value in self.metrics[metric])


def load_training_run(folder: Path) -> TrainingRun:
    """Reads metrics.jsonl and, where it is there, eval_summary.json; changes nothing.

    Raises MissingInputError without a run or a complete step in it, InputError, naming the line, for what cannot be used.
    """
    if folder.is_file():
        raise InputError(
            f"{folder} is a file, expected a run directory of `train`; give results of `evaluate` by --results-path"
        )
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; expected a run directory of `steerlift train`")
    rows = _read_steps(folder / "metrics.jsonl")
    steps = sorted(rows)
    return TrainingRun(
        # resolve: the name of `.` is empty.
        name=folder.resolve().name,
        steps=steps,
        metrics={name: [rows[step][name] for step in steps] for name in METRICS},
        evaluations=_read_evaluations(folder / "eval_summary.json"),
    )


def _read_steps(path: Path) -> dict[int, dict[str, float | None]]:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; expected a run directory of `steerlift train` with a step done")
    content = path.read_bytes()
    rows: dict[int, dict[str, float | None]] = {}
    # What follows the last line break is empty, or a line that is being written or was cut off.
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: expected a JSON object, got {_short(line)}; the file was damaged, repair or delete the line"
            )
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise InputError(f"{where}: expected a whole number as step, got {step!r}; repair or delete the line")
        # A resumed run may repeat steps; what it went on from is the later one.
        rows[step] = {name: _number(row.get(name), f"{where}: {name}") for name in METRICS}
    if not rows:
        raise MissingInputError(f"{path}: no complete step in it; plot again when the first step is done")
    if all(value is None for row in rows.values() for value in row.values()):
        raise MissingInputError(
            f"{path}: no metric in it that could be drawn, expected some of {', '.join(METRICS)}; train again"
        )
    return rows


def _number(value: Any, where: str) -> float | None:  # noqa: ANN401 - any JSON value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: expected a finite number or null, got {value!r}; repair or delete the line")
    return float(value)


def _short(line: bytes) -> str:
    text = line.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _read_evaluations(path: Path) -> list[Evaluation]:
    if not path.exists():
        return []
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with an evaluation by step, got {content!r:.40}; repair or delete it")
    return sorted((_evaluation(key, fields, path) for key, fields in content.items()), key=lambda evaluation: evaluation.step)


def _evaluation(key: str, fields: Any, path: Path) -> Evaluation:  # noqa: ANN401 - any JSON value
    where = f"{path}: step {key!r}"
    if not re.fullmatch(r"\d+", key, re.ASCII):
        raise InputError(f"{where}: expected a whole number as step; repair or delete the file")
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object with pass_at_1, got {fields!r:.40}; repair or delete the file")
    ks = [int(match[1]) for name in fields if (match := SCORE_KEY.fullmatch(name))]
    if not ks:
        found = ", ".join(fields) or "nothing"
        raise InputError(f"{where}: no score in it (found: {found}); expected pass_at_1 in percent, repair or delete the file")
    scores = {}
    for k in ks:
        name = f"pass_at_{k}"
        bounds = "ci95" if k == ks[0] else f"{name}_ci95"
        scores[k] = Score(
            percent(fields[name], f"{where}: {name}", _REPAIR), interval(fields.get(bounds), f"{where}: {bounds}", _REPAIR)
        )
    problems = problem_count(fields.get("num_eval_problems"), f"{where}: num_eval_problems", _REPAIR)
    return Evaluation(int(key), scores, problems)
