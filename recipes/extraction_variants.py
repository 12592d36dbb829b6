"""Which mean of activations makes the best vector? Every way that was thought of, on the models of finished demos.

    for seed in 0 1 2 3 4; do steerlift demo --seed $seed --output-dir runs/demo$seed; done
    python recipes/extraction_variants.py runs/demo0 runs/demo1 runs/demo2 runs/demo3 runs/demo4

Each way averages states of 1,000 training problems; its weight is chosen on 120 development problems and its score is that of
400 test problems, 4 completions each, temperature 1. Prints a table: what each recovers of the gap, per seed and on average.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from as_command import as_command
from torch import Tensor

from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.problems.load import load_problems
from steerlift.records.errors import InputError
from steerlift.records.runs import read_json
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.apply import steer
from steerlift.steering.hooks import layer_hooks
from steerlift.steering.models import Model, Tokenizer, decoder_layers, load_model, load_tokenizer
from steerlift.steering.vectors import SteeringVectors

WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OPTIONS = SamplingOptions(1.0, 48)
ROUNDS = 4


class States:
    """Both models' states of every token (L, N, H), and of each token: its KL, its place in the completion, its sequence."""

    @torch.no_grad()
    def __init__(self, base: Model, finetuned: Model, sequences: list[TokenSequence], right: list[bool]) -> None:
        rows: dict[str, list[Tensor]] = {"base": [], "finetuned": [], "kl": [], "place": [], "first": [], "right": []}
        for sequence, is_right in zip(sequences, right, strict=True):
            logprobs = {}
            for name, model in (("base", base), ("finetuned", finetuned)):
                states: list[Tensor] = []
                layers = decoder_layers(model)
                with layer_hooks(layers, dict.fromkeys(layers, lambda hidden, to=states: to.append(hidden[0]))):
                    logprobs[name] = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
                rows[name].append(torch.stack(states).double())
            wanted = logprobs["finetuned"]
            rows["kl"].append((wanted.exp() * (wanted - logprobs["base"])).sum(-1).clamp(min=0).double())
            rows["place"].append(torch.arange(len(sequence.ids)) - sequence.start)
            rows["first"].append(torch.arange(len(sequence.ids)) == 0)
            rows["right"].append(torch.full((len(sequence.ids),), is_right))
        self.difference_LNH = torch.cat(rows["finetuned"], 1) - torch.cat(rows["base"], 1)
        self.kl_N, self.place_N, self.first_N, self.right_N = (
            torch.cat(rows[name]) for name in ("kl", "place", "first", "right")
        )

    def mean(self, weights_N: Tensor) -> SteeringVectors:
        """The weighted mean difference per layer."""
        shares_N = weights_N.double() / weights_N.double().sum()
        return SteeringVectors({i: (d_NH * shares_N[:, None]).sum(0) for i, d_NH in enumerate(self.difference_LNH)})


def matched(base: Model, finetuned: Model, sequences: list[TokenSequence], start: SteeringVectors) -> SteeringVectors:
    """Increments corrected, with the base steered by them, until its means are the fine-tuned model's at every layer."""
    wanted_LH = mean_activations(finetuned, sequences, "completion").state_LH
    vectors = start.increments()
    for _ in range(ROUNDS):
        with steer(base, vectors, 1.0):
            rest_LH = wanted_LH - mean_activations(base, sequences, "completion").state_LH
        rest = SteeringVectors(dict(enumerate(rest_LH))).increments()
        vectors = SteeringVectors({i: v + rest.layers[i] for i, v in vectors.layers.items()})
    return vectors


WAYS: dict[str, Callable[[States], Tensor]] = {
    "completion tokens (the default)": lambda s: s.place_N >= 0,
    "after the first completion token": lambda s: s.place_N >= 1,
    "after the first three": lambda s: s.place_N >= 3,
    "completion and prompt, without position 0": lambda s: ~s.first_N,
    "correct completions only": lambda s: (s.place_N >= 0) & s.right_N,
    "weighted by the KL of the state's next token": lambda s: (s.place_N >= 0) * s.kl_N,
    "weighted by the root of that KL": lambda s: (s.place_N >= 0) * s.kl_N.sqrt(),
}


def main(folders: list[Path]) -> None:
    """Prints a line as each figure comes, then the table."""
    if not folders:
        raise InputError("expected the folders of finished demos")
    shares: dict[str, list[float]] = {}
    for folder in folders:
        for way, share in _shares(folder).items():
            shares.setdefault(way, []).append(share)
            print(f"{folder}: {way}: {share:.1f}", flush=True)
    print("\n| way |", " | ".join(folder.name for folder in folders), "| mean |")
    for way, values in shares.items():
        print(f"| {way} |", " | ".join(f"{value:.0f}" for value in values), f"| {sum(values) / len(values):.1f} |")


def _shares(folder: Path) -> dict[str, float]:
    """The share of the gap that each way recovers, in percent."""
    tokenizer = load_tokenizer(str(folder / "base"))
    base, finetuned = (load_model(str(folder / name), torch.device("cpu"), torch.float32) for name in ("base", "finetuned"))
    seed = read_json(folder / "summary.json")["seed"]
    tasks = [Task(problem, 1, seed) for problem in load_problems("embedded", "train", 1000, seed)]
    graded = rollouts(LocalSampler(finetuned, tokenizer), tokenizer, tasks, OPTIONS)
    sequences = []
    for g in graded:
        prompt = prompt_ids(tokenizer, g.prompt)
        sequences.append(TokenSequence((*prompt, *g.completions[0].token_ids), len(prompt)))
    states = States(base, finetuned, sequences, [g.grades[0].correct for g in graded])
    ways = {name: states.mean(chosen(states)) for name, chosen in WAYS.items()}
    default = ways["completion tokens (the default)"]
    ways["increments of the default"] = default.increments()
    ways["matched: the steered base has the fine-tuned model's means"] = matched(base, finetuned, sequences, default)
    low, high = (_score(model, tokenizer, None, 0.0, "test", 400, seed) for model in (base, finetuned))
    found = {}
    for name, vectors in ways.items():
        best = max(WEIGHTS, key=lambda w: _score(base, tokenizer, vectors, w, "dev", 120, seed))
        found[name] = 100 * (_score(base, tokenizer, vectors, best, "test", 400, seed) - low) / (high - low)
    return found


def _score(
    model: Model, tokenizer: Tokenizer, vectors: SteeringVectors | None, weight: float, split: str, count: int, seed: int
) -> float:
    tasks = [Task(problem, 4, seed, weight) for problem in load_problems("embedded", split, count, seed)]
    grades = [grade for g in rollouts(LocalSampler(model, tokenizer, vectors), tokenizer, tasks, OPTIONS) for grade in g.grades]
    return sum(grade.correct for grade in grades) / len(grades)


if __name__ == "__main__":
    as_command(main)
