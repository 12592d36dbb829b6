"""Adapters such as LoRA: checkpoints that hold only what changes in a base model, merged into it on loading."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.runs import read_json


def adapter_base(name: str) -> str | None:
    """The base model that the adapter `name` (folder or hub id) changes; None for a whole model.

    Raises InputError for an adapter that names no base. For a hub id the hub or its cache is asked; against the hub itself
    this was not run here.
    """
    from transformers.utils import find_adapter_config_file

    found = find_adapter_config_file(name)
    if found is None:
        return None
    settings = read_json(Path(found))
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(f"adapter {name} names no base model; write base_model_name_or_path into its adapter_config.json")
    return base


def check_peft(name: str) -> None:
    """Raises MissingDependencyError where peft, which the adapter `name` needs, is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{name} is an adapter, which needs peft: pip install 'steerlift[lora]'") from error


def has_tokenizer(name: str) -> bool:
    """Whether a tokenizer was saved with `name` (folder or hub id)."""
    from transformers.utils import cached_file

    try:
        cached_file(name, "tokenizer_config.json")
    except OSError:
        return False
    return True


def merge_adapter(model: Any, name: str) -> Any:  # noqa: ANN401 - transformers and peft are untyped
    """The base `model` with the adapter `name` merged into its weights: an ordinary model again, every weight trainable.

    The weights are changed in place. Raises InputError for an adapter that cannot be merged or does not fit the model.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(name)
    config.inference_mode = True
    if config.is_prompt_learning:
        raise InputError(f"adapter {name} is of type {config.peft_type.value}, which no weights can hold; expected LoRA")
    if not getattr(config, "ensure_weight_tying", False):
        _untie(model, load_peft_weights(name, device="cpu"))
    adapted = PeftModel(model, config)
    try:
        found = adapted.load_adapter(name, "default", torch_device="cpu")
        misfits = [*found.missing_keys, *found.unexpected_keys]
    except RuntimeError as error:  # torch's list of tensors of a wrong shape, after a heading
        misfits = [line.strip() for line in str(error).splitlines()[1:]]
    if misfits:
        raise InputError(
            f"adapter {name}: {len(misfits)} of its tensors do not fit {type(model).__name__} ({min(misfits)}); "
            "expected an adapter that was trained on this base model"
        )
    with warnings.catch_warnings():
        # What peft only warns of, such as tied weights that it would change twice, would give another model.
        warnings.simplefilter("error", UserWarning)
        try:
            merged = adapted.merge_and_unload(safe_merge=True)  # safe: refuses weights that are not finite
        except UserWarning as doubt:
            raise InputError(f"adapter {name} cannot be merged: {str(doubt).splitlines()[0]}") from doubt
    return merged.requires_grad_(True)


def _untie(model: Any, weights: dict[str, Any]) -> None:  # noqa: ANN401 - transformers is untyped
    """Gives the head weights of its own where an adapter changes it or the embeddings and both are one tensor."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    places = [f".{name}." for name, module in model.named_modules() if module in (embeddings, head)]
    if any(place in key for place in places for key in weights):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
