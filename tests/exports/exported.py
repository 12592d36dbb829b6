"""Models, tokenizer and vectors that the exports' tests share."""

from pathlib import Path
from typing import Any

import torch
from small_pipeline import tokenizer
from tiny_models import tiny_model

from steerlift.steering.models import text_config
from steerlift.steering.vectors import SteeringVectors


def model_with_biases(family: str, **changes: Any) -> Any:
    """A tiny random model with the small pipeline's tokenizer, all of whose biases are at work."""
    tokens = {"vocab_size": len(tokenizer()), "eos_token_id": tokenizer().eos_token_id, "bos_token_id": None}
    model = tiny_model(family, **{**tokens, "pad_token_id": tokenizer().pad_token_id, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def saved_model(folder: Path, model: Any, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def random_vectors(model: Any, norm: float = 3.0, without: tuple[int, ...] = ()) -> SteeringVectors:
    config = text_config(model)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(config.num_hidden_layers, config.hidden_size, generator=generator)
    vectors = norm * drawn / drawn.norm(dim=1, keepdim=True)
    return SteeringVectors({index: vectors[index] for index in range(len(vectors)) if index not in without})
