"""The options of `steerlift inspect`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError


@dataclass(frozen=True)
class InspectConfig:
    """Look into steering vectors: norms, cosines, the tokens they promote, and where the two models differ most."""

    vectors: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VECTORS")]
    """Vectors (.safetensors or .json)."""
    base_model_name: str | None = None
    """Base model: hub id or folder. Default: the one that the vectors name; where it is not there, only norms and cosines."""
    finetuned_checkpoint: str | None = None
    """Fine-tuned model: hub id or folder. Default: the one that the vectors name; where it is not there, no KL."""
    others: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Vectors of another method or seed: the cosine with them, layer by layer. May be given several times."""
    tokens: int = 8
    """How many tokens to list: promoted and suppressed by each layer, and those where the models differ most."""
    output_path: Path | None = None
    """Where the numbers go, as JSON, and the picture beside them, as .png. Default: <name>.inspect.json beside the vectors."""
    problems: str = "math"
    """math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    split: Literal["train", "dev", "test"] = "dev"
    """Which problems the models answer."""
    num_problems: int = 64
    """Problems that each model answers once: the base for its residual norms, the fine-tuned one for the KL."""
    few_shot: int = 0
    """Worked training problems shown before each problem, chosen by the seed; give what the model was trained with."""
    data_dir: str | None = None
    """Folder that holds the problems (math/train.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    temperature: float = 1.0
    """Sampling temperature of the completions; the KL is that at temperature 1."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    seed: int = 7111994
    """Seed of the choice of problems and of sampling."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16."""
    batch_rows: int | None = None
    """Completions sampled at a time; default: as many as fit in memory."""

    def __post_init__(self) -> None:
        for name in ("tokens", "num_problems", "max_completion_length", "batch_rows"):
            check_number(name, getattr(self, name), least=1)
        for name in ("temperature", "few_shot"):
            check_number(name, getattr(self, name), least=0)
        if self.output_path is not None and self.output_path.suffix != ".json":
            raise InputError(f"--output_path {self.output_path}: expected a name that ends in .json")

    def json_path(self) -> Path:
        """`output_path`, or the default beside the vectors."""
        return self.output_path or self.vectors.with_name(f"{self.vectors.stem}.inspect.json")

    def picture_path(self) -> Path:
        """The picture, beside the numbers."""
        return self.json_path().with_suffix(".png")
