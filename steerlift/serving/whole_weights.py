"""Whether a file of weights is the whole model: every tensor there, none too many, each of its shape."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerlift.records.errors import InputError

Shapes = dict[frozenset[str], torch.Size]
"""The names of each parameter of a model (several, where weights are tied) and its shape."""


def shapes_of(config: Any, trust_remote_code: bool = False) -> Shapes:  # noqa: ANN401 - transformers is untyped
    """What a checkpoint of this configuration consists of, by transformers' own model, built without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    names: dict[int, set[str]] = {}
    shapes: dict[int, torch.Size] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
        shapes[id(parameter)] = parameter.shape
    return {frozenset(names[key]): shapes[key] for key in names}


def fitting_weights(tensors: Mapping[str, Tensor], shapes: Shapes, source: str) -> dict[str, Tensor]:
    """The tensors to load, tied ones once. vLLM would fill what is missing with whatever its memory holds.

    Raises InputError, beginning with `source`, for a tensor that is missing, unknown or of another shape.
    """
    chosen: dict[str, Tensor] = {}
    for names, shape in shapes.items():
        present = sorted(names & tensors.keys(), key=lambda name: (name.startswith("lm_head"), name))
        if not present:
            raise InputError(f"{source}: tensor {min(names)} is missing; expected all that transformers saves for the model")
        name = present[0]
        if tensors[name].shape != shape:
            raise InputError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}")
        chosen[name] = tensors[name]
    unknown = sorted(tensors.keys() - frozenset[str]().union(*shapes))
    if unknown:
        raise InputError(f"{source}: the model has no tensor {unknown[0]}; expected names as transformers saves them")
    return chosen
