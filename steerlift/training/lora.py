"""Low-rank adapters through peft: what is trained with --lora_r, and how it is saved."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from steerlift.records.errors import MissingDependencyError
from steerlift.steering.models import Model

ADAPTER = "default"


def import_peft() -> Any:  # noqa: ANN401 - peft is untyped here
    """The peft module. Raises MissingDependencyError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("--lora_r needs peft: pip install 'steerlift[lora]'") from error
    return peft


def add_adapters(model: Model, rank: int, alpha: float | None, saved: Path | None = None) -> Model:
    """The model with adapters on every linear layer but the head, the only parameters that want a gradient.

    New ones start as nothing, so the model computes what it did; `saved` names a folder of adapters to go on with.
    """
    peft = import_peft()
    if saved is not None:
        return peft.PeftModel.from_pretrained(model, saved, is_trainable=True, adapter_name=ADAPTER)
    options = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        # GPT-2's linear layers keep their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, options, adapter_name=ADAPTER)


def merged(model: Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of the plain model, W + scaling * B A; other weights as they are.

    Computed from a copy: merging in place and taking the sum back again would round the base's weights.
    """
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    plain = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        lora_a, lora_b = (weights[f"{name}.lora_{part}.{ADAPTER}.weight"].float() for part in "AB")
        place = f"{name.removeprefix(prefix)}.weight"
        base = plain.pop(f"{name.removeprefix(prefix)}.base_layer.weight")
        change = lora_b @ lora_a * module.scaling[ADAPTER]
        plain[place] = (base.float() + (change.T if module.fan_in_fan_out else change)).to(base.dtype)
        bias = plain.pop(f"{name.removeprefix(prefix)}.base_layer.bias", None)
        if bias is not None:
            plain[f"{name.removeprefix(prefix)}.bias"] = bias
    return plain
