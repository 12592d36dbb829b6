"""What every benchmark is handed: the models, the seed, and whether this is more than a trial."""

from dataclasses import dataclass
from pathlib import Path

from bench.table import Aim, Direction
from steerlift.training.checkpoints import save_checkpoint
from steerlift.training.embedded import EmbeddedRecipe, embedded_base, embedded_model, embedded_tokenizer


@dataclass(frozen=True)
class Setting:
    """`folder` holds the embedded base model, an ordinary Hugging Face folder, `smollm2` SmolLM2-135M-Instruct if it is there;
    `full` measures memory and judges the aims."""

    folder: Path
    seed: int
    full: bool = True
    smollm2: Path | None = None

    def aim(self, bound: float, direction: Direction = "at least") -> Aim | None:
        """The aim, which only the full sizes can be judged by."""
        return Aim(bound, direction) if self.full else None


def trained_model() -> Path:
    """The embedded base model of the demo: from its cache, or trained now."""
    return embedded_base(EmbeddedRecipe())


def untrained_model(folder: Path) -> Path:
    """The same model before its training, saved in `folder`: for trials, which should wait for nothing."""
    recipe = EmbeddedRecipe()
    tokenizer = embedded_tokenizer(recipe)
    return save_checkpoint(folder, embedded_model(recipe, tokenizer), tokenizer)
