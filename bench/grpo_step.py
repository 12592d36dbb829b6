"""A GRPO step, split into generation, loss and update: ours against trl's GRPOTrainer, on the same prompts and token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.grpo_case import (
    LONG_PROMPTS,
    SHORT_PROMPTS,
    TEMPERATURE,
    Sizes,
    build_model,
    build_tokenizer,
    described,
    sampled_step,
)
from bench.grpo_case import smollm2 as smollm2_sizes
from bench.grpo_ours import Ours
from bench.grpo_trl import TRL, Trl
from bench.measure import OURS, SAME_SHARE, Times, Way, interleaved, peak_memory, require_close, require_same_tokens, total
from bench.setting import Setting
from bench.table import Aim, Row, Section, memory_row, time_row
from steerlift.steering.models import Model

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
GENERATION, LOSS, UPDATE = "generation", "loss and backward", "clipping and AdamW"

FULL = (Sizes(), SHORT_PROMPTS, LONG_PROMPTS)
QUICK = (Sizes(problems=2, group=4, repetitions=1),)

Side = Ours | Trl
Check = tuple[str, float, float]
"""How many greedy completions are the same, in words; the differences of loss and of gradients as shares of the largest."""


def run(setting: Setting, cases: Sequence[Sizes]) -> Section:
    """Each model: generation, loss, the whole step, the loss with half of the groups without signal, and peak memory."""
    if setting.smollm2 is not None:
        case = smollm2_sizes(setting.smollm2)
        cases = (*cases, case if setting.full else replace(case, group=2, completion_tokens=(4, 8), repetitions=1))
    rows: list[Row] = []
    checks: list[Check] = []
    shapes = []
    for case in cases:
        sizes = replace(case, seed=setting.seed)
        shape, more_checks, times = _times(sizes, setting)
        shapes.append(shape)
        checks += more_checks
        rows += [*times, *(_peaks(sizes, setting) if setting.full else [])]
    return Section("GRPO step", _text(shapes, setting.smollm2 is not None), _agreement(checks), rows)


def _times(sizes: Sizes, setting: Setting) -> tuple[str, list[Check], list[Row]]:
    """What was measured in words, how far the sides agree, and the times."""
    name, aim = f"GRPO, {sizes.name}", _aim(sizes, setting)
    sides = Sides(sizes, setting.folder)
    checks = [sides.check()]
    ours, theirs = sides.phases()
    rows = [
        time_row(f"{name}: {GENERATION}", ours[GENERATION], TRL, theirs[GENERATION]),
        time_row(f"{name}: {LOSS}", ours[LOSS], TRL, theirs[LOSS], aim),
        time_row(f"{name}: whole step", total(ours.values()), TRL, total(theirs.values()), aim),
    ]
    if sizes.saved is None:
        half_signal = Sides(replace(sizes, signal_share=0.5), setting.folder)
        checks.append(half_signal.check())
        times = half_signal.losses()
        rows.append(time_row(f"{name}: {LOSS}, half of the groups without signal", times[OURS], TRL, times[TRL]))
    return _shape(sizes, sides.sides[OURS].model), checks, rows


def _peaks(sizes: Sizes, setting: Setting) -> list[Row]:
    rows = []
    for benchmark, what in (("grpo loss", LOSS), ("grpo steps", "two whole steps")):
        ours, theirs = (peak_memory(benchmark, way, asdict(sizes), setting.folder) for way in (OURS, TRL))
        rows.append(memory_row(f"GRPO, {sizes.name}: peak memory of {what}", ours, TRL, theirs, _aim(sizes, setting)))
    return rows


def _aim(sizes: Sizes, setting: Setting) -> Aim | None:
    """Only at a vocabulary as large as those of pre-trained models."""
    return setting.aim(2) if sizes.vocabulary else None


def memory_of_loss(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """Loss and backward once, by OURS or TRL, for `bench.peak`."""
    return build_side(way, Sizes(**sizes), folder).loss


def memory_of_steps(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """Two whole steps, so that the second has AdamW's state beside it, by OURS or TRL, for `bench.peak`."""
    phases = phases_of(build_side(way, Sizes(**sizes), folder)).values()
    return lambda: sum(phase() for _ in range(2) for phase in phases)


def build_side(way: str, sizes: Sizes, folder: Path) -> Side:
    """OURS or TRL, with a model of its own."""
    model = build_model(sizes, folder)
    side = Ours if way == OURS else Trl
    return side(model, build_tokenizer(sizes, folder, model), sampled_step(sizes))


def phases_of(side: Side) -> dict[str, Way]:
    """The phases of one step, in their order."""

    def generation() -> float:
        side.generate()
        return 1.0

    return {GENERATION: generation, LOSS: side.loss, UPDATE: _update(side.model)}


class Sides:
    """The same model and the same step for each side."""

    def __init__(self, sizes: Sizes, folder: Path) -> None:
        self.sizes = sizes
        self.sides = {way: build_side(way, sizes, folder) for way in (OURS, TRL)}
        self._phases = {way: phases_of(side) for way, side in self.sides.items()}

    def check(self) -> Check:
        """Compares the sides. Raises DifferentResultsError. Every phase has then run once."""
        name = self.sizes.name
        tokens = {way: side.generate(greedy=True) for way, side in self.sides.items()}
        same = require_same_tokens(f"greedy tokens, {name}", tokens[OURS], tokens[TRL], SAME_SHARE)
        losses, gradients = {}, {}
        for way, side in self.sides.items():
            losses[way] = torch.tensor([side.loss()])
            gradients[way] = torch.cat([p.grad.flatten() for p in side.model.parameters() if p.grad is not None])
        loss = require_close(f"loss, {name}", losses[OURS], losses[TRL], LOSS_TOLERANCE)
        gradient = require_close(f"gradients, {name}", gradients[OURS], gradients[TRL], GRADIENT_TOLERANCE)
        for phases in self._phases.values():
            phases[UPDATE]()
        return f"{name}: {same}", loss, gradient

    def phases(self) -> tuple[dict[str, Times], dict[str, Times]]:
        """Ours and trl's times of each phase of whole steps."""
        ways = {(way, phase): work for way, phases in self._phases.items() for phase, work in phases.items()}
        times = interleaved(ways, self.sizes.repetitions, warm=True)
        ours, theirs = ({phase: times[way, phase] for phase in self._phases[way]} for way in (OURS, TRL))
        return ours, theirs

    def losses(self) -> dict[str, Times]:
        """The times of loss and backward alone."""

        def alone(side: Side) -> Way:
            def once() -> float:
                side.loss()
                side.model.zero_grad(set_to_none=True)
                return 1.0

            return once

        ways = {way: alone(side) for way, side in self.sides.items()}
        return interleaved(ways, self.sizes.repetitions, warm=True)


def _update(model: Model) -> Way:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6, betas=(0.9, 0.99), weight_decay=0.1)

    def once() -> float:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return 1.0

    return once


def _agreement(checks: Sequence[Check]) -> str:
    same, losses, gradients = zip(*checks, strict=True)
    return (
        f"at temperature 0 both generate the same tokens ({'; '.join(dict.fromkeys(same))} completions; less than "
        f"{SAME_SHARE:.0%} would stop it), losses differ by at most {max(losses):.0e} and gradients by at most "
        f"{max(gradients):.0e} of their largest value, over all parameters of every model and with half of the groups without "
        f"signal too (checked in this run; more than {LOSS_TOLERANCE:.0e} or {GRADIENT_TOLERANCE:.0e} would stop it)."
    )


def _shape(sizes: Sizes, model: Model) -> str:
    (shortest_prompt, longest_prompt), (shortest, longest) = sizes.prompt_tokens, sizes.completion_tokens
    return (
        f"{sizes.name} ({described(model)}): {sizes.problems} groups of {sizes.group} completions, prompts of "
        f"{shortest_prompt} to {longest_prompt} tokens and completions of {shortest} to {longest}"
    )


def _text(shapes: Sequence[str], has_smollm2: bool) -> list[str]:
    absent = (
        "SmolLM2-135M-Instruct was NOT run: the folder that `python recipes/smollm2.py FOLDER` writes was not given with "
        "`--smollm2 FOLDER`."
    )
    return [
        f"One step of Dr. GRPO at temperature {TEMPERATURE}, in its parts: generation; loss and backward; and, only in the "
        "whole step, clipping the gradient and torch's AdamW, which are the same for both. The loss is that of given "
        "completions (random tokens, as are the prompts), not of those just generated, so that both score the same ids.",
        "Generation is a group of completions for every prompt. Ours is LocalSampler, which computes a prompt once for its "
        f"group and puts out logprobs too. The alternative is what GRPOTrainer of {TRL} calls for it: a row per completion, "
        "its prompt repeated, padded on the left, and model.generate with do_sample, top_k=0 and top_p=1. Both are told that "
        "completions end with a token that is not in the vocabulary, so for both every row is as long as the case's longest "
        "completion, and ours has none to drop early. Both put out texts.",
        f"For the loss ours is StepBatch and our_loss; the alternative is GRPOTrainer.compute_loss of {TRL} without gradient "
        "checkpointing and with beta 0, on the same ids and advantages, padded as its own sampling leaves them. It computes a "
        "prompt anew for each of its completions and runs groups without signal too; ours does neither. On a CPU trl scores "
        "every position, prompt and padding included (with Triton, on a GPU, it scores completion tokens only, as ours does "
        "everywhere).",
        "Peak memory of two whole steps includes gradients and AdamW's state, which are the same for both.",
        f"Micro-batches of one group, lengths drawn evenly. {'; '.join(shapes)}. Those with a named vocabulary are Llamas with "
        "tied embeddings and random weights.",
        *([] if has_smollm2 else [absent]),
    ]
