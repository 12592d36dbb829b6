"""The options of `steerlift choose`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError


@dataclass(frozen=True)
class ChooseConfig:
    """Choose training problems that a model solves sometimes, but not always: the others give GRPO nothing to learn from."""

    model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Model that will be trained: hub id or folder."""
    problems: str = "math"
    """math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    data_dir: str | None = None
    """Folder that holds the problems (math/train.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=["--output-path"])] = Path("chosen_problems")
    """Folder for the problems, which every other command takes as --problems; every completion is kept in it too."""
    levels: tuple[int, ...] = ()
    """Only problems of these levels; default: all."""
    subjects: tuple[str, ...] = ()
    """Only problems of these subjects; default: all."""
    train_size: int = 1000
    """Training problems to answer; fewer if there are fewer."""
    test_size: int | None = None
    """Test problems to write at least: training problems join the test split where it has fewer; default: that split alone."""
    success: tuple[float, float] = (0.1, 0.9)
    """Choose those of whose completions at least and at most these shares are right."""
    num_completions: int = 8
    """Completions of each training problem; 0 asks the model nothing and chooses by level and subject alone."""
    temperature: float = 0.9
    """Sampling temperature; 0 is greedy, with one completion of each problem."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    few_shot: int = 0
    """Worked training problems shown before each problem; they are kept in the folder, for every later --few_shot."""
    seed: int = 7111994
    """Seed of the choice of problems and of sampling."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16."""
    batch_rows: int | None = None
    """Completions sampled at a time; default: as many as fit in memory."""
    overwrite: bool = False
    """Start over, also where completions of other settings stand in the output folder."""

    def __post_init__(self) -> None:
        for name in ("train_size", "test_size", "max_completion_length", "batch_rows"):
            check_number(name, getattr(self, name), least=1)
        for name in ("num_completions", "temperature", "few_shot"):
            check_number(name, getattr(self, name), least=0)
        low, high = self.success
        for share in self.success:
            check_number("success", share, least=0, most=1)
        if low > high:
            raise InputError(f"--success {low} {high}: expected the lowest share first, then the highest")

    @property
    def completions(self) -> int:
        """Completions that are sampled of each problem: greedy ones would all be the same."""
        return self.num_completions if self.temperature else min(1, self.num_completions)
