"""A sweep over steering weights: our one batch against the original's procedure, a model reloaded for every weight."""

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from bench.measure import OURS, SAME_SHARE, Way, interleaved, require_same_tokens
from bench.sampling import generated
from bench.setting import Setting
from bench.table import Section, time_row
from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.scoring.rewards import grade_all
from steerlift.steering.hooks import Transform, layer_hooks
from steerlift.steering.models import Model, decoder_layers, load_model, load_tokenizer
from steerlift.steering.vectors import SteeringVectors

ALTERNATIVE = "original's procedure"
# Share of the residual stream's own norm: enough to change what the model says at every weight, and not to break it.
_VECTOR_NORM = 0.1

Arms = dict[float, list[list[list[int]]]]
"""Weight -> per problem the token ids of its completions."""


@dataclass(frozen=True)
class Sizes:
    """`problems` x `completions` under the base model and every weight, at most `length` new tokens each."""

    problems: int = 40
    completions: int = 4
    weights: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    length: int = 48
    repetitions: int = 3


FULL = Sizes()
QUICK = Sizes(problems=3, completions=2, weights=(0.5, 1.0), length=8, repetitions=1)


def run(setting: Setting, sizes: Sizes) -> Section:
    """Times both on the same problems, vectors and weights, from loading the model to the grades."""
    torch.manual_seed(setting.seed)
    sweep = Sweep(setting, sizes)
    same = sweep.check_greedy()
    lengths: dict[str, float] = {}

    def timed(name: str) -> Way:
        procedure = {OURS: sweep.ours, ALTERNATIVE: sweep.original}[name]

        def once() -> float:
            arms = procedure(1.0, sizes.completions)
            lengths[name] = mean(len(ids) for problems in arms.values() for rows in problems for ids in rows)
            return 1.0

        return once

    # Both have just run over all problems and weights, to be compared: they are warm.
    times = interleaved({name: timed(name) for name in (OURS, ALTERNATIVE)}, sizes.repetitions, warm=True)
    measured = f"sweep, {len(sizes.weights)} weights and base, {sizes.problems} x {sizes.completions} completions"
    row = time_row(measured, times[OURS], ALTERNATIVE, times[ALTERNATIVE], setting.aim(8))
    agreement = (
        f"at temperature 0 both give the same tokens for {same} pairs of problem and weight, the base model's included "
        f"(checked in this run; less than {SAME_SHARE:.0%} would stop it)."
    )
    return Section("Sweep over steering weights", [_text(sizes, lengths)], agreement, [row])


def _text(sizes: Sizes, lengths: dict[str, float]) -> str:
    weights = ", ".join(map(str, sizes.weights))
    return (
        f"The embedded model answers {sizes.problems} test problems {sizes.completions} times each, as it is and steered at "
        f"the weights {weights}, at temperature 1 and with at most {sizes.length} new tokens. The vectors are random and "
        f"{_VECTOR_NORM:.0%} of the residual stream's norm long. Both ways load the model from disk and grade all completions "
        "with the same grader (whose worker processes are not in the CPU seconds). Ours answers everything by one call of "
        "rollouts(), a weight per row. The original's procedure loads the model again for every weight, registers hooks and "
        f"runs generate with num_return_sequences={sizes.completions} and top_k=0 on one problem after the other. Tokens a "
        f"completion: {lengths[OURS]:.1f} for ours, {lengths[ALTERNATIVE]:.1f} for the original's procedure."
    )


class Sweep:
    """One set of problems, vectors and weights, swept in either way."""

    def __init__(self, setting: Setting, sizes: Sizes) -> None:
        self.folder = str(setting.folder)
        self.seed = setting.seed
        self.sizes = sizes
        self.problems = embedded_problems("test", sizes.problems, setting.seed)
        self.weights = (0.0, *sizes.weights)
        self.vectors = self._random_vectors()

    def ours(self, temperature: float, completions: int) -> Arms:
        """The evaluation's path: one call for the base model and all weights."""
        model, tokenizer = self._load(), load_tokenizer(self.folder)
        arms = [(weight, problem) for weight in self.weights for problem in self.problems]
        tasks = [Task(problem, completions, self.seed, weight) for weight, problem in arms]
        options = SamplingOptions(temperature, self.sizes.length)
        graded = rollouts(LocalSampler(model, tokenizer, self.vectors), tokenizer, tasks, options)
        answers: Arms = {weight: [] for weight in self.weights}
        for (weight, _), answer in zip(arms, graded, strict=True):
            answers[weight].append([list(completion.token_ids) for completion in answer.completions])
        return answers

    def original(self, temperature: float, completions: int) -> Arms:
        """For every weight: the model loaded anew, hooks, one problem at a time."""
        return {weight: self._original_arm(weight, temperature, completions) for weight in self.weights}

    def check_greedy(self) -> str:
        """In how many problems and weights the likeliest tokens of both are the same. Raises DifferentResultsError."""
        ours, theirs = (
            [row for problems in arms.values() for rows in problems for row in rows]
            for arms in (self.ours(0.0, completions=1), self.original(0.0, completions=1))
        )
        return require_same_tokens("greedy tokens", ours, theirs, SAME_SHARE)

    def _original_arm(self, weight: float, temperature: float, completions: int) -> list[list[list[int]]]:
        model, tokenizer = self._load(), load_tokenizer(self.folder)
        choice = {"do_sample": True, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
        answers, texts = [], []
        with layer_hooks(decoder_layers(model), self._hooks(weight)):
            for problem in self.problems:
                ids_1T = torch.tensor([encode_prompt(tokenizer, problem.problem)])
                mask_1T = torch.ones_like(ids_1T)
                options = {"num_return_sequences": completions, **choice}
                rows = generated(model, tokenizer, ids_1T, mask_1T, self.sizes.length, **options)
                answers.append(rows)
                texts += [(text, problem.answer) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
        grade_all(texts)
        return answers

    def _hooks(self, weight: float) -> dict[int, Transform]:
        def adding(vector_H: Tensor) -> Transform:
            return lambda hidden_BTH: hidden_BTH + weight * vector_H

        return {index: adding(vector_H) for index, vector_H in self.vectors.layers.items()} if weight else {}

    def _load(self) -> Model:
        return load_model(self.folder, torch.device("cpu"), torch.float32)

    def _random_vectors(self) -> SteeringVectors:
        tokenizer = load_tokenizer(self.folder)
        prompts = [tuple(encode_prompt(tokenizer, problem.problem)) for problem in self.problems]
        means = mean_activations(self._load(), [TokenSequence(p, len(p)) for p in prompts], "prompt")
        directions_LH = torch.nn.functional.normalize(torch.randn(means.state_LH.shape), dim=-1)
        vectors_LH: Tensor = _VECTOR_NORM * means.norm_L[:, None] * directions_LH
        return SteeringVectors(dict(enumerate(vectors_LH)))
