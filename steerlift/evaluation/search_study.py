"""What Optuna does in a search, and the only module that imports it: chooses parameters and stops weak trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from steerlift.records.errors import MissingDependencyError
from steerlift.sampling.draws import row_seed

if TYPE_CHECKING:
    from optuna import Study, Trial


def check_optuna() -> None:
    """Raises MissingDependencyError where Optuna is not installed."""
    _optuna()


def new_study() -> Study:
    """A study that wants high scores and after each halving (reported as steps 1, 2, 4 ...) keeps the better half."""
    optuna = _optuna()
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study: Study = optuna.create_study(direction="maximize", pruner=pruner)
    return study


def ask(study: Study, sampler: str, seed: int, known: Mapping[str, Any] | None) -> Trial:
    """The study's next trial, chosen by `tpe` or `gp`; one that was run before has its known parameters again."""
    optuna = _optuna()
    if known is not None:
        study.enqueue_trial(dict(known))
        study.sampler = optuna.samplers.RandomSampler()  # it has nothing to choose
        return study.ask()
    # A sampler of its own for every trial, so that no random state has to be kept.
    seed_of_trial = row_seed(seed, len(study.trials)) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        make = optuna.samplers.GPSampler if sampler == "gp" else optuna.samplers.TPESampler
        study.sampler = make(seed=seed_of_trial)
        return study.ask()


def tell(trial: Trial, sampler: str, score: float, stopped: bool) -> None:
    """Ends a trial with its last score."""
    # A Gaussian process takes no notice of pruned trials: it is told their last score as any other.
    if stopped and sampler == "tpe":
        trial.study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
    else:
        trial.study.tell(trial, score)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError("steerlift search needs Optuna: pip install 'steerlift[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
