"""Checkpoints: ordinary Hugging Face folders, complete or absent."""

from pathlib import Path

from steerlift.records.runs import replacing_folder
from steerlift.steering.models import Model, Tokenizer, hide_bars


def save_checkpoint(folder: Path, model: Model, tokenizer: Tokenizer) -> Path:
    """Saves model and tokenizer under a temporary name and renames the folder. Returns `folder`."""
    hide_bars()
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of a step."""
    return output_dir / f"checkpoint_step_{step}"
