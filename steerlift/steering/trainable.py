"""Steering vectors with gradients: what `steerlift learn` trains while the model's own weights stay as they are.

Shapes: L steered layers, H hidden size.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steerlift.records.errors import InputError
from steerlift.steering.hooks import Transform, add_layer_hooks
from steerlift.steering.models import Model, decoder_layers
from steerlift.steering.vectors import SteeringVectors

NAME = "steering_vectors"
"""The attribute of a model under which its trainable vectors stand."""
SCALES = "scales"
"""The metadata key of the layers' scales."""


class TrainableVectors(nn.Module):
    """One vector per steered layer, v_l = scale_l x direction_l; the directions are the parameters.

    With scales of the size of the layers' activations one learning rate serves all layers and models. They are powers of
    two, so that the vectors hold the directions exactly and training can go on from a file of vectors.
    """

    scales_L1: Tensor

    def __init__(self, start: Mapping[int, Tensor], scales: Mapping[int, float], metadata: Mapping[str, str]) -> None:
        super().__init__()
        self.indices = sorted(start)
        self.metadata = {**metadata, SCALES: " ".join(f"{scales[index]:g}" for index in self.indices)}
        self.register_buffer("scales_L1", torch.tensor([[scales[index]] for index in self.indices]), persistent=False)
        self.directions_LH = nn.Parameter(torch.stack([start[index].float() for index in self.indices]) / self.scales_L1)

    @classmethod
    def resumed(cls, saved: SteeringVectors) -> "TrainableVectors":
        """Goes on with vectors that `vectors` gave. Raises InputError for others."""
        scales = saved.metadata.get(SCALES, "").split()
        if len(scales) != len(saved.layers):
            raise InputError("steering vectors: their file holds no scales, expected vectors of `steerlift learn`")
        return cls(saved.layers, dict(zip(saved.layers, map(float, scales), strict=True)), saved.metadata)

    def attach(self, model: Model) -> None:
        """Makes the vectors a part of the model, whose other parameters are frozen: every forward pass adds them."""
        model.requires_grad_(False)
        model.add_module(NAME, self.to(model.device))
        add_layer_hooks(decoder_layers(model), {index: self._transform(place) for place, index in enumerate(self.indices)})

    def vectors(self) -> SteeringVectors:
        """The vectors as they are now."""
        layers_LH = (self.directions_LH * self.scales_L1).detach()
        return SteeringVectors(dict(zip(self.indices, layers_LH, strict=True)), self.metadata)

    def _transform(self, place: int) -> Transform:
        def add(hidden_BTH: Tensor) -> Tensor:
            return hidden_BTH + (self.directions_LH[place] * self.scales_L1[place]).to(hidden_BTH.dtype)

        return add


def scale_of(norm: float, hidden_size: int) -> float:
    """The power of two nearest the root mean square of states with this norm."""
    return 2.0 ** round(math.log2(norm / math.sqrt(hidden_size))) if norm else 1.0


def trainable_vectors(model: Model) -> TrainableVectors | None:
    """The vectors that are trained with the model; None where its weights or adapters are."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, TrainableVectors) else None
