"""What the pictures of a search need of its search.json: the trials, the best of them, and the scale of every parameter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json


@dataclass(frozen=True)
class Trial:
    """One trial; `score` in percent, on all development problems where it is `complete`, else on fewer."""

    number: int
    params: dict[str, Any]
    complete: bool
    score: float


@dataclass(frozen=True)
class Search:
    """The trials in order, the best, the base's score in percent, the number of development problems, k of pass@k, weights."""

    trials: list[Trial]
    best: Trial
    baseline: float
    problems: int
    k: int
    weight_range: tuple[float, float]

    @property
    def complete(self) -> list[Trial]:
        """Those judged on all problems, the best last, so that it is drawn on top."""
        return sorted((trial for trial in self.trials if trial.complete), key=lambda trial: (trial.score, -trial.number))

    @property
    def stopped(self) -> list[Trial]:
        """Those stopped on fewer problems."""
        return [trial for trial in self.trials if not trial.complete]

    def scales(self) -> list["Scale"]:
        """One scale for each parameter."""
        return [_scale(name, [trial.params[name] for trial in self.trials], self.weight_range) for name in self.best.params]


@dataclass(frozen=True)
class Scale:
    """Where a parameter's values stand on an axis from `low` to `high`: numbers at themselves, names one after the other."""

    name: str
    names: tuple[str, ...]
    low: float
    high: float
    whole: bool

    def at(self, trial: Trial) -> float:
        """Where a trial stands."""
        value = trial.params[self.name]
        return float(self.names.index(value)) if self.names else float(value)

    def share(self, place: float) -> float:
        """How far up the axis a place is: 0 at its low end, 1 at its high one."""
        return (place - self.low) / (self.high - self.low)


def load_search(path: Path) -> Search:
    """Reads a search.json. Raises MissingInputError when it is not there and InputError when it is no file of a search."""
    content = read_json(path)
    try:
        trials = [Trial(row["number"], row["params"], row["state"] == "complete", row["score"]) for row in content["trials"]]
        best = next(trial for trial in trials if trial.number == content["best"]["number"])
        baseline = content["baseline"]
        low, high = content["settings"]["weight_range"]
        k = content["settings"]["pass_at_k"]
        return Search(trials, best, baseline["score"], baseline["problems"], k, (low, high))
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(f"{path} is no file of a search ({error!r}); give a search.json of `steerlift search`") from error


def _scale(name: str, values: list[Any], weight_range: tuple[float, float]) -> Scale:
    if isinstance(values[0], str):
        names = tuple(sorted(set(values)))
        return Scale(name, names, -0.5, len(names) - 0.5, whole=True)
    if isinstance(values[0], int):
        # Half a layer of room: the ends stay apart where all trials have chosen the same layer.
        return Scale(name, (), min(values) - 0.5, max(values) + 0.5, whole=True)
    return Scale(name, (), *weight_range, whole=False)
