"""The options of `steerlift plot`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class PlotConfig:
    """Draw pass@k against the steering weight, with the base and the fine-tuned model beside it."""

    results_path: Path
    """Results of `steerlift evaluate` (steering_eval_results.json)."""
    output_path: Path = Path("plots/steering_results.png")
    """Where the picture goes; .png, .svg or .pdf by its ending."""
    theme: Literal["christmas", "plain"] = "christmas"
    """Colours and decorations."""
    title: str | None = None
    """Title of the picture; by default one that names the score."""
