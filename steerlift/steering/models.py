"""Loads causal language models and finds their parts, for every decoder family that transformers knows."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.progress import say
from steerlift.steering.adapters import check_peft, has_tokenizer, merge_adapter
from steerlift.steering.pretrained import checked_name as checked_name
from steerlift.steering.pretrained import find_source, from_pretrained, naming_base, one_line, whole_config
from steerlift.steering.pretrained import hide_bars as hide_bars

Model = Any
"""A transformers causal language model. transformers' own types do not survive mypy --strict."""
Tokenizer = Any
"""A transformers tokenizer."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("flash_attention_2", "sdpa", "eager")


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


def choose_attention(name: str, device: torch.device) -> str:
    """`auto` is flash_attention_2 on CUDA where flash_attn is installed (not run here), else sdpa.

    Raises InputError for an unknown implementation and for flash attention where it cannot run.
    """
    flash_installed = find_spec("flash_attn") is not None
    if name == "auto":
        # eager's time over sdpa's on one CPU thread, float32: 1.0 forward and backward through the embedded model (32 x 40
        # tokens), 1.06 through a Llama of 135M parameters (8 x 128), 1.25 decoding 128 rows of the embedded model.
        return "flash_attention_2" if flash_installed and device.type == "cuda" else "sdpa"
    if name not in ATTENTIONS:
        raise InputError(f"--attention {name} is unknown; expected auto, {', '.join(ATTENTIONS)}")
    if name == "flash_attention_2" and not (flash_installed and device.type == "cuda"):
        lack = "it needs CUDA" if flash_installed else "the package flash_attn is not installed"
        raise InputError(f"--attention {name} cannot be used on {device} ({lack}); expected auto, sdpa or eager")
    return name


def load_model(name: str, device: torch.device, dtype: torch.dtype, attention: str | None = None) -> Model:
    """Loads a causal language model by hub id or folder, in evaluation mode; an adapter comes merged into its base.

    `attention` names transformers' implementation; None leaves the choice to it. Soft-capped attention is always computed by
    `eager` or flash attention, since `sdpa` leaves out the cap. Raises MissingInputError when there is no such model,
    MissingDependencyError for an adapter without peft, and InputError when the files cannot be used or the model is
    not causal.
    """
    source = find_source(name)
    if source.base is not None:
        check_peft(name)
    with naming_base(source):
        model = _whole_model(source.whole, dtype, attention)
    if source.base is not None:
        with one_line(name):
            model = merge_adapter(model, source.name)
    model = model.to(device).eval()
    _check_causal(model, name)
    return model


@torch.no_grad()
def _check_causal(model: Model, name: str) -> None:
    """Raises InputError where a token sees those after it: BERT's kind loads as a language model too, and writes nonsense."""
    ids_BT = torch.tensor([[0] + [follower] * 7 for follower in (1, 2)], device=model.device)
    first_BV = model(input_ids=ids_BT).logits[:, 0].float()
    moved = (first_BV[0] - first_BV[1]).abs().max()
    # Far more than rounding in the number format moves; weights that are not numbers are reported where they matter.
    if bool(moved > 16 * torch.finfo(model.dtype).eps * first_BV.abs().max()):
        raise InputError(f"model {name}: its tokens see those after them, as BERT's do; expected a causal language model")


def _whole_model(name: str, dtype: torch.dtype, attention: str | None) -> Model:
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    soft_cap = getattr(_text_part(from_pretrained(AutoConfig, name)), "attn_logit_softcapping", None)
    if soft_cap and attention in (None, "sdpa"):
        options = {"attn_implementation": "eager"}
        if attention is not None:
            say(f"model {name}: its attention is soft-capped, which sdpa leaves out; computing it with eager")
    model, found = from_pretrained(AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"model {name}: {len(missing)} of its tensors are not in its files ({missing[0]}); repair the checkpoint"
        )
    unknown = sorted(found["unexpected_keys"])
    if unknown:
        say(f"model {name}: {len(unknown)} tensors of its files have no place in {type(model).__name__} ({unknown[0]})")
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """Loads the tokenizer of a model, padding on the left; the end-of-sequence token pads where there is no other.

    That of an adapter is the one saved with it, else its base's.
    """
    from transformers import AutoTokenizer

    source = find_source(name)
    if source.base is not None and has_tokenizer(source.name):
        # Transformers chooses the tokenizer's class by the config, which an adapter does not have.
        tokenizer = from_pretrained(AutoTokenizer, source.name, config=whole_config(source))
    else:
        with naming_base(source):
            tokenizer = from_pretrained(AutoTokenizer, source.whole)
    if not tokenizer.encode("1+1", add_special_tokens=False):
        raise MissingInputError(f"model {name}: its tokenizer knows no token; expected tokenizer.json beside the weights")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    return _text_part(model.config)


def _text_part(config: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    return config.get_text_config(decoder=True)


def hidden_size(model: Model) -> int:
    """The width of the residual stream."""
    return int(text_config(model).hidden_size)


def load_config(name: str) -> Any:  # noqa: ANN401 - transformers is untyped
    """The configuration of the language part of a model or of an adapter's base, without its weights."""
    return _text_part(whole_config(find_source(name)))


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
    return _end_token_ids(model.generation_config, tokenizer)


def load_end_token_ids(name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The same without loading the model `name`."""
    from transformers import GenerationConfig

    source = find_source(name)
    try:
        settings = GenerationConfig.from_pretrained(source.whole)
    except OSError:  # it has none; transformers then takes the model's own configuration
        settings = load_config(name)
    return _end_token_ids(settings, tokenizer)


def _end_token_ids(settings: Any, tokenizer: Tokenizer) -> tuple[int, ...]:  # noqa: ANN401 - transformers is untyped
    configured = getattr(settings, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))
