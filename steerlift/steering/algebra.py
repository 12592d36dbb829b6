"""Sums, differences, multiples, projections and layer masks of steering vectors. A layer that one of them lacks counts as 0."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from steerlift.records.errors import InputError
from steerlift.records.seen import SEEN, together
from steerlift.steering.vectors import SteeringVectors


def merge(vectors: Sequence[SteeringVectors], weights: Sequence[float]) -> SteeringVectors:
    """weights[0] * vectors[0] + weights[1] * vectors[1] + ..., summed in float64; the metadata that all share stays.

    Raises InputError for no vectors, another number of weights, and vectors of different sizes or architectures.
    """
    if not vectors or len(vectors) != len(weights):
        raise InputError(f"merge: got {len(vectors)} vectors and {len(weights)} weights, expected one weight for each")
    _check_alike(vectors)
    layers: dict[int, Tensor] = {}
    for one, weight in zip(vectors, weights, strict=True):
        for index, vector_H in one.layers.items():
            layers[index] = layers.get(index, torch.zeros((), dtype=torch.float64)) + weight * vector_H.double()
    first, *others = vectors
    shared = {key: value for key, value in first.metadata.items() if all(o.metadata.get(key) == value for o in others)}
    seen = together(*(one.metadata.get(SEEN, "") for one in vectors))
    if seen:  # by any of them
        shared[SEEN] = seen
    return SteeringVectors(layers, {**shared, "weights": " ".join(map(str, weights))})


def add(one: SteeringVectors, other: SteeringVectors) -> SteeringVectors:
    """one + other. Raises as `merge` does."""
    return merge([one, other], [1.0, 1.0])


def subtract(one: SteeringVectors, other: SteeringVectors) -> SteeringVectors:
    """one - other. Raises as `merge` does."""
    return merge([one, other], [1.0, -1.0])


def scale(vectors: SteeringVectors, weight: float | Mapping[int, float]) -> SteeringVectors:
    """Every layer times `weight`, or each times its own; a layer that the mapping does not name is multiplied by 0."""
    factors = weight if isinstance(weight, Mapping) else dict.fromkeys(vectors.layers, weight)
    layers = {index: factors.get(index, 0.0) * vector_H for index, vector_H in vectors.layers.items()}
    return SteeringVectors(layers, vectors.metadata)


def project_out(vectors: SteeringVectors, directions: SteeringVectors) -> SteeringVectors:
    """Each layer less its part along `directions` there: v - (v.d / d.d) d. Where d is 0 or absent, v stays.

    Raises InputError for vectors of different sizes or architectures.
    """
    _check_alike([vectors, directions])
    layers = dict(vectors.layers)
    for index in layers.keys() & directions.layers.keys():
        vector_H, direction_H = layers[index].double(), directions.layers[index].double()
        length = direction_H.norm()
        if length > 0:
            unit_H = direction_H / length
            layers[index] = vector_H - (vector_H @ unit_H) * unit_H
    return SteeringVectors(layers, vectors.metadata)


def keep_layers(vectors: SteeringVectors, kept: Collection[int]) -> SteeringVectors:
    """Only the layers `kept`. Raises InputError for a layer that the vectors do not have."""
    absent = sorted(set(kept) - vectors.layers.keys())
    if absent:
        raise InputError(f"layer {absent[0]} has no steering vector; expected some of {', '.join(map(str, vectors.layers))}")
    return SteeringVectors({index: vectors.layers[index] for index in kept}, vectors.metadata)


def _check_alike(vectors: Sequence[SteeringVectors]) -> None:
    sizes = sorted({one.hidden_size for one in vectors})
    if len(sizes) > 1:
        raise InputError(f"steering vectors of hidden sizes {sizes} do not mix; expected one size")
    models = sorted({one.metadata["architecture"] for one in vectors if "architecture" in one.metadata})
    if len(models) > 1:
        raise InputError(f"steering vectors made for {models[0]!r} and for {models[1]!r} do not mix; expected one architecture")
