"""The file formats of steering vectors: safetensors with metadata, the original's JSON, and llama.cpp's control vectors.

A control vector is a GGUF file of 1-D float32 tensors `direction.N`, each added after the block N; llama.cpp's first block
(N = 0) cannot be steered. Other tools (repeng) also read `controlvector.model_hint` and `controlvector.layer_count`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.progress import say
from steerlift.records.runs import replacing, write_json

Content = tuple[dict[int, Tensor], dict[str, str]]
"""Layer index -> vector of shape (hidden_size,), and the metadata."""

_PREFIX = "layer."
_DIRECTION = re.compile(r"direction\.([1-9][0-9]*)")
_METADATA = "steerlift."


def to_safetensors(layers: Mapping[int, Tensor]) -> bytes:
    """The content of a safetensors file of the vectors, without metadata: the same for the same vectors."""
    content: bytes = save(_named(layers))
    return content


def read_file(path: Path) -> Content:
    """Reads the vectors by the ending of `path`. Raises InputError with the file named."""
    if path.suffix not in _READERS:
        raise InputError(f"steering vectors {path}: got ending {path.suffix!r}, {_ENDINGS}")
    return _READERS[path.suffix](path)


def write_file(path: Path, layers: Mapping[int, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the vectors by the ending of `path`. Raises InputError where the format cannot hold them."""
    if path.suffix not in _WRITERS:
        raise InputError(f"cannot save vectors as {path}: {_ENDINGS}")
    _WRITERS[path.suffix](path, layers, metadata)


def _read_safetensors(path: Path) -> Content:
    layers: dict[int, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(sorted((file.metadata() or {}).items()))  # safetensors keeps no order
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                index = name.removeprefix(_PREFIX)
                if not name.startswith(_PREFIX) or not index.isdecimal():
                    raise InputError(f"{path}: got tensor {name!r}, expected only layer.<index>")
                layers[int(index)] = file.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    return layers, metadata


def _write_safetensors(path: Path, layers: Mapping[int, Tensor], metadata: Mapping[str, str]) -> None:
    with replacing(path) as temporary:
        save_file(_named(layers), temporary, metadata=dict(metadata))


def _named(layers: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {f"{_PREFIX}{index}": vector.contiguous() for index, vector in layers.items()}


def _read_json(path: Path) -> Content:
    expected = 'expected {"0": [numbers], "1": [numbers], ...}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: got a {type(content).__name__}, {expected}")
    layers: dict[int, Tensor] = {}
    for key, values in content.items():
        numbers = isinstance(values, list) and all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values
        )
        if not key.isdecimal() or not numbers:
            raise InputError(f"{path}: entry {key!r} is not a layer of finite numbers; {expected}")
        layers[int(key)] = torch.tensor(values, dtype=torch.float32)
    return layers, {"source": str(path)}


def _write_json(path: Path, layers: Mapping[int, Tensor], metadata: Mapping[str, str]) -> None:  # noqa: ARG001 - has no place
    write_json(path, {str(index): vector.tolist() for index, vector in layers.items()})


def _read_gguf(path: Path) -> Content:
    gguf = _gguf(path)
    try:
        file = gguf.GGUFReader(path)
        metadata = {
            name.removeprefix(_METADATA): str(field.contents())
            for name, field in file.fields.items()
            if name.startswith(_METADATA)
        }
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"{path} is not a GGUF file: {str(error).splitlines()[0]}") from error
    layers: dict[int, Tensor] = {}
    for tensor in file.tensors:
        match = _DIRECTION.fullmatch(tensor.name)
        if match is None or tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            raise InputError(
                f"{path}: got tensor {tensor.name!r} ({tensor.tensor_type.name}), expected direction.<index> in F32"
            )
        layers[int(match[1])] = torch.tensor(tensor.data.copy())
    return layers, metadata or {"source": str(path)}


def _write_gguf(path: Path, layers: Mapping[int, Tensor], metadata: Mapping[str, str]) -> None:
    gguf = _gguf(path)
    kept = {index: vector for index, vector in layers.items() if index > 0}
    if not kept:
        raise InputError(f"cannot save vectors as {path}: llama.cpp cannot steer layer 0, expected another; bake them instead")
    if 0 in layers:
        say(f"{path}: layer 0 (norm {float(layers[0].norm()):.3g}) is left out, since llama.cpp cannot steer its first block")
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "controlvector")
        writer.add_string("controlvector.model_hint", metadata.get("architecture", "unknown").partition(",")[0])
        writer.add_uint32("controlvector.layer_count", len(kept))
        for key, value in metadata.items():
            writer.add_string(f"{_METADATA}{key}", value)
        for index, vector in kept.items():
            writer.add_tensor(f"direction.{index}", vector.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _gguf(path: Path) -> Any:  # noqa: ANN401 - the module
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(f"{path}: GGUF files need the package gguf: pip install 'steerlift[gguf]'") from error
    return gguf


_READERS: dict[str, Callable[[Path], Content]] = {
    ".safetensors": _read_safetensors,
    ".json": _read_json,
    ".gguf": _read_gguf,
}
_WRITERS: dict[str, Callable[[Path, Mapping[int, Tensor], Mapping[str, str]], None]] = {
    ".safetensors": _write_safetensors,
    ".json": _write_json,
    ".gguf": _write_gguf,
}
_ENDINGS = "expected .safetensors or .json, or .gguf for llama.cpp"
