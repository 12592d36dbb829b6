"""The keys and values of a batch whose rows come and go: what transformers' cache does, without copying all of it each step."""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steerlift.steering.models import Model

# Tokens by which a layer's room grows: it is copied once in so many steps instead of in each.
_ROOM = 64


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer's keys and values, each of shape (rows, heads, tokens, size), at the front of tensors with room for more."""

    keys: Tensor
    values: Tensor
    _keys: Tensor
    _values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Appends the new tokens' states. Returns those of all tokens, as views."""
        # Under autocast a rotation leaves keys in float32, which attention would then make bfloat16 again for every new token.
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if before == 0 or after > self._keys.shape[-2]:
            self._keys, self._values = (
                torch.cat([*([old] if before else []), _room_for(new)], dim=-2)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            )
        self._keys[:, :, before:after] = key_states
        self._values[:, :, before:after] = value_states
        self._show(after)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows `indices` take the places of all rows; a row may be taken several times."""
        length = self.get_seq_length()
        if length:
            self._keys, self._values = self._keys[indices], self._values[indices]
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def new_cache(model: Model) -> DynamicCache:
    """An empty cache for a model; layers that keep a window of tokens, or none, stay as transformers makes them."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_split_rows(model: Model) -> bool:
    """Whether rows can be taken out of the model's cache: every layer keeps keys and values per row."""
    return all(isinstance(layer, DynamicLayer) for layer in new_cache(model).layers)


def _room_for(states: Tensor) -> Tensor:
    rows, heads, tokens, size = states.shape
    return states.new_empty(rows, heads, tokens + _ROOM, size)
