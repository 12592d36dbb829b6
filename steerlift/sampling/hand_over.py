"""Gives new weights to a running vLLM server of this machine: a safetensors file in its private folder, then its own endpoints.

Weights have a version, a name that the server keeps beside them, so that it can be asked which it has.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from steerlift.records.errors import InputError, ServerError
from steerlift.sampling.server import Server

# The version while an update is under way: whoever finds it left by a client that died gives the weights anew.
_UNFINISHED = "unfinished"
_SCRATCH = "steerlift-weights-"


def weight_version(server: Server) -> str:
    """The version of the weights that the server has now."""
    return str(server.ask("GET", "/weight_info").get("weight_version"))


def scratch_folder(beside: Path) -> Path:
    """A new folder for this process's weights, next to a server's; those of processes that have died are removed first.

    In memory a copy that a killed run has left would be in the way until the machine is started anew.
    """
    for old in beside.parent.glob(f"{_SCRATCH}*"):
        if _is_left(old.name.removeprefix(_SCRATCH).partition("-")[0]):
            shutil.rmtree(old, ignore_errors=True)  # another user's stays
    return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=beside.parent))


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Saves weights for `give_weights`; one that two names share (tied embeddings) goes once, under the first.

    Raises InputError where there is no room for them.
    """
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in weights.items():
        first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
    file.unlink(missing_ok=True)  # a server that is slow may still be reading the file of before
    try:
        save_file({name: weights[name].contiguous() for name in first.values()}, file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: {error}; a copy of the weights has to fit there, in memory") from error


def give_weights(server: Server, folder: Path, file: Path, version: str) -> None:
    """Has the server load `file`, tensors named as transformers saves them, all of them; requests under way go on with it.

    `folder` is where the server takes weights from, on the file's own file system. Raises ServerError when the server fails;
    it can then be tried again, also on a server that has started anew.
    """
    handed = folder / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{os.getpid()}.safetensors"
    with _linked(file, handed):
        server.request("POST", "/init_weight_transfer_engine", json={"init_info": {}})
        _start_update(server)
        server.request("POST", "/finish_weight_update", json={"weight_version": _UNFINISHED})
        server.request("POST", "/pause", params={"mode": "keep", "clear_cache": "false"})
        try:
            server.request("POST", "/start_weight_update", json={})
            server.request("POST", "/update_weights", json={"update_info": {"file": handed.name}})
            server.request("POST", "/finish_weight_update", json={"weight_version": version})
            # Without this, answers to prompts whose beginning is cached would come from the old weights.
            server.request("POST", "/reset_prefix_cache")
        finally:
            server.request("POST", "/resume")


def _start_update(server: Server) -> None:
    try:
        server.request("POST", "/start_weight_update", json={})
    except ServerError:
        # A trainer that died has left one open.
        server.request("POST", "/finish_weight_update", json={})
        server.request("POST", "/start_weight_update", json={})


@contextmanager
def _linked(source: Path, target: Path) -> Iterator[None]:
    for old in target.parent.glob("*-*.safetensors"):
        if _is_left(old.stem.rpartition("-")[2]):
            old.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        raise ServerError(f"{target}: {error.strerror}; is the server that made this folder gone?") from error
    try:
        yield
    finally:
        target.unlink(missing_ok=True)


def _is_left(pid: str) -> bool:
    """Whether a process of this name is gone, so that its files are in nobody's use."""
    return pid.isdigit() and not psutil.pid_exists(int(pid))
