"""The options of `steerlift plot`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steerlift.records.errors import InputError


@dataclass(frozen=True)
class PlotConfig:
    """Draw results of `evaluate` (pass@k against the steering weight), or the curves of a run of `train`: one of the two."""

    results_path: Path | None = None
    """Results of `steerlift evaluate` (steering_eval_results.json): draw pass@k against the steering weight."""
    output_path: Path | None = None
    """Where the picture goes; .png, .svg or .pdf by its ending. Default: plots/steering_results.png, or
    training_curves.png in the run directory."""
    theme: Literal["christmas", "plain"] = "christmas"
    """Colours and decorations."""
    title: str | None = None
    """Title of the picture; by default one that names the score or the run."""
    run_dir: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN_DIR]")] = None
    """A run directory of `steerlift train`: draw its training curves."""

    def __post_init__(self) -> None:
        if self.run_dir is not None and self.results_path is not None:
            raise InputError(
                f"got run {self.run_dir} and --results-path {self.results_path}: a picture shows one; leave one out"
            )
        if self.run_dir is None and self.results_path is None:
            raise InputError("nothing to draw: expected a run directory of `train`, or --results-path of `evaluate`; give one")

    def picture_path(self) -> Path:
        """`output_path`, or the default for what is drawn."""
        if self.output_path is not None:
            return self.output_path
        return Path("plots/steering_results.png") if self.run_dir is None else self.run_dir / "training_curves.png"
