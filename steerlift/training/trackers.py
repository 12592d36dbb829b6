"""Experiment trackers: what else a run's metrics go to, Weights & Biases or trackio."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.runs import read_json, write_json

# What the trackers call this folder's run, so that a resumed run goes on in the same place.
_NAMES_FILE = "trackers.json"


class Tracker(Protocol):
    """Takes the metrics of a run."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Records the metrics of a step; those that are None are left out."""

    def finish(self) -> None:
        """Writes what is not written yet and ends the tracker's threads and processes."""


def check_trackers(use_wandb: bool, use_trackio: bool) -> None:
    """Raises MissingDependencyError for a tracker that is asked for and not installed."""
    for wanted, package in ((use_wandb, "wandb"), (use_trackio, "trackio")):
        if wanted:
            _tracker_module(package)


def open_trackers(
    use_wandb: bool, use_trackio: bool, project: str, run: str, settings: dict[str, Any], folder: Path, resume: bool
) -> list[Tracker]:
    """Starts the trackers asked for. `resume` goes on with the runs that were started from the same folder, if there are any.

    Steps that a resumed run repeats are kept as they were by W&B and are there twice in trackio.
    """
    trackers: list[Tracker] = []
    if use_wandb:
        trackers.append(_Wandb(project, run, settings, folder, resume))
    if use_trackio:
        trackers.append(_Trackio(project, run, settings, folder, resume))
    return trackers


class _Wandb:
    """Logs to Weights & Biases; WANDB_MODE=offline keeps everything in the run's folder."""

    def __init__(self, project: str, run: str, settings: dict[str, Any], folder: Path, resume: bool) -> None:
        self._wandb = _tracker_module("wandb")
        known = _known_name(folder, "wandb") if resume else None
        try:
            self._run = self._wandb.init(
                project=project,
                name=run,
                config=settings,
                dir=str(folder),
                id=known,
                resume="allow" if known else None,
            )
        except self._wandb.Error as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(f"--use_wandb: {reason}; WANDB_MODE=offline keeps the run on this machine") from error
        _keep_name(folder, "wandb", self._run.id)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log(_known_values(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its service would stay until this process ends


class _Trackio:
    """Logs to trackio's folder on this machine (TRACKIO_DIR), or where its own environment variables say."""

    def __init__(self, project: str, run: str, settings: dict[str, Any], folder: Path, resume: bool) -> None:
        self._trackio = _tracker_module("trackio")
        known = _known_name(folder, "trackio") if resume else None
        # trackio resumes by name, so a new run may not share one.
        name = known or self._free_name(project, run)
        with _on_stderr(), _local():
            self._run = self._trackio.init(
                project=project,
                name=name,
                config=settings,
                resume="allow" if known else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        _keep_name(folder, "trackio", name)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log(_known_values(metrics), step=step)

    def finish(self) -> None:
        with _on_stderr():
            self._trackio.finish()

    def _free_name(self, project: str, run: str) -> str:
        try:
            taken = {other.name for other in self._trackio.Api().runs(project)}
        except ValueError:  # the project is new
            return run
        names = [run, *(f"{run}-{number}" for number in range(2, len(taken) + 2))]
        return next(name for name in names if name not in taken)


def _tracker_module(package: str) -> Any:  # noqa: ANN401 - neither has types that survive mypy --strict
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(f"--use_{package} needs {package}: pip install 'steerlift[{package}]'") from error


def _known_values(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is not None}


def _known_name(folder: Path, tracker: str) -> str | None:
    names = read_json(folder / _NAMES_FILE) if (folder / _NAMES_FILE).is_file() else {}
    name: str | None = names.get(tracker)
    return name


def _keep_name(folder: Path, tracker: str, name: str) -> None:
    path = folder / _NAMES_FILE
    write_json(path, {**(read_json(path) if path.is_file() else {}), tracker: name})


def _on_stderr() -> contextlib.AbstractContextManager[Any]:
    # trackio prints what it does; stdout is for results.
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def _local() -> Iterator[None]:
    """Keeps trackio from asking the hub who the user is, which it does even for a run that stays on this machine."""
    from huggingface_hub import constants

    elsewhere = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not elsewhere
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
