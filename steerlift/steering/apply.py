"""Adds `weight x vector` to a model's residual stream, exactly and only inside a `with` block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steerlift.records.errors import InputError
from steerlift.steering.hooks import Transform, layer_hooks
from steerlift.steering.models import Model, architecture, decoder_layers, text_config
from steerlift.steering.vectors import SteeringVectors

Weight = float | Sequence[float] | Tensor


@contextmanager
def steer(model: Model, vectors: SteeringVectors, weight: Weight) -> Iterator["Steering"]:
    """Inside the block, the state after each decoder layer l is `base + weight * vectors.layers[l]`.

    `weight` is one number for the whole batch or one per batch row, shape (batch,). Weight 0 leaves the model bit-identical.
    The addition holds under `generate`, KV caches and gradient checkpointing; everything is removed when the block is left.
    Raises InputError when the vectors do not fit the model or a batch has another number of rows than there are weights.
    """
    layers = decoder_layers(model)
    check_fit(text_config(model), vectors, type(model).__name__)
    steering = Steering(vectors, weight)
    with layer_hooks(layers, {index: steering.transform(index) for index in vectors.layers}):
        yield steering


def check_fit(config: Any, vectors: SteeringVectors, name: str) -> None:  # noqa: ANN401 - transformers is untyped
    """Raises InputError, with both sides named, for vectors of another hidden size, depth or architecture.

    `config` is the configuration of the language part of the model that the message calls `name`.
    """
    if vectors.hidden_size != config.hidden_size:
        raise InputError(f"steering vectors have hidden size {vectors.hidden_size}, {name} has {config.hidden_size}")
    last = config.num_hidden_layers - 1
    beyond = [index for index in vectors.layers if index > last]
    if beyond:
        raise InputError(f"steering vectors are for layer {beyond[0]}, {name} has layers 0 to {last}")
    extracted_from = vectors.metadata.get("architecture")
    if extracted_from and extracted_from != architecture(config):
        raise InputError(f"steering vectors were made for {extracted_from}; this model is {architecture(config)}")


class Steering:
    """The weights now in force. Built by `steer`; a sampler changes them as rows of its batch finish."""

    def __init__(self, vectors: SteeringVectors, weight: Weight) -> None:
        self._vectors = vectors
        self.set_weight(weight)

    def set_weight(self, weight: Weight) -> None:
        """One number for all rows, or one per row, shape (batch,)."""
        self._weight = torch.as_tensor(weight, dtype=torch.float32).detach().cpu()
        if self._weight.dim() > 1:
            raise InputError(f"steering weight has shape {tuple(self._weight.shape)}, expected a number or (batch,)")
        if not bool(torch.isfinite(self._weight).all()):
            raise InputError(f"steering weight is {weight}, expected finite numbers")
        self._active = bool((self._weight != 0).any())
        # What is added, per layer, in the dtype and on the device of that layer: built at the first forward after a change.
        self._additions: dict[int, Tensor] = {}

    def transform(self, index: int) -> Transform:
        """The addition at decoder layer `index`, as `hooks.layer_hooks` takes it."""

        def add(hidden_BTH: Tensor) -> Tensor | None:
            if not self._active:
                return None
            addition = self._additions.get(index)
            if addition is None or addition.dtype != hidden_BTH.dtype or addition.device != hidden_BTH.device:
                addition = self._addition(index).to(hidden_BTH)
                self._additions[index] = addition
            if addition.dim() == 3 and addition.shape[0] != hidden_BTH.shape[0]:
                raise InputError(
                    f"steering has {addition.shape[0]} weights, the batch has {hidden_BTH.shape[0]} rows; "
                    "give one number or one per row"
                )
            return hidden_BTH + addition

        return add

    def _addition(self, index: int) -> Tensor:
        # The product is taken in float32 and rounded once, whatever the model's dtype.
        vector_H = self._vectors.layers[index]
        return self._weight[:, None, None] * vector_H if self._weight.dim() else self._weight * vector_H
