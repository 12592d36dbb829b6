"""Loads causal language models and finds their parts, for every decoder family that transformers knows."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.progress import say

Model = Any
"""A transformers causal language model. transformers' own types do not survive mypy --strict."""
Tokenizer = Any
"""A transformers tokenizer."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); expected auto, cpu, cuda, cuda:N or mps") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere, where results are exact and no processor support is needed."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"--dtype {name} is unknown; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Loads a causal language model by hub id or folder, in evaluation mode.

    Raises MissingInputError when there is no such model and InputError when its files cannot be used.
    """
    from transformers import AutoModelForCausalLM

    model, found = _from_pretrained(AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"model {name}: {len(missing)} of its tensors are not in its files ({missing[0]}); repair the checkpoint"
        )
    unknown = sorted(found["unexpected_keys"])
    if unknown:
        say(f"model {name}: {len(unknown)} tensors of its files have no place in {type(model).__name__} ({unknown[0]})")
    return model.to(device).eval()


def hide_bars() -> None:
    """Turns transformers' own progress bars off: ours say more, and a bar per file breaks plain logs."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def checked_name(name: str) -> str:
    """The hub id or folder that `name` means. Raises MissingInputError for a folder that holds no model.

    Commands call it for every model they will need before they start, so that a slip does not show after hours.
    """
    folder = Path(name).expanduser()
    if not (name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()):
        return name
    if not (folder / "config.json").is_file():
        found = "a folder without config.json" if folder.is_dir() else "no such folder"
        raise MissingInputError(f"model {name}: {found}; expected a folder with a saved model, or a hub id (owner/name)")
    return str(folder)


def load_tokenizer(name: str) -> Tokenizer:
    """Loads the tokenizer of a model, padding on the left; the end-of-sequence token pads where there is no other."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, name)
    if not tokenizer.encode("1+1", add_special_tokens=False):
        raise MissingInputError(f"model {name}: its tokenizer knows no token; expected tokenizer.json beside the weights")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_pretrained(loader: Any, name: str, **options: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    hide_bars()
    found = checked_name(name)
    try:
        return loader.from_pretrained(found, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingInputError(f"model {name} cannot be loaded: {reason}") from error
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model {name} cannot be used: {reason}") from error


def decoder_body(model: Model) -> nn.Module:
    """The decoder without its language-model head: called on token ids it puts out the last hidden states."""
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    body: nn.Module = unwrapped.get_decoder()
    return body


def decoder_layers(model: Model) -> dict[int, nn.Module]:
    """Layer index -> decoder layer. Raises InputError for a model whose layers cannot be found."""
    body = decoder_body(model)
    count = text_config(model).num_hidden_layers
    lists = [
        (name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__}: no list of {count} decoder layers was found; steering needs one module per decoder layer"
        )
    # The outermost list: a mixture-of-experts layer may hold as many experts as there are layers.
    _, layers = min(lists, key=lambda entry: entry[0].count("."))
    return dict(enumerate(layers))


def text_config(model: Model) -> Any:  # noqa: ANN401 - transformers is untyped
    """The configuration of the language part, also of a multimodal model."""
    return model.config.get_text_config(decoder=True)


def hidden_size(model: Model) -> int:
    """The width of the residual stream."""
    return int(text_config(model).hidden_size)


def load_config(name: str) -> Any:  # noqa: ANN401 - transformers is untyped
    """The configuration of a model's language part, without its weights."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, name).get_text_config(decoder=True)


def check_same_architecture(base: str, finetuned: str) -> None:
    """Raises InputError, naming both, for two models of different architectures; reads their configurations only."""
    first, second = (architecture(load_config(name)) for name in (base, finetuned))
    if first != second:
        raise InputError(f"{finetuned} is {second}; {base} is {first}: a steering vector needs two models of one architecture")


def architecture(config: Any) -> str:  # noqa: ANN401 - transformers is untyped
    """What two models must share for a vector of one to mean anything in the other, as one readable line."""
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"vocabulary {config.vocab_size}"
    )


def end_token_ids(model: Model, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a completion: those of the generation config and the tokenizer's own."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def memory_budget(device: torch.device) -> int:
    """Bytes that may be used for caches and activations: half of what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2
    return 4 * 2**30
