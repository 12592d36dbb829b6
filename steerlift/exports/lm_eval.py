"""What the steered models of lm-evaluation-harness read (0.4.13): hook point -> vector, coefficient and action."""

import shlex
from pathlib import Path

import torch

from steerlift.records.runs import replacing
from steerlift.steering.models import decoder_layers, load_config
from steerlift.steering.vectors import SteeringVectors


def write_pt(path: Path, vectors: SteeringVectors, weight: float, base_model_name: str) -> list[str]:
    """Writes the vectors with `weight` as their coefficient; returns the command line that evaluates the steered model.

    A hook point is the name of a module inside `model.base_model`, to whose output coefficient x vector is added.
    """
    names = _layer_names(base_model_name)
    content = {
        names[index]: {
            "steering_vector": vector,
            "steering_coefficient": weight,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for index, vector in vectors.layers.items()
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)
    arguments = shlex.quote(f"pretrained={base_model_name},steer_path={path}")
    return [f"evaluate it with:  lm_eval --model steered --model_args {arguments} --tasks gsm8k"]


def _layer_names(base_model_name: str) -> dict[int, str]:
    """Decoder layer -> its name in the model without its head; reads no weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(base_model_name))
    names = {module: name for name, module in model.base_model.named_modules()}
    return {index: names[layer] for index, layer in decoder_layers(model).items()}
