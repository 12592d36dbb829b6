"""The options of `steerlift extract`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError
from steerlift.records.runs import completions_path

TokenChoice = Literal["completion", "prompt", "last"]
Method = Literal["mean_difference", "increments"]


@dataclass(frozen=True)
class ExtractConfig:
    """Build steering vectors: mean activations of the fine-tuned model less those of the base, per decoder layer."""

    base_model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Base model: hub id or folder."""
    finetuned_checkpoint: str = "final_run/checkpoint_step_250"
    """Fine-tuned model: hub id or folder."""
    output_path: Path = Path("steering_vectors.json")
    """Vectors, by the ending: .safetensors (with metadata) or .json (the original's). Norms go to <name>.info.json."""
    train_size: int = 1000
    """Training problems to draw."""
    max_examples: int | None = None
    """Use only the first so many of them; default: all."""
    seed: int = 7111994
    """Seed of the choice of problems and of sampling."""
    tokens: TokenChoice = "completion"
    """Which tokens to average: those of the fine-tuned model's completions, all of the prompt (the original), or its last."""
    method: Method = "mean_difference"
    """increments: each layer's mean difference less that of the layer below."""
    include_first_position: bool = False
    """Average position 0 too, whose huge norm (attention sink) hides the rest in many models."""
    temperature: float = 1.0
    """Sampling temperature of the completions."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    reuse: Path | None = None
    """Vectors of an earlier extraction from the same fine-tuned model: the completions beside them are not sampled again."""
    problems: str = "math"
    """math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    few_shot: int = 0
    """Worked training problems shown before each problem, chosen by the seed; give what the model was trained with."""
    data_dir: str | None = None
    """Folder that holds the problems (math/train.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16."""
    batch_rows: int | None = None
    """Completions sampled at a time; default: as many as fit in memory."""

    def __post_init__(self) -> None:
        for name in ("train-size", "max_examples", "max_completion_length", "batch_rows"):
            check_number(name, getattr(self, name.replace("-", "_")), least=1)
        for name in ("temperature", "few_shot"):
            check_number(name, getattr(self, name), least=0)
        if self.output_path.suffix not in (".json", ".safetensors"):
            raise InputError(f"--output_path {self.output_path}: expected a name that ends in .safetensors or .json")
        if self.reuse is not None and self.tokens != "completion":
            raise InputError(f"--reuse {self.reuse}: --tokens {self.tokens} needs no completions; leave it out")
        if self.reuse is not None and completions_path(self.reuse).resolve() == completions_path(self.output_path).resolve():
            raise InputError(f"--reuse {self.reuse} has the completions of --output_path itself; name another place")
