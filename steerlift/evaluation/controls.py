"""Controls: arms that show what of a gain is not the vectors' doing. They run on the same problems and random numbers."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steerlift.evaluation.arms import Arm
from steerlift.evaluation.config import EvaluateConfig
from steerlift.records.types import Problem
from steerlift.steering.apply import check_fit
from steerlift.steering.identity import vectors_identity
from steerlift.steering.models import load_config
from steerlift.steering.vectors import SteeringVectors

RANDOM_VECTORS = 3
COOLER_TEMPERATURES = (0.5, 0.0)
FORMAT_REMINDER = (
    "Keep to this form, whatever the answer: begin with <think>, then </think>, then <answer> with the final answer, "
    "and end with </answer>."
)


@dataclass(frozen=True)
class ControlArm:
    """One control: its arm, what it is in a sentence, and what differs from the steered arm."""

    arm: Arm
    about: str
    vectors: SteeringVectors | None = None
    temperature: float | None = None
    told_format: bool = False

    def problems(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems as this arm is asked them."""
        if not self.told_format:
            return list(problems)
        return [replace(problem, problem=f"{problem.problem}\n\n{FORMAT_REMINDER}") for problem in problems]


def other_vectors(config: EvaluateConfig) -> dict[Path, SteeringVectors]:
    """The vectors of other runs, by their files. Raises InputError, before any work, for those that do not fit the model."""
    others = {path: SteeringVectors.load(path) for path in config.other_vectors}
    for vectors in others.values():
        check_fit(load_config(config.base_model_name), vectors, config.base_model_name)
    return others


def control_arms(
    config: EvaluateConfig, vectors: SteeringVectors, others: Mapping[Path, SteeringVectors], weight: float
) -> list[ControlArm]:
    """The controls that the options ask for, at the weight of the steered arm."""
    return [*_asked(config, vectors, weight), *(_other(path, other, weight) for path, other in others.items())]


def shuffled(vectors: SteeringVectors, seed: int) -> SteeringVectors:
    """Every layer gets the direction of another one, with its own norm; a single layer stays as it is."""
    indices = list(vectors.layers)
    order = list(indices)
    rng = random.Random(seed)
    while len(order) > 1 and any(one == other for one, other in zip(indices, order, strict=True)):
        rng.shuffle(order)
    norms = vectors.norms()
    layers = {
        index: vectors.layers[other] * (norms[index] / norms[other] if norms[other] else 0.0)
        for index, other in zip(indices, order, strict=True)
    }
    return SteeringVectors(layers, {**vectors.metadata, "method": "layers shuffled"})


def _asked(config: EvaluateConfig, vectors: SteeringVectors, weight: float) -> Iterator[ControlArm]:
    for control in config.controls:
        if control == "random":
            for number in range(1, RANDOM_VECTORS + 1):
                about = "random directions with the norms of the vectors"
                yield ControlArm(Arm(f"random {number}", weight), about, vectors.random_like(config.seed + number))
        elif control == "negated":
            yield ControlArm(Arm("negated", -weight), "the vectors with the opposite sign", vectors)
        elif control == "shuffled":
            about = "each layer's direction moved to another layer, norms kept"
            yield ControlArm(Arm("layers shuffled", weight), about, shuffled(vectors, config.seed))
        elif control == "cooler":
            for temperature in COOLER_TEMPERATURES:
                if temperature < config.temperature:
                    name = f"base at temperature {temperature:g}"
                    yield ControlArm(Arm(name), "the unsteered base, sampled with less chance", temperature=temperature)
        else:
            yield ControlArm(Arm("base told the format"), f"the unsteered base, told: {FORMAT_REMINDER}", told_format=True)


def _other(path: Path, vectors: SteeringVectors, weight: float) -> ControlArm:
    # With a mark of their content: an evaluation that is gone on with must not take other vectors' completions for theirs.
    name = f"vectors of {'/'.join(path.parts[-2:])} ({vectors_identity(vectors)[:6]})"
    return ControlArm(Arm(name, weight), f"the vectors of another run, {path}", vectors)
