"""The options of `steerlift evaluate`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number, check_pass_at_k
from steerlift.records.errors import InputError

Control = Literal["random", "negated", "shuffled", "cooler", "format"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate base, fine-tuned and base + weight x vector on the same problems and the same random numbers."""

    base_model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Base model: hub id or folder."""
    finetuned_checkpoint: str | None = "final_run/checkpoint_step_250"
    """Fine-tuned model: hub id or folder; None: compare with the base alone, as for vectors learned without such a model."""
    steering_vectors_path: Path | None = Path("steering_vectors.json")
    """Vectors of `steerlift extract` (.safetensors or .json); None: the models alone, for instance before there are vectors."""
    output_path: Path = Path("steering_eval_results.json")
    """Results; every completion goes beside it, to <name>.completions.jsonl, from which a killed run goes on."""
    eval_size: int = 20
    """Problems to report on."""
    num_completions_eval: int = 20
    """Completions of each problem and arm."""
    pass_at_k: tuple[int, ...] = (1,)
    """k of pass@k, at most the number of completions; several give a column each, the first is the headline."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    temperature: float = 0.9
    """Sampling temperature; 0 is greedy."""
    seed: int = 7111994
    """Seed of the choice of problems, of sampling and of the intervals."""
    weights: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
    """Steering weights."""
    dev_size: int = 0
    """Choose the best weight on this many development problems, and mark it in the results; 0: choose none."""
    random_control: bool = False
    """Evaluate random vectors of the same norms too: at the chosen weight, or at every weight if none is chosen."""
    controls: tuple[Control, ...] = ()
    """What else might explain a gain, at the chosen weight (or the only one): see steerlift.evaluation.controls."""
    other_vectors: tuple[Path, ...] = ()
    """Vectors of other runs, as controls at the same weight."""
    reuse: tuple[Path, ...] = ()
    """Results of earlier evaluations with the same seed and sampling: what the same models have answered is not asked again."""
    problems: str = "math"
    """math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    few_shot: int = 0
    """Worked training problems shown before each problem, chosen by the seed; give what the model was trained with."""
    split: Literal["test", "dev"] = "test"
    """Which problems to report on."""
    data_dir: str | None = None
    """Folder that holds the problems (math/test.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    engine: Literal["local", "vllm"] = "local"
    """Where to sample: here, or on vLLM servers of `steerlift serve`, base and all weights as one stream of requests."""
    servers: str = "http://127.0.0.1:8000"
    """With --engine vllm: servers of the base model, url,url ...; they share the load."""
    finetuned_servers: str = ""
    """Servers of the fine-tuned model; without them those of the base are lent its weights, on this machine."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16."""
    batch_rows: int | None = None
    """Completions sampled at a time; default: as many as fit in memory."""
    overwrite: bool = False
    """Start over, also where completions of other settings stand at the output path."""

    def __post_init__(self) -> None:
        for name in ("eval-size", "num_completions_eval", "max_completion_length", "batch_rows"):
            check_number(name, getattr(self, name.replace("-", "_")), least=1)
        check_number("temperature", self.temperature, least=0)
        for name in ("dev_size", "few_shot"):
            check_number(name, getattr(self, name), least=0)
        check_pass_at_k(self.pass_at_k, self.num_completions_eval)
        if not self.weights or len(set(self.weights)) < len(self.weights):
            raise InputError(f"--weights {' '.join(map(str, self.weights))}: expected at least one weight, each once")
        for weight in self.weights:
            check_number("weights", weight)
        if self.steering_vectors_path is None:
            self._check_nothing_is_steered()
        if (self.controls or self.other_vectors) and not self.dev_size and len(self.weights) > 1:
            raise InputError("--controls are run at one weight: choose it with --dev_size, or give one with --weights")
        if len(set(self.controls)) < len(self.controls):
            raise InputError(f"--controls {' '.join(self.controls)}: expected each once")
        if self.finetuned_servers and self.finetuned_checkpoint is None:
            raise InputError(f"--finetuned_servers {self.finetuned_servers}: name their model with --finetuned_checkpoint")
        if self.dev_size and self.split == "dev":
            raise InputError("--dev_size with --split dev would choose and report on the same problems; use --split test")

    def _check_nothing_is_steered(self) -> None:
        for name in ("controls", "other_vectors", "random_control", "dev_size"):
            if getattr(self, name):
                raise InputError(f"--{name} is about steered arms: name vectors with --steering_vectors_path, or leave it out")
