"""vLLM's own models whose decoder layers add to each token what the slot of its request holds.

Shapes: N tokens of a step, H hidden size, S slots. vLLM keeps the residual stream in two parts, (hidden_states, residual),
whose sum it is: adding to the first is adding to the stream. With tensor parallelism every rank holds the whole stream and
adds the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from steerlift.serving.steering_rows import take_slots
from steerlift.serving.vllm_private import decoder_layers, query_starts


class SteeredLayer(nn.Module):
    """What a decoder layer becomes: its own forward, then the addition, which torch.compile sees as part of the graph."""

    steering_table_SH: Tensor
    steering_slot_of_token_N: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - each family has its own
        """The layer's output with the addition of each token's slot."""
        hidden_NH, residual_NH = super().forward(*args, **kwargs)
        slot_N = self.steering_slot_of_token_N[: hidden_NH.shape[0]]
        return hidden_NH + torch.index_select(self.steering_table_SH, 0, slot_N), residual_NH


class SteeredModel(nn.Module):
    """Mixed in before a vLLM causal language model."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: ANN401 - vLLM's own
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.steering_slots = take_slots()
        if self.steering_slots is None:
            return
        for index, layer in decoder_layers(self):
            # The instance changes its class, since not every family lets its layers' class be chosen. No buffers: a weight
            # update would take them away and warn that they are not among the new weights.
            layer.__class__ = type(f"Steered{type(layer).__name__}", (SteeredLayer, type(layer)), {})
            layer.steering_table_SH = self.steering_slots.tables_SH[index]
            layer.steering_slot_of_token_N = self.steering_slots.slot_of_token_N

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Places the slots, which is outside what is compiled or captured, then runs the model."""
        if self.steering_slots is not None:
            self.steering_slots.place(query_starts(), positions.shape[-1])
        return super().forward(input_ids, positions, *args, **kwargs)


class SteeredQwen2(SteeredModel, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class SteeredQwen3(SteeredModel, Qwen3ForCausalLM):
    """Qwen3."""


class SteeredLlama(SteeredModel, LlamaForCausalLM):
    """Llama, SmolLM2 and others of its kind."""


class SteeredMistral(SteeredModel, MistralForCausalLM):
    """Mistral."""


class SteeredGemma2(SteeredModel, Gemma2ForCausalLM):
    """Gemma 2."""


class SteeredGemma3(SteeredModel, Gemma3ForCausalLM):
    """Gemma 3 for text."""
