"""The named steering vectors of a server, in files named by the digest of their content.

A name can be given to other vectors, or taken back, while requests with the old ones are waiting or running: what has no name
any more stays for an hour at least, and makes room when the store is full: a training that uploads after every step fills it.
"""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from steerlift.records.errors import InputError, MissingInputError
from steerlift.serving.private import VECTORS, read_private, write_private
from steerlift.steering.apply import check_fit
from steerlift.steering.models import load_config
from steerlift.steering.vectors import SteeringVectors

MOST_BYTES = 2**30
LARGEST_VALUE = 1e6
# For how long a request may still want vectors whose name is gone.
NAMELESS_SECONDS = 3600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAYER = re.compile(r"layer\.(0|[1-9][0-9]{0,5})")
_NAMES = "names.json"
_HEADER_LENGTH_BYTES = 8


class VectorStore:
    """The vectors in a server's private folder; the parent fills it before vLLM starts, the guard while it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / VECTORS
        try:
            self._digests: dict[str, str] = json.loads(read_private(self._folder, _NAMES))
        except FileNotFoundError:
            self._digests = {}

    def digest_of(self, name: str) -> str:
        """The digest behind a name. Raises MissingInputError, listing the names there are."""
        if name not in self._digests:
            known = ", ".join(sorted(self._digests)) or "none"
            raise MissingInputError(f"steering.vector: no vector is named {name[:60]!r}; this server has: {known}")
        return self._digests[name]

    def names(self) -> dict[str, str]:
        """Name -> digest, sorted by name."""
        return dict(sorted(self._digests.items()))

    def put(self, name: str, vectors: SteeringVectors, config: Any, model: str) -> str:  # noqa: ANN401 - transformers
        """Gives `name` to the vectors and returns their digest. `config` is that of the model which messages call `model`.

        Raises InputError for a bad name, vectors that do not fit the model, and a full store.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"vector name {name[:60]!r}: expected letters, digits, '.', '_' or '-', at most 100, no dot first")
        check_fit(config, vectors, model)
        largest = max(float(vector.abs().max()) for vector in vectors.layers.values())
        if largest > LARGEST_VALUE:
            raise InputError(f"vectors {name}: a value is {largest:g}, expected at most {LARGEST_VALUE:g}")
        content = vectors.content()
        digest = hashlib.sha256(content).hexdigest()
        if not (self._folder / _file_name(digest)).exists():
            stored = self._make_room(len(content))
            if stored + len(content) > MOST_BYTES:
                raise InputError(
                    f"vectors {name}: the server already holds {stored} bytes of vectors, expected at most {MOST_BYTES} with "
                    "these; delete some, which makes room after an hour, or restart it"
                )
            write_private(self._folder / _file_name(digest), content)
        self._remember({**self._digests, name: digest})
        return digest

    def forget(self, name: str) -> None:
        """Takes a name back. Raises MissingInputError when there is no such name."""
        self.digest_of(name)
        self._remember({known: digest for known, digest in self._digests.items() if known != name})

    def _remember(self, digests: dict[str, str]) -> None:
        for digest in set(self._digests.values()) - set(digests.values()):
            os.utime(self._folder / _file_name(digest))  # without a name from now on
        write_private(self._folder / _NAMES, json.dumps(digests).encode())
        self._digests = digests

    def _make_room(self, needed: int) -> int:
        """Drops files that have had no name for an hour, longest first, until `needed` bytes fit. Returns the bytes left."""
        named = {_file_name(digest) for digest in self._digests.values()}
        status = {file: file.stat() for file in self._folder.glob("*.safetensors")}
        stored = sum(found.st_size for found in status.values())
        for file in sorted(status, key=lambda file: status[file].st_mtime):
            if stored + needed <= MOST_BYTES or time.time() - status[file].st_mtime < NAMELESS_SECONDS:
                break
            if file.name not in named:
                file.unlink()
                stored -= status[file].st_size
        return stored


def parse_vectors(content: bytes) -> SteeringVectors:
    """The vectors of an uploaded safetensors file. Raises InputError unless it holds layer.<index>, floating-point, 1-D."""
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"upload: not a safetensors file ({str(error)[:100]})") from error
    layers: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise InputError(f"upload: got tensor {name[:60]!r}, expected only layer.<index>")
        if not tensor.is_floating_point():
            raise InputError(f"upload: {name} holds {tensor.dtype}, expected floating-point numbers")
        layers[int(match[1])] = tensor
    header = content[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")]
    return SteeringVectors(layers, json.loads(header).get("__metadata__") or {})


def store_files(folder: Path, paths: Mapping[str, Path], model: str) -> None:
    """Puts the vector files (.safetensors or .json) of names given on the command line. Raises as `VectorStore.put` does."""
    config = load_config(model)
    store = VectorStore(folder)
    for name, path in paths.items():
        store.put(name, SteeringVectors.load(path), config, model)


@functools.lru_cache(maxsize=256)
def read_vectors(folder: Path, digest: str) -> SteeringVectors:
    """The vectors with a digest, as the worker reads them."""
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"vectors {digest[:60]!r}: expected the digest of a file")
    content = read_private(folder / VECTORS, _file_name(digest))
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"vectors {digest}: the file has other content")
    return parse_vectors(content)


def _file_name(digest: str) -> str:
    return f"{digest}.safetensors"
