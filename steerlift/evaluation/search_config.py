"""The options of `steerlift search`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number, check_pass_at_k
from steerlift.records.errors import InputError
from steerlift.steering.layer_ranges import parse_runs

LayerGroup = tuple[int, ...]


@dataclass(frozen=True)
class SearchConfig:
    """Search vectors, weights and layers on development problems by Optuna, then evaluate the winner once on test problems."""

    base_model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Base model: hub id or folder."""
    finetuned_checkpoint: str = "final_run/checkpoint_step_250"
    """Fine-tuned model: hub id or folder."""
    vectors: tuple[Path, ...] = ()
    """Vectors to choose among (.safetensors or .json); none: extract one for each of --tokens with each of --methods."""
    tokens: tuple[str, ...] = ("completion",)
    """Without --vectors: which tokens to average, as in `steerlift extract --tokens`."""
    methods: tuple[str, ...] = ("mean_difference", "increments")
    """Without --vectors: as in `steerlift extract --method`."""
    train_size: int = 1000
    """Without --vectors: training problems to extract from."""
    output_dir: Path = Path("search")
    """Folder of the search: trials, completions, candidates, the winner, its test results and pictures."""
    resume: bool = False
    """Go on with the search in the output folder; with a higher --trials it becomes longer."""
    overwrite: bool = False
    """Delete the search in the output folder and start over."""

    groups: int = 1
    """Cut the layers into so many equal runs, each with a weight of its own."""
    layer_groups: str = ""
    """Layer groups of your own instead, such as 0-9,10-19,20-29; layers in none of them are not steered."""
    choose_layers: bool = False
    """Search the first and the last layer to steer too."""
    weight_range: tuple[float, float] = (0.0, 2.0)
    """Lowest and highest weight."""
    trials: int = 40
    """Trials: each is a choice of vectors, weights and layers."""
    sampler: Literal["tpe", "gp"] = "tpe"
    """How Optuna chooses: tree-structured Parzen estimators or a Gaussian process."""
    dev_size: int = 100
    """Development problems that trials are judged on."""
    rungs: int = 3
    """Successive halving: a trial is judged on a quarter, half and all of the problems (3 rungs), and stopped at a rung
    where it is not in the better half; 1 judges every trial on all."""

    eval_size: int = 200
    """Test problems that the winner is evaluated on."""
    num_completions_eval: int = 4
    """Completions of each problem."""
    pass_at_k: int = 1
    """k of the pass@k that is searched for."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    temperature: float = 0.9
    """Sampling temperature; 0 is greedy."""
    seed: int = 7111994
    """Seed of the choice of problems, of sampling (the same random numbers in every trial) and of Optuna."""
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
        for name in ("train-size", "groups", "trials", "rungs", "dev_size", "eval-size", "max_completion_length", "batch_rows"):
            check_number(name, getattr(self, name.replace("-", "_")), least=1)
        for name in ("temperature", "few_shot"):
            check_number(name, getattr(self, name), least=0)
        check_number("num_completions_eval", self.num_completions_eval, least=1)
        check_pass_at_k([self.pass_at_k], self.num_completions_eval)
        for weight in self.weight_range:
            check_number("weight_range", weight)
        if self.weight_range[0] >= self.weight_range[1]:
            low, high = self.weight_range
            raise InputError(f"--weight_range {low} {high}: expected the lowest weight, then a higher one")
        if len(set(self.vectors)) < len(self.vectors):
            raise InputError(f"--vectors {' '.join(map(str, self.vectors))}: expected each file once")
        if not self.vectors and not (self.tokens and self.methods):
            raise InputError("nothing to choose among: expected --vectors, or --tokens and --methods to extract them")
        check_rungs(self.rungs, self.dev_size)
        parse_runs(self.layer_groups, "--layer_groups")
        if self.layer_groups and self.groups > 1:
            raise InputError("--groups cuts the layers and --layer_groups names them; give one of them")
        if self.resume and self.overwrite:
            raise InputError("--resume goes on with a search and --overwrite deletes it; give one of them")

    @property
    def search_path(self) -> Path:
        """The trials."""
        return self.output_dir / "search.json"

    @property
    def trials_path(self) -> Path:
        """What the completions of the trials stand beside."""
        return self.output_dir / "trials.json"

    @property
    def best_path(self) -> Path:
        """The winner's vectors."""
        return self.output_dir / "best.safetensors"

    @property
    def results_path(self) -> Path:
        """The winner's test results."""
        return self.output_dir / "results.json"


def check_rungs(rungs: int, problems: int) -> None:
    """Raises InputError when so many problems cannot be halved often enough."""
    if problems < 2 ** (rungs - 1):
        raise InputError(
            f"--rungs {rungs} with {problems} development problems: expected at least {2 ** (rungs - 1)}; "
            "lower --rungs or raise --dev_size"
        )


def rung_sizes(rungs: int, problems: int) -> list[int]:
    """How many problems a trial has been judged on after each rung: 25, 50, 100."""
    return [problems // 2**halvings for halvings in reversed(range(rungs))]
