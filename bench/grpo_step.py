"""A GRPO step: ours against the loss of trl's GRPOTrainer, on the same token ids and advantages."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.measure import Way, interleaved, peak_memory, require_close
from bench.setting import Setting
from bench.table import Aim, Row, Section, memory_row, time_row
from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.steering.models import Model, load_model, load_tokenizer
from steerlift.training.batch import StepBatch
from steerlift.training.config import TrainConfig
from steerlift.training.policy_loss import our_loss

TEMPERATURE = 0.9
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


@dataclass(frozen=True)
class Sizes:
    """A step's shape. Lengths are drawn evenly from the given ranges; `vocabulary` None is the embedded model itself."""

    name: str = "embedded model"
    vocabulary: int | None = None
    problems: int = 16
    group: int = 8
    shortest_prompt: int = 12
    longest_prompt: int = 24
    shortest_completion: int = 6
    longest_completion: int = 30
    signal_share: float = 1.0
    seed: int = 0
    repetitions: int = 7


FULL = (
    Sizes(),
    Sizes(
        name="Llama with a vocabulary of 49,152",
        vocabulary=49_152,
        problems=4,
        shortest_prompt=24,
        longest_prompt=48,
        shortest_completion=16,
        longest_completion=112,
        repetitions=3,
    ),
)
QUICK = (
    Sizes(problems=2, group=4, repetitions=2),
    Sizes(name="Llama with a vocabulary of 2,048", vocabulary=2048, problems=2, group=2, longest_completion=16, repetitions=2),
)

Loss = Callable[[], float]
"""Forward and backward of a whole step, gradients added up; returns its loss."""


@dataclass(frozen=True)
class Step:
    """One sampled step: prompts (one per problem) and graded completions."""

    prompts: list[tuple[int, ...]]
    graded: list[GradedProblem]
    sizes: Sizes

    def batch(self) -> StepBatch:
        """Advantages and token weights, as the trainer builds them."""
        return StepBatch.build(self.prompts, self.graded, "dr_grpo", self.sizes.longest_completion, False, keep_all=False)


def run(setting: Setting, cases: tuple[Sizes, ...]) -> Section:
    """Each model: loss and backward, the whole step, and the whole step with half of the groups without signal."""
    rows: list[Row] = []
    differences = []
    for case in cases:
        sizes = Sizes(**{**asdict(case), "seed": setting.seed})
        half = Sizes(**{**asdict(sizes), "signal_share": 0.5})
        differences += [_check(setting.folder, sizes), _check(setting.folder, half)]
        aim = Aim(2) if sizes.vocabulary else None
        rows.append(_timed(setting.folder, sizes, "loss and backward", aim, whole=False))
        rows.append(_timed(setting.folder, sizes, "whole step", aim, whole=True))
        rows.append(_timed(setting.folder, half, "whole step, half of the groups without signal", None, whole=True))
        if setting.memory:
            peaks = [peak_memory("grpo", way, asdict(sizes), setting.folder) for way in ("ours", "trl")]
            rows.append(memory_row(f"GRPO, {sizes.name}: peak memory of loss and backward", peaks[0], _trl_name(), peaks[1]))
    loss, gradient = (max(values) for values in zip(*differences, strict=True))
    agreement = (
        f"losses differ by at most {loss:.0e} and gradients by at most {gradient:.0e} of their largest value, over all "
        "parameters of every model and with half of the groups without signal too (checked in this run; more than "
        f"{LOSS_TOLERANCE:.0e} or {GRADIENT_TOLERANCE:.0e} would stop it)."
    )
    return Section("GRPO step", _text(cases), agreement, rows)


def memory_way(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """Loss and backward once, by `ours` or `trl`, for `bench.peak`."""
    model = build_model(Sizes(**sizes), folder)
    return _loss(way, model, sampled_step(Sizes(**sizes)), folder)


def _text(cases: tuple[Sizes, ...]) -> list[str]:
    shapes = [
        f"{s.name}: {s.problems} groups of {s.group} completions, prompts of {s.shortest_prompt} to {s.longest_prompt} tokens, "
        f"completions of {s.shortest_completion} to {s.longest_completion}, drawn evenly, in micro-batches of one group."
        for s in cases
    ]
    return [
        "One optimizer step of Dr. GRPO on given completions (random tokens; sampling is not part of it), at temperature "
        f"{TEMPERATURE}. Ours is StepBatch and our_loss; the alternative is GRPOTrainer.compute_loss of trl without gradient "
        "checkpointing and with beta 0, on the same ids and advantages, padded as its own sampling leaves them. The whole step "
        "adds clipping the gradient and torch's AdamW to both. On a CPU trl scores every position, prompt and padding included "
        "(with Triton, on a GPU, it scores completion tokens only, as ours does everywhere), and it runs groups without signal "
        "too, which ours skips.",
        *shapes,
        "The Llama has 4 layers of hidden size 192, tied embeddings and random weights.",
    ]


def _trl_name() -> str:
    return f"trl {version('trl')}"


def _timed(folder: Path, sizes: Sizes, what: str, aim: Aim | None, whole: bool) -> Row:
    ways: dict[str, Way] = {}
    for name in ("ours", "trl"):
        model = build_model(sizes, folder)
        loss = _loss(name, model, sampled_step(sizes), folder)
        ways[name] = partial(_step, model, loss, _optimizer(model)) if whole else partial(_backward, model, loss)
    times = interleaved(ways, sizes.repetitions)
    return time_row(f"GRPO, {sizes.name}: {what}", times["ours"], _trl_name(), times["trl"], aim)


def _backward(model: Model, loss: Loss) -> float:
    loss()
    model.zero_grad(set_to_none=True)
    return 1.0


def _step(model: Model, loss: Loss, optimizer: torch.optim.Optimizer) -> float:
    loss()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return 1.0


def _optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-6, betas=(0.9, 0.99), weight_decay=0.1)


def _loss(way: str, model: Model, step: Step, folder: Path) -> Loss:
    return our_step_loss(model, step) if way == "ours" else trl_step_loss(model, step, folder)


def our_step_loss(model: Model, step: Step) -> Loss:
    """As in the trainer: the batch is built, then each micro-batch runs forward and backward."""
    config = TrainConfig(temperature=TEMPERATURE, max_completion_length=step.sizes.longest_completion)
    loss = our_loss(config, model, None)
    model.train()

    def backward() -> float:
        total = 0.0
        for micro_batch in step.batch().micro_batches(step.sizes.group, model.device):
            part, _ = loss(micro_batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        return total

    return backward


def trl_step_loss(model: Model, step: Step, folder: Path) -> Loss:
    """The same by trl: one micro-batch per group, as its trainer would run them with this accumulation."""
    trainer = trl_trainer(model, step.sizes, folder)
    model.train()

    def backward() -> float:
        total = 0.0
        for inputs in trl_inputs(step):
            part = trainer.compute_loss(model, inputs)
            part.backward()
            total += part.item()
        return total

    return backward


def trl_trainer(model: Model, sizes: Sizes, folder: Path) -> Any:
    """A GRPOTrainer that never samples: only its loss is called."""
    # Imported here: trl takes seconds to import, and the measurement of our memory should not hold it.
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    # The trainer wants a folder of its own, into which nothing is written here.
    with TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=sizes.group,
            gradient_accumulation_steps=sizes.problems,
            num_generations=sizes.group,
            max_completion_length=sizes.longest_completion,
            temperature=TEMPERATURE,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "never sampled"}]),
            processing_class=load_tokenizer(str(folder)),
        )
    # Its train() sets this before the first step.
    trainer.current_gradient_accumulation_steps = sizes.problems
    return trainer


def trl_inputs(step: Step) -> Iterator[dict[str, Tensor]]:
    """What trl's sampling hands to its loss: prompts padded on the left, completions on the right, to the step's longest."""
    batch = step.batch()
    prompts_BT, prompt_mask_BT = _padded([p[::-1] for p in batch.prompts])
    completions_BT, mask_BT = _padded(batch.completions)
    for start in range(0, len(batch.completions), step.sizes.group):
        rows = slice(start, start + step.sizes.group)
        yield {
            "prompt_ids": prompts_BT[rows].flip(1),
            "prompt_mask": prompt_mask_BT[rows].flip(1),
            "completion_ids": completions_BT[rows],
            "completion_mask": mask_BT[rows],
            "advantages": batch.advantages_B[rows],
        }


def _padded(rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def build_model(sizes: Sizes, folder: Path) -> Model:
    """The embedded model, or a random Llama with the asked vocabulary."""
    torch.manual_seed(sizes.seed)
    if sizes.vocabulary is None:
        return load_model(str(folder), torch.device("cpu"), torch.float32)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=512,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def sampled_step(sizes: Sizes) -> Step:
    """Random prompts and completions; in a group with signal about half of the answers are right, in others all are."""
    rng = random.Random(sizes.seed)
    largest = (sizes.vocabulary or 400) - 1

    def ids(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(rng.randint(3, largest) for _ in range(rng.randint(shortest, longest)))

    graded = []
    for index in range(sizes.problems):
        signal = index < sizes.signal_share * sizes.problems
        right = [place < sizes.group // 2 or not signal for place in range(sizes.group)]
        rng.shuffle(right)
        texts = [ids(sizes.shortest_completion, sizes.longest_completion) for _ in right]
        graded.append(
            GradedProblem(
                Problem(problem=f"problem {index}", answer="1"),
                prompt="",
                completions=tuple(Completion(text, (), "", truncated=False) for text in texts),
                grades=tuple(Grade("1", format_ok=True, correct=correct, lenient_correct=correct) for correct in right),
            )
        )
    return Step([ids(sizes.shortest_prompt, sizes.longest_prompt) for _ in graded], graded, sizes)


def _check(folder: Path, sizes: Sizes) -> tuple[float, float]:
    """The differences of loss and of gradients, as shares of their largest value. Raises DifferentResultsError."""
    results = []
    for way in ("ours", "trl"):
        model = build_model(sizes, folder)
        loss = _loss(way, model, sampled_step(sizes), folder)()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((torch.tensor([loss]), torch.cat(gradients)))
    (our_loss_, our_gradient), (their_loss, their_gradient) = results
    return (
        require_close(f"loss, {sizes.name}", our_loss_, their_loss, LOSS_TOLERANCE),
        require_close(f"gradients, {sizes.name}", our_gradient, their_gradient, GRADIENT_TOLERANCE),
    )
