"""What vLLM loads in each of its processes, by the entry point `vllm.general_plugins`: steered models and weights from a file.

It stays out of the way of vLLM servers that were not started by `steerlift serve`.
"""

import os

from steerlift.serving.command import FILE_BACKEND
from steerlift.serving.private import FOLDER_VARIABLE
from steerlift.serving.process import end_with_parent

STEERED_ARCHITECTURES = {
    "Qwen2ForCausalLM": "SteeredQwen2",
    "Qwen3ForCausalLM": "SteeredQwen3",
    "LlamaForCausalLM": "SteeredLlama",
    "MistralForCausalLM": "SteeredMistral",
    "Gemma2ForCausalLM": "SteeredGemma2",
    "Gemma3ForCausalLM": "SteeredGemma3",
}


def register() -> None:
    """Called by vLLM, possibly more than once in a process."""
    if FOLDER_VARIABLE not in os.environ:
        return
    from vllm import ModelRegistry

    from steerlift.serving.vllm_private import register_engine

    end_with_parent()
    for architecture, steered in STEERED_ARCHITECTURES.items():
        # By name: importing a model before vLLM has forked its workers would initialize the GPU too early.
        ModelRegistry.register_model(architecture, f"steerlift.serving.steered_models:{steered}")
    register_engine(FILE_BACKEND, "steerlift.serving.weight_transfer", "FileEngine")
