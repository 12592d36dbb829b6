"""The number formats that training computes in: those of the weights, and those of the products inside a forward pass."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steerlift.records.errors import InputError

PRECISIONS = ("auto", "float32", "bfloat16", "mixed")


@dataclass(frozen=True)
class Precision:
    """What the weights are kept in, and what autocast computes matrix products in (None: in the format of the weights)."""

    weights: torch.dtype
    autocast: torch.dtype | None

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """Inside it forward passes compute as this precision says."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)

    @contextmanager
    def without_gradients(self, model: nn.Module, device: torch.device) -> Iterator[None]:
        """Inside it forward passes of `model`, as many as one likes, compute as this precision says and keep no gradient.

        Autocast converts a weight once for all of them if it wants a gradient, but a frozen one in every pass: with a frozen
        model of 0.5B that is two thirds of the time that 64 rows take to get one token more. So all of them want one here.
        """
        frozen = [] if self.autocast is None else [p for p in model.parameters() if not p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with torch.no_grad(), self.context(device):
                yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def __str__(self) -> str:
        weights = _name(self.weights)
        return weights if self.autocast is None else f"{_name(self.autocast)} autocast over {weights} weights"


MIXED = Precision(torch.float32, torch.bfloat16)


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto`: bfloat16 on CUDA, mixed on a CPU that multiplies bfloat16, else float32. Raises InputError for another name.

    Mixed keeps float32 weights, so that small steps are not rounded away, and computes products in bfloat16.
    """
    if name not in PRECISIONS:
        raise InputError(f"--dtype {name} is unknown; expected {', '.join(PRECISIONS)}")
    if name == "auto" and device.type == "cpu":
        name = "mixed" if _multiplies_bfloat16() else "float32"
    elif name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return MIXED if name == "mixed" else Precision(getattr(torch, name), None)


def _multiplies_bfloat16() -> bool:
    """Whether this processor has AVX512_BF16 or AMX_BF16; without them autocast is 5 to 10 times slower than float32."""
    # torch's public list of what the processor has, the same on every system; older torch has none, and float32 is safe.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
