"""Steering vectors: one float32 vector of shape (hidden_size,) per decoder layer, with its origin, on disk and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from steerlift.records.errors import InputError, MissingInputError
from steerlift.steering.vector_files import read_file, to_safetensors, write_file


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
        """Writes by the ending of `path`: `.safetensors` (with metadata), the original's `.json` or llama.cpp's `.gguf`.

        llama.cpp cannot steer layer 0; a `.gguf` leaves it out, and a line says so.
        """
        target = Path(path)
        write_file(target, self.layers, self.metadata)
        return target

    def content(self) -> bytes:
        """The vectors as a safetensors file without metadata: what is uploaded to a server, the same for the same vectors."""
        return to_safetensors(self.layers)

    @classmethod
    def load(cls, path: str | Path) -> "SteeringVectors":
        """Reads `.safetensors`, the original's JSON or `.gguf`. Raises MissingInputError or InputError with the file named."""
        source = Path(path)
        if not source.is_file():
            raise MissingInputError(f"steering vectors {source}: no such file; `steerlift extract` writes one")
        return cls(*read_file(source))
