"""Steering vectors: one float32 vector of shape (hidden_size,) per decoder layer, with its origin, on disk and back."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import replacing, write_json

_PREFIX = "layer."


@dataclass(frozen=True)
class SteeringVectors:
    """Layer index -> vector of shape (hidden_size,), float32, with string metadata (base model, method, tokens, seed ...).

    Raises InputError for no layers, a negative index, anything but 1-D vectors of one size, or values that are not finite.
    """

    layers: Mapping[int, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("steering vectors: got no layers, expected at least one")
        for index, vector in self.layers.items():
            if not isinstance(index, int) or index < 0:
                raise InputError(f"steering vectors: got layer index {index!r}, expected an integer from 0 on")
            if vector.dim() != 1 or vector.numel() == 0:
                raise InputError(f"steering vectors: layer {index} has shape {tuple(vector.shape)}, expected (hidden_size,)")
            if not bool(torch.isfinite(vector).all()):
                raise InputError(f"steering vectors: layer {index} holds values that are not finite")
        sizes = {vector.numel() for vector in self.layers.values()}
        if len(sizes) > 1:
            raise InputError(f"steering vectors: layers of different sizes {sorted(sizes)}, expected one hidden size")
        ordered = {index: self.layers[index].detach().to("cpu", torch.float32) for index in sorted(self.layers)}
        object.__setattr__(self, "layers", ordered)

    @property
    def hidden_size(self) -> int:
        """The size of every vector."""
        return next(iter(self.layers.values())).numel()

    def norms(self) -> dict[int, float]:
        """Layer index -> Euclidean norm."""
        return {index: float(vector.norm()) for index, vector in self.layers.items()}

    def increments(self) -> "SteeringVectors":
        """Each layer's vector less the one of the next lower layer present.

        A layer's mean difference already contains the shift carried up from below, so adding every one at weight 1 overshoots.
        """
        shifted: dict[int, Tensor] = {}
        below: Tensor | None = None
        for index, vector in self.layers.items():
            shifted[index] = vector if below is None else vector - below
            below = vector
        return SteeringVectors(shifted, {**self.metadata, "method": "increments"})

    def random_like(self, seed: int) -> "SteeringVectors":
        """Random directions with the norms of these vectors: the control that shows what a norm alone does."""
        generator = torch.Generator().manual_seed(seed)
        layers: dict[int, Tensor] = {}
        for index, vector in self.layers.items():
            direction = torch.randn(vector.shape, generator=generator)
            layers[index] = direction / direction.norm() * vector.norm()
        return SteeringVectors(layers, {**self.metadata, "method": "random", "seed": str(seed)})

    def save(self, path: str | Path) -> Path:
        """Writes the vectors by the ending of `path`: `.safetensors` (with metadata) or the original's `.json`."""
        target = Path(path)
        if target.suffix == ".json":
            write_json(target, {str(index): vector.tolist() for index, vector in self.layers.items()})
        elif target.suffix == ".safetensors":
            tensors = {f"{_PREFIX}{index}": vector.contiguous() for index, vector in self.layers.items()}
            with replacing(target) as temporary:
                save_file(tensors, temporary, metadata=dict(self.metadata))
        else:
            raise InputError(f"cannot save vectors as {target}: expected a name that ends in .safetensors or .json")
        return target

    @classmethod
    def load(cls, path: str | Path) -> "SteeringVectors":
        """Reads `.safetensors` or the original's JSON. Raises MissingInputError or InputError with the file named."""
        source = Path(path)
        if not source.is_file():
            raise MissingInputError(f"steering vectors {source}: no such file; `steerlift extract` writes one")
        if source.suffix == ".json":
            return cls(_read_json(source), {"source": str(source)})
        if source.suffix == ".safetensors":
            return _read_safetensors(source)
        raise InputError(f"steering vectors {source}: got ending {source.suffix!r}, expected .safetensors or .json")


def _read_safetensors(source: Path) -> SteeringVectors:
    layers: dict[int, Tensor] = {}
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(sorted((file.metadata() or {}).items()))  # safetensors keeps no order
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                index = name.removeprefix(_PREFIX)
                if not name.startswith(_PREFIX) or not index.isdecimal():
                    raise InputError(f"{source}: got tensor {name!r}, expected only layer.<index>")
                layers[int(index)] = file.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{source} is not a safetensors file: {error}") from error
    return SteeringVectors(layers, metadata)


def _read_json(source: Path) -> dict[int, Tensor]:
    expected = 'expected {"0": [numbers], "1": [numbers], ...}'
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{source} is not JSON ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: got a {type(content).__name__}, {expected}")
    layers: dict[int, Tensor] = {}
    for key, values in content.items():
        numbers = isinstance(values, list) and all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values
        )
        if not key.isdecimal() or not numbers:
            raise InputError(f"{source}: entry {key!r} is not a layer of finite numbers; {expected}")
        layers[int(key)] = torch.tensor(values, dtype=torch.float32)
    return layers
