"""What a search chooses from: the vectors, a weight for each group of layers, and which layers are steered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from steerlift.evaluation.search_config import LayerGroup, SearchConfig
from steerlift.records.errors import InputError
from steerlift.steering.layer_ranges import parse_runs
from steerlift.steering.vectors import SteeringVectors

if TYPE_CHECKING:
    import optuna

# Optuna wants parameters with fixed bounds, so the two layers come in any order; the lower one is the first.
VECTORS, WEIGHT, ONE_END, OTHER_END = "vectors", "weight", "layer_from", "layer_to"

Params = Mapping[str, Any]
"""A trial's parameters by name, as search.json has them."""


@dataclass(frozen=True)
class SearchSpace:
    """The candidates by name, the groups of layers, lowest and highest weight, and whether the layers are searched too."""

    candidates: Mapping[str, SteeringVectors]
    groups: tuple[LayerGroup, ...]
    weight_range: tuple[float, float]
    choose_layers: bool

    def __post_init__(self) -> None:
        wanted = set(self.layers)
        for name, vectors in self.candidates.items():
            if not wanted & set(vectors.layers):
                raise InputError(f"vectors {name} have layers {_runs(vectors.layers)}, none of --layer_groups {_runs(wanted)}")
        if self.choose_layers and any(
            set(range(self.layers[0], self.layers[-1] + 1)) - (wanted & set(vectors.layers))
            for vectors in self.candidates.values()
        ):
            raise InputError(
                f"--choose_layers steers one run of layers: expected vectors for every layer from {self.layers[0]} to "
                f"{self.layers[-1]}, all of them in groups; leave --choose_layers out"
            )

    @property
    def layers(self) -> list[int]:
        """All layers of the groups."""
        return sorted(layer for group in self.groups for layer in group)

    def choose(self, trial: optuna.Trial) -> dict[str, Any]:
        """Has Optuna choose the parameters of a trial."""
        if len(self.candidates) > 1:
            trial.suggest_categorical(VECTORS, list(self.candidates))
        for name in self.weight_names():
            trial.suggest_float(name, *self.weight_range)
        if self.choose_layers:
            for name in (ONE_END, OTHER_END):
                trial.suggest_int(name, self.layers[0], self.layers[-1])
        return dict(trial.params)

    def weight_names(self) -> list[str]:
        """One parameter for each group: `weight`, or with several groups `weight 0-6`, `weight 7-13` ..."""
        return [WEIGHT] if len(self.groups) == 1 else [f"{WEIGHT} {_runs(group)}" for group in self.groups]

    def candidate(self, params: Params) -> str:
        """The name of the candidate that a trial has chosen."""
        return str(params.get(VECTORS, next(iter(self.candidates))))

    def weights(self, params: Params) -> dict[int, float]:
        """Layer -> weight, of the layers that a trial steers."""
        ends = sorted((params.get(ONE_END, self.layers[0]), params.get(OTHER_END, self.layers[-1])))
        return {
            layer: params[name]
            for name, group in zip(self.weight_names(), self.groups, strict=True)
            for layer in group
            if ends[0] <= layer <= ends[1]
        }

    def vectors(self, params: Params) -> SteeringVectors:
        """A trial's vectors, their weights multiplied in: to be used at weight 1."""
        candidate = self.candidates[self.candidate(params)]
        weights = self.weights(params)
        layers = {layer: weights[layer] * vector for layer, vector in candidate.layers.items() if layer in weights}
        return SteeringVectors(layers, candidate.metadata)


def make_space(config: SearchConfig, candidates: Mapping[str, SteeringVectors], model_layers: int) -> SearchSpace:
    """The space of a search among candidates for a model of so many layers.

    Raises InputError for groups that do not fit the model or the candidates.
    """
    groups = parse_runs(config.layer_groups, "--layer_groups")
    beyond = [layer for group in groups for layer in group if layer >= model_layers]
    if beyond:
        raise InputError(f"--layer_groups {config.layer_groups}: got layer {beyond[0]}, the model has 0 to {model_layers - 1}")
    if not groups:
        groups = _equal_runs(sorted({layer for vectors in candidates.values() for layer in vectors.layers}), config.groups)
    return SearchSpace(candidates, groups, config.weight_range, config.choose_layers)


def _equal_runs(layers: list[int], count: int) -> tuple[LayerGroup, ...]:
    if count > len(layers):
        raise InputError(f"--groups {count}: the vectors have {len(layers)} layers; expected at most so many groups")
    ends = [round(len(layers) * index / count) for index in range(count + 1)]
    return tuple(tuple(layers[start:end]) for start, end in pairwise(ends))


def _runs(layers: Mapping[int, Any] | set[int] | LayerGroup) -> str:
    """`3` or `0-6`."""
    first, last = min(layers), max(layers)
    return str(first) if first == last else f"{first}-{last}"
