"""Which model a name means: one that was trained or edited since, in the same folder, is another. The same of vectors."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from steerlift.steering.vectors import SteeringVectors


def identity(name: str) -> str:
    """A hub id as it is; a folder with the sizes and times of its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    # Weights, configuration, tokenizer and chat template; not logs that a training run may still be writing beside them.
    files = sorted(file for ending in ("*.safetensors", "*.json", "*.jinja") for file in folder.glob(ending))
    marks = "".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns};" for file in files)
    return f"{place(name)} {hashlib.sha256(marks.encode()).hexdigest()[:16]}"


def place(name: str) -> str:
    """A hub id as it is; a folder by its whole path."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def vectors_identity(vectors: SteeringVectors) -> str:
    """What tells vectors of other content apart, hexadecimal."""
    return digest(f"{index} {vector.tolist()}" for index, vector in vectors.layers.items())


def digest(parts: Iterable[str]) -> str:
    """One hash of several texts, hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
