"""A steered model as a plain checkpoint: weight x v_l is the bias of layer l's mlp.down_proj, the last thing that l adds.

Of the model classes that every engine has, LlamaForCausalLM takes such biases; Qwen2 and Mistral are Llama models but for
biases and names, so all three become one. What a Llama model cannot compute is refused.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerlift.exports.shards import MOST_SHARD_BYTES, read_tensors, write_tensors
from steerlift.records.errors import InputError
from steerlift.records.progress import progress
from steerlift.records.runs import read_json, write_json
from steerlift.steering.models import DTYPES, load_config, load_tokenizer
from steerlift.steering.pretrained import find_source
from steerlift.steering.vectors import SteeringVectors

FAMILIES = ("llama", "qwen2", "mistral")
_NORMED = ("qwen3", "gemma3_text", "olmo2", "cohere2")

_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_dropout",
    "tie_word_embeddings",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def check_bakeable(config: Any, name: str) -> None:  # noqa: ANN401 - transformers is untyped
    """Raises InputError, with the reason and what to do instead, for a model that LlamaForCausalLM cannot compute."""
    reason = ""
    if config.model_type in _NORMED:
        reason = "its attention normalises queries and keys"
    elif getattr(config, "sliding_window", None):
        reason = f"its attention looks back through a window of {config.sliding_window} tokens"
    elif config.model_type not in FAMILIES:
        reason = f"{config.model_type} is not one of {', '.join(FAMILIES)}"
    elif getattr(config, "quantization_config", None):
        reason = "its weights are quantised"
    if reason:
        raise InputError(
            f"model {name} cannot be baked: {reason}, which LlamaForCausalLM cannot hold; "
            "use `steerlift serve`, or --format gguf with llama.cpp"
        )


def write_baked(
    folder: Path, name: str, vectors: SteeringVectors, weight: float, dtype: str, most_bytes: int = MOST_SHARD_BYTES
) -> None:
    """Writes config, weights, tokenizer and generation config of the model `name`, steered, to the empty `folder`.

    `dtype` is `auto` (each tensor keeps its own) or one of DTYPES. Raises InputError for tensors that do not fit the config.
    """
    from transformers import AutoModelForCausalLM

    source = load_config(name)
    config = llama_config(source, DTYPES.get(dtype, source.dtype))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    tensors = baked_tensors(read_tensors(name), shapes, _new_biases(source), DTYPES.get(dtype))
    with progress("writing tensors", len(shapes)) as bar:

        def steered() -> Iterator[tuple[str, Tensor]]:
            for key, tensor in tensors:
                bar.advance()
                yield key, steered_bias(key, tensor, vectors, weight)

        write_tensors(folder, steered(), most_bytes)
    _write_config(folder, config)
    _write_companions(folder, name)


def llama_config(config: Any, dtype: torch.dtype | None) -> Any:  # noqa: ANN401 - transformers is untyped
    """The same model as a Llama with biases. Qwen2 always has them on q, k and v, and says so in no field."""
    from transformers import LlamaConfig

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention_bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    kept = {key: getattr(config, key) for key in _KEPT}
    return LlamaConfig(
        **kept,
        head_dim=head_dim,
        attention_bias=attention_bias,
        mlp_bias=True,
        dtype=dtype,
        architectures=["LlamaForCausalLM"],
    )


def baked_tensors(
    source: Iterable[tuple[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
    new_biases: tuple[str, ...],
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, Tensor]]:
    """The `source`'s tensors, checked against `shapes`, then zeros for the `new_biases` (ends of names) that it lacks."""
    missing = dict(shapes)
    own = dtype or torch.float32
    for name, tensor in source:
        if name not in shapes and (name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")):
            continue  # tied, or computed anew by today's engines
        expected = missing.pop(name, None)
        if expected != tuple(tensor.shape):
            wanted = "no such tensor" if expected is None else f"shape {expected}"
            raise InputError(f"tensor {name} has shape {tuple(tensor.shape)}, a Llama model of this size expects {wanted}")
        if name.endswith("down_proj.weight"):
            own = dtype or tensor.dtype
        yield name, tensor if dtype is None else tensor.to(dtype)
    for name, shape in missing.items():
        if not name.endswith(new_biases):
            raise InputError(f"tensor {name} is in none of the model's files, expected shape {shape}; repair the checkpoint")
        yield name, torch.zeros(shape, dtype=own)


def steered_bias(name: str, tensor: Tensor, vectors: SteeringVectors, weight: float) -> Tensor:
    """The tensor, plus weight x vector where it is the bias of a steered layer; summed in float32 and rounded once."""
    layer, _, end = name.removeprefix("model.layers.").partition(".")
    if end != "mlp.down_proj.bias" or int(layer) not in vectors.layers:
        return tensor
    return (tensor.float() + weight * vectors.layers[int(layer)]).to(tensor.dtype)


def _new_biases(config: Any) -> tuple[str, ...]:  # noqa: ANN401 - transformers is untyped
    mlp = () if getattr(config, "mlp_bias", False) else ("gate_proj.bias", "up_proj.bias", "down_proj.bias")
    return (*mlp, "o_proj.bias") if config.model_type == "qwen2" else mlp


def _write_config(folder: Path, config: Any) -> None:  # noqa: ANN401 - transformers is untyped
    config.save_pretrained(folder)
    path = folder / "config.json"
    content = read_json(path)
    # Engines older than transformers 5 look for these, and silently take another base where they are not.
    rope = content["rope_parameters"]
    content["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        content["rope_scaling"] = rope
    write_json(path, content)


def _write_companions(folder: Path, name: str) -> None:
    from transformers.utils import cached_file

    tokenizer = load_tokenizer(name)
    tokenizer.save_pretrained(folder)
    if tokenizer.is_fast:
        # A class that belongs to a family would be built anew, and otherwise, under a Llama config; this one only reads.
        path = folder / "tokenizer_config.json"
        write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})
    try:
        generation = cached_file(find_source(name).whole, "generation_config.json")
    except OSError:
        return  # it has none; the config's ids of special tokens hold
    write_json(folder / "generation_config.json", read_json(Path(generation)))
