"""The options of `steerlift learn`: those of training, with other defaults, and a few of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError
from steerlift.training.config import TrainConfig

_OTHERS = {"sft_steps": 0, "lora_r": 0, "lora_alpha": None, "use_liger": False, "beta": 0.0}


@dataclass(frozen=True)
class LearnConfig(TrainConfig):
    """Learn steering vectors by gradient descent: one vector per decoder layer, the model's own weights stay as they are."""

    model_name: Annotated[str, tyro.conf.arg(aliases=["--base-model-name"])] = "Qwen/Qwen2.5-7B-Instruct"
    """Base model to steer: hub id or folder."""
    objective: Literal["distill", "grpo"] = "distill"
    """distill: be like the fine-tuned model on its own completions (KL); grpo: earn rewards, no fine-tuned model needed."""
    finetuned_checkpoint: str | None = None
    """The fine-tuned model to learn from, with distill: hub id or folder."""
    finetuned_completions: int = 2
    """Completions of each problem that the fine-tuned model writes, once, with distill."""
    finetuned_temperature: float | None = None
    """Temperature of its completions and of the distributions to learn, with distill; default: --temperature."""
    reuse: Path | None = None
    """Vectors of an extraction from the same fine-tuned model: the completions beside them are not sampled again."""
    start_vectors: Path | None = None
    """Vectors to begin with (.safetensors or .json), from extract or learn; default: zero."""
    start_weight: float = 1.0
    """The weight at which they are taken."""
    layers: str = ""
    """Decoder layers that get a vector: 0-9,12 for instance; default: all."""

    output_dir: Path = Path("learned_vectors")
    """Run directory; the vectors go to vectors.safetensors in it."""
    train_size: int = 1000
    """Training problems to draw from; fewer if there are fewer."""
    eval_split: Literal["test", "dev"] = "dev"
    """Which problems these are; the test problems are best left to steerlift evaluate."""
    num_train_iters: int = 200
    """Steps; each is one update of the vectors."""
    gradient_accumulation_steps: int = 8
    """Problems of one step."""
    learning_rate: float = 0.01
    """Peak learning rate, in units of the size of each layer's activations."""
    adam_beta2: float = 0.99
    """Adam's second beta."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    sft_steps: tyro.conf.Suppress[int] = 0
    sft_batch: tyro.conf.Suppress[int] = 8
    sft_learning_rate: tyro.conf.Suppress[float] = 2e-5
    lora_r: tyro.conf.Suppress[int] = 0
    lora_alpha: tyro.conf.Suppress[float | None] = None
    use_liger: tyro.conf.Suppress[bool] = False
    beta: tyro.conf.Suppress[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("finetuned_completions", self.finetuned_completions, least=1)
        check_number("finetuned_temperature", self.finetuned_temperature, above=0)
        check_number("start_weight", self.start_weight)
        for name, value in _OTHERS.items():
            if getattr(self, name) != value:
                raise InputError(f"--{name} is about a model's weights, which `steerlift learn` leaves alone; leave it out")
        if self.objective == "distill" and self.finetuned_checkpoint is None:
            raise InputError(
                "--objective distill learns from a fine-tuned model; name it with --finetuned_checkpoint, "
                "or take --objective grpo, which needs none"
            )
        if self.objective == "grpo" and self.reuse is not None:
            raise InputError(f"--reuse {self.reuse}: --objective grpo learns from no fine-tuned model; leave it out")
        if self.objective == "grpo" and self.finetuned_checkpoint is not None:
            raise InputError("--objective grpo learns from rewards alone; leave --finetuned_checkpoint out, or take distill")

    @property
    def subject(self) -> str:  # noqa: D102 - see TrainConfig
        return "steering vectors for"

    @property
    def teacher_temperature(self) -> float:
        """The temperature at which the fine-tuned model is learned from."""
        return self.temperature if self.finetuned_temperature is None else self.finetuned_temperature
