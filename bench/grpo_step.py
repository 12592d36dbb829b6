"""A GRPO step: ours against the loss of trl's GRPOTrainer, on the same token ids and advantages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.grpo_case import TEMPERATURE, Sizes, build_model, sampled_step
from bench.grpo_losses import TRL, Loss, step_loss
from bench.measure import OURS, Way, interleaved, peak_memory, require_close
from bench.setting import Setting
from bench.table import Aim, Row, Section, memory_row, time_row
from steerlift.steering.models import Model

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4

FULL = (
    Sizes(),
    Sizes(
        name="vocabulary 49,152",
        vocabulary=49_152,
        problems=2,
        prompt_tokens=(16, 32),
        completion_tokens=(8, 64),
        repetitions=3,
    ),
)
QUICK = (Sizes(problems=2, group=4, repetitions=1),)


def run(setting: Setting, cases: Sequence[Sizes]) -> Section:
    """Each model: loss and backward, the whole step, and the whole step with half of the groups without signal."""
    rows: list[Row] = []
    differences = []
    for case in cases:
        sizes = replace(case, seed=setting.seed)
        aim = setting.aim(2) if sizes.vocabulary else None
        all_signal = Sides(sizes, setting.folder)
        half_signal = Sides(replace(sizes, signal_share=0.5), setting.folder)
        differences += [all_signal.check(), half_signal.check()]
        rows += [
            all_signal.row("loss and backward", _loss_and_backward, aim),
            all_signal.row("whole step", _whole_step, aim),
            half_signal.row("whole step, half of the groups without signal", _whole_step, None),
        ]
        if setting.full:
            ours, theirs = (peak_memory("grpo", way, asdict(sizes), setting.folder) for way in (OURS, TRL))
            rows.append(memory_row(f"GRPO, {sizes.name}: peak memory of loss and backward", ours, TRL, theirs))
    loss, gradient = (max(values) for values in zip(*differences, strict=True))
    agreement = (
        f"losses differ by at most {loss:.0e} and gradients by at most {gradient:.0e} of their largest value, over all "
        "parameters of every model and with half of the groups without signal too (checked in this run; more than "
        f"{LOSS_TOLERANCE:.0e} or {GRADIENT_TOLERANCE:.0e} would stop it)."
    )
    return Section("GRPO step", _text(cases), agreement, rows)


def memory_way(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """Loss and backward once, by OURS or TRL, for `bench.peak`."""
    case = Sizes(**sizes)
    return step_loss(way, build_model(case, folder), sampled_step(case), folder)


class Sides:
    """The same model and the same step for each side."""

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self.sizes = sizes
        self.models = {way: build_model(sizes, folder) for way in (OURS, TRL)}
        self.losses = {way: step_loss(way, model, sampled_step(sizes), folder) for way, model in self.models.items()}

    def check(self) -> tuple[float, float]:
        """The differences of loss and of gradients, as shares of their largest value. Raises DifferentResultsError."""
        losses, gradients = [], []
        for way, model in self.models.items():
            losses.append(torch.tensor([self.losses[way]()]))
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            model.zero_grad(set_to_none=True)
        return (
            require_close(f"loss, {self.sizes.name}", losses[0], losses[1], LOSS_TOLERANCE),
            require_close(f"gradients, {self.sizes.name}", gradients[0], gradients[1], GRADIENT_TOLERANCE),
        )

    def row(self, what: str, make_way: Callable[[Model, Loss], Way], aim: Aim | None) -> Row:
        """Times what `make_way` makes of each side; `check` has warmed both up."""
        ways = {way: make_way(model, self.losses[way]) for way, model in self.models.items()}
        times = interleaved(ways, self.sizes.repetitions, warm=True)
        return time_row(f"GRPO, {self.sizes.name}: {what}", times[OURS], TRL, times[TRL], aim)


def _loss_and_backward(model: Model, loss: Loss) -> Way:
    def once() -> float:
        loss()
        model.zero_grad(set_to_none=True)
        return 1.0

    return once


def _whole_step(model: Model, loss: Loss) -> Way:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6, betas=(0.9, 0.99), weight_decay=0.1)

    def once() -> float:
        loss()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return 1.0

    return once


def _text(cases: Sequence[Sizes]) -> list[str]:
    shapes = [
        f"{s.name}: {s.problems} groups of {s.group} completions, prompts of {s.prompt_tokens[0]} to {s.prompt_tokens[1]} "
        f"tokens and completions of {s.completion_tokens[0]} to {s.completion_tokens[1]}, drawn evenly"
        for s in cases
    ]
    return [
        "One optimizer step of Dr. GRPO on given completions (random tokens; sampling is not part of it), at temperature "
        f"{TEMPERATURE}. Ours is StepBatch and our_loss; the alternative is GRPOTrainer.compute_loss of {TRL} without gradient "
        "checkpointing and with beta 0, on the same ids and advantages, padded as its own sampling leaves them. The whole step "
        "adds clipping the gradient and torch's AdamW to both. On a CPU trl scores every position, prompt and padding included "
        "(with Triton, on a GPU, it scores completion tokens only, as ours does everywhere), and it runs groups without signal "
        "too, which ours skips.",
        f"Micro-batches of one group. {'; '.join(shapes)}. The models with a named vocabulary are Llamas of 4 layers, hidden "
        "size 192 and tied embeddings with random weights.",
    ]
