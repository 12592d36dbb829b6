"""The only place that registers forward hooks: reading and replacing what decoder layers put out.

A decoder layer's output is a tensor in transformers 5 and a tuple whose first entry is that tensor in some models and
older versions; both are handled here, so that nobody else indexes an output and silently takes batch row 0.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor | None]
"""Takes a layer's output, shape (batch, tokens, hidden_size); returns its replacement, or None to leave it as it is."""


@contextmanager
def layer_hooks(layers: Mapping[int, nn.Module], transforms: Mapping[int, Transform]) -> Iterator[None]:
    """Runs `transforms[index]` on the output of `layers[index]` inside the block.

    All hooks are gone when the block is left, by whatever way.
    """
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles = add_layer_hooks(layers, transforms)
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_layer_hooks(
    layers: Mapping[int, nn.Module], transforms: Mapping[int, Transform]
) -> list[torch.utils.hooks.RemovableHandle]:
    """The same for good: the hooks stay until their handles remove them."""
    return [layers[index].register_forward_hook(_as_hook(transform)) for index, transform in transforms.items()]


def _as_hook(transform: Transform) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401, ARG001 - torch's signature
        if isinstance(output, Tensor):
            return transform(output)
        replacement = transform(output[0])
        return None if replacement is None else (replacement, *output[1:])

    return hook
