"""vLLM's public hook that follows the rows of the running batch: here it learns which configuration each request asks for.

It changes no logits. It is built before the model (by the worker), so it makes the slots and the model takes them.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from steerlift.serving.plugin import STEERED_ARCHITECTURES
from steerlift.serving.private import folder_of_this_server, read_key
from steerlift.serving.slots import Additions, Slots
from steerlift.serving.steering_field import XARG, parse_canonical, unseal
from steerlift.serving.vector_store import read_vectors
from steerlift.serving.vllm_private import mend_seeded_sampling

_made: list[Slots] = []


def take_slots() -> Slots | None:
    """The slots of the model that is being built now; None in a server without steering."""
    return _made.pop() if _made else None


class SteeringRows(LogitsProcessor):
    """Tells the slots which request stands in which row."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:  # noqa: ANN401 - vLLM's own
        """Raises InputError (a ValueError: vLLM answers 400) for a configuration that this server's guard has not made."""
        _configuration(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ANN401, ARG002 - vLLM's own
        mend_seeded_sampling(device)
        model = vllm_config.model_config
        if model.architecture not in STEERED_ARCHITECTURES:
            # The guard refuses steering for such a model; no memory is set aside for it.
            self.slots: Slots | None = None
            return
        scheduler = vllm_config.scheduler_config
        self.slots = Slots(
            additions,
            layers=model.hf_text_config.num_hidden_layers,
            hidden_size=model.hf_text_config.hidden_size,
            max_rows=scheduler.max_num_seqs,
            max_tokens=max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs),
            dtype=model.dtype,
            device=device,
        )
        _made[:] = [self.slots]

    def apply(self, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """True: vLLM need not even call `apply` when it samples greedily."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called by vLLM before every forward pass."""
        if batch_update is None or self.slots is None:
            return
        self.slots.update(
            batch_update.removed,
            [(row, _configuration(params)) for row, params, _, _ in batch_update.added],
            [(start, end, kind == MoveDirectionality.SWAP) for start, end, kind in batch_update.moved],
        )


def additions(configuration: str) -> Additions:
    """Layer index -> the sum of `weight x vector` over a configuration's vectors, float32."""
    sums: dict[int, Tensor] = {}
    for digest, weight in parse_canonical(configuration):
        for layer, vector_H in read_vectors(folder_of_this_server(), digest).layers.items():
            addition_H = (weight[layer] if isinstance(weight, list) else weight) * vector_H
            sums[layer] = sums[layer] + addition_H if layer in sums else addition_H
    return sums


def _configuration(sampling_params: Any) -> str | None:  # noqa: ANN401 - vLLM's own
    extra = sampling_params.extra_args or {}
    return unseal(extra[XARG], _key()) if XARG in extra else None


@functools.cache
def _key() -> str:
    return read_key(folder_of_this_server())
