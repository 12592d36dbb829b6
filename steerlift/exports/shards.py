"""Checkpoints as streams of tensors, so that a large one is changed without ever being whole in memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json, write_json
from steerlift.steering.models import load_config, load_model
from steerlift.steering.pretrained import find_source, one_line

MOST_SHARD_BYTES = 5 * 10**9

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_tensors(name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model `name` (hub id or folder), one at a time from its safetensors files.

    An adapter, or a model in another format, is loaded whole first.
    """
    source = find_source(name)
    files = _safetensors_files(source.name) if source.base is None else []
    if not files:
        model = load_model(name, torch.device("cpu"), load_config(name).dtype or torch.float32)
        yield from model.state_dict().items()
    for path in files:
        with one_line(name), safe_open(path, framework="pt") as file:
            for tensor_name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield tensor_name, file.get_tensor(tensor_name)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], most_bytes: int = MOST_SHARD_BYTES) -> None:
    """Writes the tensors to safetensors files of at most `most_bytes` each, named and indexed as transformers does.

    Holds one file's tensors in memory. A larger tensor gets a file of its own.
    """
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        shards.append(list(waiting))
        try:
            save_file(waiting, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {folder}: {error}; make room or name another place") from error
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > most_bytes:
            flush()
            size = 0
        waiting[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "1.safetensors").rename(folder / _WHOLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _safetensors_files(name: str) -> list[str]:
    """The model's safetensors files; none where it has none."""
    whole = _find(name, _WHOLE)
    if whole is not None:
        return [whole]
    index = _find(name, _INDEX)
    if index is None:
        return []
    from transformers.utils import cached_file

    with one_line(name):
        return [str(cached_file(name, file)) for file in sorted(set(read_json(Path(index))["weight_map"].values()))]


def _find(name: str, file: str) -> str | None:
    from transformers.utils import cached_file

    try:
        return str(cached_file(name, file))
    except OSError:
        return None
