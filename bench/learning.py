"""Learning vectors against training weights: one GRPO step by the same trainer code, its time and its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.grpo_case import LONG_PROMPTS, Sizes, build_model, build_tokenizer, described, sampled_step
from bench.grpo_case import smollm2 as smollm2_sizes
from bench.grpo_ours import Ours
from bench.measure import OURS, Way, interleaved, peak_memory
from bench.setting import Setting
from bench.table import Row, Section, memory_row, time_row
from steerlift.steering.models import Model, decoder_layers, hidden_size
from steerlift.steering.trainable import TrainableVectors

WEIGHTS = "training all weights"
FULL = (LONG_PROMPTS,)
QUICK = (Sizes(problems=2, group=4, repetitions=1),)


def run(setting: Setting, cases: Sequence[Sizes]) -> Section:
    """Each model: the time of loss, backward and update, and the peak memory of two whole steps."""
    if setting.smollm2 is not None and setting.full:
        cases = (*cases, smollm2_sizes(setting.smollm2))
    rows: list[Row] = []
    shapes = []
    for case in cases:
        sizes = replace(case, seed=setting.seed)
        sides = {way: _side(way, sizes, setting.folder) for way in (OURS, WEIGHTS)}
        times = interleaved({way: _update(side) for way, side in sides.items()}, sizes.repetitions)
        name = f"learning vectors, {sizes.name}"
        rows.append(time_row(f"{name}: loss, backward and update", times[OURS], WEIGHTS, times[WEIGHTS]))
        shapes.append(f"{sizes.name} ({described(sides[OURS].model)})")
        del sides
        if setting.full:
            peaks = [peak_memory("learning", way, asdict(sizes), setting.folder) for way in (OURS, WEIGHTS)]
            aim = setting.aim(2) if sizes.saved else None
            rows.append(memory_row(f"{name}: peak memory of two whole steps", peaks[0], WEIGHTS, peaks[1], aim))
    return Section("Learning vectors", _text(shapes), _AGREEMENT, rows)


def memory_of_steps(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """Two whole steps, by OURS or WEIGHTS, for `bench.peak`."""
    side = _side(way, Sizes(**sizes), folder)
    update = _update(side)

    def steps() -> float:
        for _ in range(2):
            side.generate()
            update()
        return 1.0

    return steps


def _side(way: str, sizes: Sizes, folder: Path) -> Ours:
    model = build_model(sizes, folder)
    if way == OURS:
        _attach(model)
    return Ours(model, build_tokenizer(sizes, folder, model), sampled_step(sizes))


def _attach(model: Model) -> None:
    start = {layer: torch.zeros(hidden_size(model)) for layer in decoder_layers(model)}
    TrainableVectors(start, dict.fromkeys(start, 1.0), {}).attach(model)


def _update(side: Ours) -> Way:
    trained = [parameter for parameter in side.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def once() -> float:
        side.loss()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return 1.0

    return once


_AGREEMENT = (
    "they do not do the same, and are not meant to: one moves a vector per decoder layer, the other every weight. That the "
    "vectors' gradients are right is a test's business (tests/training/test_learn.py)."
)


def _text(shapes: Sequence[str]) -> list[str]:
    return [
        "The GRPO step of the section above, by the same code, where only one vector per decoder layer wants gradients and "
        "AdamW's state, against all weights. Peak memory of two whole steps, generation included, is above that of the loaded "
        "model, which both need besides.",
        f"Models: {'; '.join(shapes)}.",
    ]
