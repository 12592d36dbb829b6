"""The options of `steerlift demo`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """The whole pipeline on the embedded model: no download, no GPU, a few minutes."""

    output_dir: Path = Path("runs/demo")
    """Where models, vectors, results, figure and summary go; an earlier demo there is replaced."""
    seed: int = 0
    """Seed of everything: the embedded base model, GRPO, vectors, evaluation."""
    fresh: bool = False
    """Train the embedded base model anew instead of taking it from the cache."""
