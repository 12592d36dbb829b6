"""llama.cpp's way to steer: a control vector, which its server adds to any GGUF file of the base model."""

import shlex
from pathlib import Path

from steerlift.steering.vectors import SteeringVectors


def write_gguf(path: Path, vectors: SteeringVectors, weight: float) -> list[str]:
    """Writes the unscaled vectors; returns the command lines that serve them at `weight`.

    Layer 0 is left out and a line says so, since llama.cpp cannot steer its first block. Raises InputError for layer 0 alone.
    """
    vectors.save(path)
    serve = "llama-server -m MODEL.gguf --control-vector-scaled"
    return [
        f"serve it with:  {serve} {shlex.quote(f'{path}:{weight}')}",
        f"or, before llama.cpp's pull request 18056:  {serve} {shlex.quote(str(path))} {weight}",
    ]
