"""Extraction: mean_activations against a bare forward of the same batches, and against keeping every activation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.measure import OURS, Way, interleaved, peak_memory, require_close
from bench.setting import Setting
from bench.table import Row, Section, memory_row, time_row
from steerlift.extraction.activations import TokenSequence, _batches, _tensors, mean_activations
from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.steering.hooks import Transform, layer_hooks
from steerlift.steering.models import Model, decoder_body, decoder_layers, load_model, load_tokenizer

TOLERANCE = 1e-5
BARE, KEPT = "bare forward", "keeping every activation"


@dataclass(frozen=True)
class Sizes:
    """Problems with their worked solutions as completions, whose tokens are averaged."""

    problems: int
    repetitions: int
    seed: int = 0


FULL = (Sizes(200, repetitions=9), Sizes(2000, repetitions=4))
QUICK = (Sizes(10, repetitions=1), Sizes(30, repetitions=1))


def run(setting: Setting, cases: Sequence[Sizes]) -> Section:
    """At each number of problems: time against both alternatives, peak memory against keeping everything."""
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    rows: list[Row] = []
    differences, counts = [], []
    for case in cases:
        sizes = replace(case, seed=setting.seed)
        sequences = worked_sequences(setting.folder, sizes)
        ours = mean_activations(model, sequences, "completion")
        differences.append(require_close("mean activations", ours.state_LH, kept_means(model, sequences), TOLERANCE))
        counts.append(f"{sizes.problems:,} problems: {sum(len(s.ids) for s in sequences):,} tokens, {ours.count:,} averaged")
        ways: dict[str, Way] = {name: way_of(name, model, sequences) for name in (OURS, BARE, KEPT)}
        times = interleaved(ways, sizes.repetitions)
        name = f"extraction, {sizes.problems:,} problems"
        rows.append(time_row(f"{name}: time", times[OURS], BARE, times[BARE], setting.aim(1.15, "at most"), is_cost=True))
        rows.append(time_row(f"{name}: time", times[OURS], KEPT, times[KEPT]))
        if setting.full:
            peaks = [peak_memory("extraction", way, asdict(sizes), setting.folder) for way in (OURS, KEPT)]
            rows.append(memory_row(f"{name}: peak memory", peaks[0], KEPT, peaks[1]))
    agreement = (
        f"the means of every layer differ by at most {max(differences):.0e} of their largest value (checked in this run; more "
        f"than {TOLERANCE:.0e} would stop it)."
    )
    return Section("Extraction", [_TEXT.format(sizes="; ".join(counts))], agreement, rows)


_TEXT = (
    "Mean activations of the embedded model's three decoder layers over the completion tokens of training problems with their "
    "worked solutions ({sizes}). All ways run the decoder body on the same batches of at most 4,096 tokens, which they build "
    "themselves. The bare forward reads nothing. Keeping every activation is how the original does it: a list of each layer's "
    "states, here of the averaged tokens only, joined and averaged at the end. Its memory grows with the problems."
)


def memory_way(way: str, sizes: Mapping[str, Any], folder: Path) -> Way:
    """One extraction by OURS or KEPT, for `bench.peak`."""
    model = load_model(str(folder), torch.device("cpu"), torch.float32)
    return way_of(way, model, worked_sequences(folder, Sizes(**sizes)))


def worked_sequences(folder: Path, sizes: Sizes) -> list[TokenSequence]:
    """Prompt and worked solution of each problem, as token ids."""
    tokenizer = load_tokenizer(str(folder))
    sequences = []
    for problem in embedded_problems("train", sizes.problems, sizes.seed):
        prompt = encode_prompt(tokenizer, problem.problem)
        solution = tokenizer.encode(problem.solution, add_special_tokens=False)
        sequences.append(TokenSequence((*prompt, *solution), len(prompt)))
    return sequences


def way_of(name: str, model: Model, sequences: list[TokenSequence]) -> Way:
    """OURS, BARE or KEPT as a way to be measured."""

    def once() -> float:
        if name == OURS:
            mean_activations(model, sequences, "completion")
        elif name == KEPT:
            kept_means(model, sequences)
        else:
            bare_forward(model, sequences)
        return 1.0

    return once


@torch.no_grad()
def bare_forward(model: Model, sequences: list[TokenSequence]) -> None:
    """The decoder body on the same batches, and nothing else."""
    body = decoder_body(model)
    for batch in _batches(sequences):
        ids_BT, mask_BT, _ = _tensors(batch, "completion", False, model.device)
        body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)


@torch.no_grad()
def kept_means(model: Model, sequences: list[TokenSequence]) -> Tensor:
    """The original's way: every state of every layer is kept, then averaged. Shape (layers, hidden size)."""
    layers, body = decoder_layers(model), decoder_body(model)
    states: dict[int, list[Tensor]] = {index: [] for index in layers}
    chosen_BT = torch.empty(0, dtype=torch.bool)

    def keeping(index: int) -> Transform:
        return lambda hidden_BTH: states[index].append(hidden_BTH[chosen_BT])

    with layer_hooks(layers, {index: keeping(index) for index in layers}):
        for batch in _batches(sequences):
            ids_BT, mask_BT, chosen_BT = _tensors(batch, "completion", False, model.device)
            body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return torch.stack([torch.cat(kept).mean(0) for kept in states.values()])
