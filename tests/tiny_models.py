"""Random models of three decoder layers, and a tokenizer that spells ids."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 97
PAD, END = 0, 1
HIDDEN, LAYERS = 64, 3

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "llama": (LlamaConfig, {}),
    # Windows shorter than the tests' sequences, so that they slide.
    "mistral": (MistralConfig, {"sliding_window": 8}),
    "gemma2": (Gemma2Config, {"sliding_window": 8}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8}),
}


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model whose weights are large enough that its choices are clear and its greedy text does not repeat."""
    config_type, special = FAMILIES[family]
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": 2,
        "eos_token_id": END,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_type(**{**options, **special, **changes})).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


class SpellingTokenizer:
    """Decodes ids to their numbers; all that a sampler needs of a tokenizer."""

    pad_token_id = PAD
    eos_token_id = END

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        dropped = {PAD, END} if skip_special_tokens else set()
        return [" ".join(str(i) for i in row if i not in dropped) for row in rows]


def random_prompts(*lengths: int) -> list[tuple[int, ...]]:
    """Prompts of the given lengths without special ids."""
    return [tuple(torch.randint(3, VOCABULARY, (length,)).tolist()) for length in lengths]


def full_forward_logprobs(model: Any, prompt: tuple[int, ...], completion: Any, temperature: float) -> torch.Tensor:
    """The log probabilities of a completion's tokens, from one forward pass over prompt and completion."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
    places = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logprobs[places, torch.tensor(completion.token_ids)]
