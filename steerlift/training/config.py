"""The options of `steerlift train`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number, check_pass_at_k
from steerlift.records.errors import InputError

MATH_REWARD = "steerlift.scoring.rewards:math_reward"

_COUNTS = (
    "train_size",
    "eval_size",
    "sft_batch",
    "gradient_accumulation_steps",
    "num_iterations",
    "micro_batch_size",
    "max_prompt_length",
    "max_completion_length",
    "eval_every",
    "num_completions_eval",
    "eval_max_completion_length",
    "save_every",
    "keep_checkpoints",
    "batch_rows",
)


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a causal language model on problems with GRPO."""

    model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Model to train: hub id or folder."""
    output_dir: Path = Path("final_baseline")
    """Run directory: checkpoints, logs, completions."""
    resume: bool = False
    """Go on with the run in the output folder from its last checkpoint."""
    overwrite: bool = False
    """Delete the run in the output folder and start over."""
    problems: str = "math"
    """math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    data_dir: str | None = None
    """Folder that holds the problems (math/train.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    train_size: int = 12000
    """Training problems to draw from; fewer if there are fewer."""
    eval_size: int = 20
    """Problems of the evaluations during training."""
    eval_split: Literal["test", "dev"] = "test"
    """Which problems these are; take dev where you will choose a checkpoint by them."""
    few_shot: int = 0
    """Worked training problems shown before each problem. Give every later command the same number."""
    seed: int = 7111994
    """Seed of problems, their order and sampling."""

    sft_steps: int = 0
    """Supervised steps on worked solutions before GRPO, for models that never use the tags; saved as checkpoint_step_0."""
    sft_batch: int = 8
    """Worked solutions of one supervised step."""
    sft_learning_rate: float = 2e-5
    """Peak learning rate of the supervised steps."""

    num_train_iters: int = 1000
    """Steps; each samples one batch and updates the weights from it. 0, with --sft_steps: the warm-up alone."""
    gradient_accumulation_steps: int = 4
    """Problems of one step; all are sampled in one batch."""
    num_iterations: int = 1
    """Updates of the weights from each batch; the ratio to the policy that sampled it is clipped from the second on."""
    num_chains: int = 8
    """Completions of each problem (the group)."""
    micro_batch_size: int | None = None
    """Completions of one forward and backward pass; default: num_chains. Lower it when memory runs out."""
    learning_rate: float = 5e-6
    """Peak learning rate."""
    warmup_percent: float = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    final_lr_percent: float = 0.1
    """The learning rate falls linearly to this share of its peak; 1 keeps it constant after the warm-up."""
    adam_beta1: float = 0.9
    """AdamW's first beta."""
    adam_beta2: float = 0.99
    """AdamW's second beta."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    max_grad_norm: float = 0.1
    """Gradients are scaled down to this norm."""

    temperature: float = 0.9
    """Sampling temperature; every logprob is taken at it."""
    max_prompt_length: int = 256
    """Problems with longer prompts are left out."""
    max_completion_length: int = 512
    """Most tokens of a completion; the constant denominator of Dr. GRPO."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo"] = "dr_grpo"
    """How token losses are weighted: see steerlift.training.grpo.token_weights."""
    rewards: tuple[str, ...] = (MATH_REWARD,)
    """Reward functions, package.module:function, summed; each takes a GradedProblem and returns a number per completion."""
    scale_rewards: bool = False
    """Divide advantages by the group's standard deviation."""
    mask_truncated: bool = False
    """Leave completions that the length limit cut off out of the loss (they still count in their group's mean)."""
    epsilon_low: float = 0.2
    """The ratio is clipped below at 1 - epsilon_low."""
    epsilon_high: float | None = None
    """The ratio is clipped above at 1 + epsilon_high; default: epsilon_low."""
    beta: float = 0.0
    """Weight of the KL to the model that GRPO started from; 0 keeps no copy of it."""
    use_liger: bool = False
    """Compute the loss with liger-kernel's fused GRPO loss instead of ours."""

    lora_r: int = 0
    """Train low-rank adapters of this rank on every linear layer instead of the weights (pip install steerlift[lora])."""
    lora_alpha: float | None = None
    """The adapters count lora_alpha / lora_r times; default: twice the rank."""

    eval_every: int = 50
    """Evaluate at step 0, every so many steps, and at the end."""
    num_completions_eval: int = 20
    """Completions of each evaluation problem."""
    pass_at_k: tuple[int, ...] = (1,)
    """k of pass@k; several give several scores, the first is the headline."""
    eval_temperature: float | None = None
    """Sampling temperature of evaluations; default: that of training."""
    eval_max_completion_length: int | None = None
    """Most tokens of an evaluation's completion; default: that of training."""
    save_every: int = 50
    """Save a checkpoint every so many steps, and at the end."""
    keep_checkpoints: int | None = None
    """Keep only the last so many checkpoints (and that of step 0); default: all. Only the last can be resumed from."""

    use_vllm: bool = False
    """Sample on a vLLM server, started with `steerlift serve` on this machine; it is given the weights after every step."""
    vllm_host: str = "localhost"
    """Host of the vLLM server: this machine."""
    vllm_port: int = 8000
    """Port of the vLLM server."""
    vllm_patience: float = 1800.0
    """Seconds to wait for a server that does not answer before the run stops, resumable."""
    importance_cap: float = 2.0
    """With --use_vllm, weigh tokens by how much likelier they are here than at the server, at most this; 0 does not."""
    use_wandb: bool = False
    """Log to Weights & Biases too (pip install steerlift[wandb])."""
    use_trackio: bool = False
    """Log to trackio, on this machine, too (pip install steerlift[trackio])."""
    wandb_project: str = "nano-grpo"
    """Project there."""
    wandb_run: str = "run"
    """Name of the run there."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """float32, bfloat16, or mixed (bfloat16 autocast over float32 weights); auto: bfloat16 on CUDA, mixed on a CPU that has
    bfloat16 instructions, else float32."""
    attention: str = "auto"
    """flash_attention_2, sdpa or eager; auto: flash_attention_2 where it is installed and the model is on a GPU, else sdpa."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    batch_rows: int | None = None
    """Completions sampled at a time; default: as many as fit in memory."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_number(name, getattr(self, name), least=1)
        check_number("num_train_iters", self.num_train_iters, least=0 if self.sft_steps else 1)
        for name in (
            "few_shot",
            "sft_steps",
            "lora_r",
            "weight_decay",
            "beta",
            "epsilon_low",
            "epsilon_high",
            "eval_temperature",
        ):
            check_number(name, getattr(self, name), least=0)
        for name in ("temperature", "learning_rate", "sft_learning_rate", "max_grad_norm", "lora_alpha"):
            check_number(name, getattr(self, name), above=0)
        for name in ("adam_beta1", "adam_beta2"):
            check_number(name, getattr(self, name), least=0, below=1)
        for name in ("warmup_percent", "final_lr_percent"):
            check_number(name, getattr(self, name), least=0, most=1)
        check_number("num_chains", self.num_chains, least=2)
        check_number("vllm_patience", self.vllm_patience, above=0)
        check_number("importance_cap", self.importance_cap, least=0)
        check_pass_at_k(self.pass_at_k, self.num_completions_eval)
        if self.gradient_accumulation_steps > self.train_size:
            raise InputError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps} with --train-size {self.train_size}: "
                "a step cannot take more problems than there are"
            )
        if self.resume and self.overwrite:
            raise InputError("--resume goes on with a run and --overwrite deletes it; give one of them")
        if not self.rewards:
            raise InputError(f"--rewards: expected at least one package.module:function, such as {MATH_REWARD}")

    @property
    def subject(self) -> str:
        """What is trained, before the model's name."""
        return "adapters of" if self.lora_r else "the weights of"
