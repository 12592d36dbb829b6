"""Checkpoints, complete or absent: ordinary Hugging Face folders, or of learned vectors a folder with their file alone.

Beside the last one stands what training goes on from.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerlift.records.errors import CheckpointError
from steerlift.records.runs import replacing_folder
from steerlift.steering.models import Model, Tokenizer, hide_bars
from steerlift.steering.trainable import trainable_vectors
from steerlift.training.lora import merged

_STATE = "training_state.safetensors"
_ADAPTER = "adapter"
_VECTORS = "vectors.safetensors"
_PREFIX = "checkpoint_step_"


def save_checkpoint(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor] | None = None,
    training_state: dict[str, Tensor] | None = None,
) -> Path:
    """Saves model and tokenizer under a temporary name and renames the folder. Returns `folder`.

    `weights` are the model's own by default. Of a model with adapters the merged weights are saved, and the adapters alone
    in the folder `adapter`; of one with trainable vectors only these. `training_state` is what `load_training_state` gives
    back.

    Raises CheckpointError when it cannot be written; nothing is then left behind.
    """
    hide_bars()
    with _writing(folder), replacing_folder(folder) as temporary:
        vectors = trainable_vectors(model)
        if vectors is not None:
            vectors.vectors().save(temporary / _VECTORS)
        elif hasattr(model, "peft_config"):
            weights = model.state_dict() if weights is None else weights
            model.save_pretrained(temporary / _ADAPTER, state_dict=weights)
            tokenizer.save_pretrained(temporary / _ADAPTER)
            model.get_base_model().save_pretrained(temporary, state_dict=merged(model, weights))
            tokenizer.save_pretrained(temporary)
        else:
            model.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
        if training_state is not None:
            save_file({name: tensor.contiguous() for name, tensor in training_state.items()}, temporary / _STATE)
    return folder


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of a step."""
    return output_dir / f"{_PREFIX}{step}"


def adapter_path(checkpoint: Path) -> Path:
    """Where a checkpoint keeps its adapters."""
    return checkpoint / _ADAPTER


def vectors_path(checkpoint: Path) -> Path:
    """Where a checkpoint keeps its learned vectors."""
    return checkpoint / _VECTORS


def saved_steps(output_dir: Path) -> list[int]:
    """The steps of a run's checkpoints, in order."""
    names = (path.name for path in output_dir.glob(f"{_PREFIX}*") if path.is_dir())
    return sorted(int(name.removeprefix(_PREFIX)) for name in names if re.fullmatch(rf"{_PREFIX}\d+", name))


def resumable_step(output_dir: Path) -> int | None:
    """The last step that training can go on from; None where there is none."""
    return max((s for s in saved_steps(output_dir) if (checkpoint_path(output_dir, s) / _STATE).is_file()), default=None)


def load_training_state(output_dir: Path, step: int) -> dict[str, Tensor]:
    """The training state that was saved with a checkpoint."""
    state: dict[str, Tensor] = load_file(checkpoint_path(output_dir, step) / _STATE)
    return state


def tidy(output_dir: Path, keep: int | None) -> None:
    """Removes what a newer checkpoint has replaced: the training state of all but the last, and all but the last `keep`.

    The checkpoint of step 0 stays: after a warm-up it is the base model that vectors steer. Half-written folders that a kill
    has left go too.
    """
    for leftover in output_dir.glob(f".{_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    steps = saved_steps(output_dir)
    for step in steps[:-1]:
        (checkpoint_path(output_dir, step) / _STATE).unlink(missing_ok=True)
    for step in steps[: -keep or None] if keep else []:
        if step != 0:
            _remove(checkpoint_path(output_dir, step))


def remove_checkpoints(output_dir: Path) -> None:
    """Removes all checkpoints of a run."""
    tidy(output_dir, None)
    for step in saved_steps(output_dir):
        _remove(checkpoint_path(output_dir, step))


def _remove(folder: Path) -> None:
    """Renamed first: a kill in the middle leaves no half of a checkpoint under its name."""
    hidden = folder.with_name(f".{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # tokenizers reports a full disk by a bare Exception.
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        steps = saved_steps(folder.parent)
        last = f"; the last whole one is {checkpoint_path(folder.parent, steps[-1])}" if steps else ""
        raise CheckpointError(f"checkpoint {folder} cannot be written: {reason}{last}; make room, then --resume") from error
