"""What is added to the tokens of a running batch: one table per decoder layer, one slot per active steering configuration.

Shapes: S slots, H hidden size, N tokens of a step, R rows (requests) of the batch. Slot 0 adds nothing; a configuration's
sum of `weight x vector` is computed once, when its first request comes, and its slot is free again when the last has gone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Additions = Mapping[int, Tensor]
"""Layer index -> what is added to that layer's output, float32, shape (hidden_size,)."""


class Slots:
    """The tables of one model in one worker process."""

    def __init__(
        self,
        additions: Callable[[str], Additions],
        layers: int,
        hidden_size: int,
        max_rows: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`additions` gives the vectors of a configuration; no more than `max_rows` can be active at once."""
        self._additions = additions
        self.tables_SH = [torch.zeros(max_rows + 1, hidden_size, dtype=dtype, device=device) for _ in range(layers)]
        self.slot_of_token_N = torch.zeros(max_tokens, dtype=torch.int32, device=device)
        # One more than there are rows: padding tokens fall behind the last row, and must find slot 0 there.
        self._slot_of_row_R = torch.zeros(max_rows + 1, dtype=torch.int32, device=device)
        self._token_N = torch.arange(max_tokens, dtype=torch.int32, device=device)
        self._row_configurations: dict[int, str] = {}
        self._slot_of: dict[str, int] = {}
        self._free = list(range(max_rows, 0, -1))
        self._all_zero = True

    def update(
        self, removed: Sequence[int], added: Sequence[tuple[int, str | None]], moved: Sequence[tuple[int, int, bool]]
    ) -> None:
        """Follows the batch: rows gone, rows with their configuration (None: base), rows moved (from, to, swapped)."""
        rows = self._row_configurations
        for row in removed:
            rows.pop(row, None)
        for row, configuration in added:
            rows.pop(row, None)
            if configuration is not None:
                rows[row] = configuration
        for start, end, swapped in moved:
            one, other = rows.pop(start, None), rows.pop(end, None)
            if one is not None:
                rows[end] = one
            if swapped and other is not None:
                rows[start] = other
        self._assign_slots()

    def _assign_slots(self) -> None:
        active = set(self._row_configurations.values())
        for configuration in [known for known in self._slot_of if known not in active]:
            self._free.append(self._slot_of.pop(configuration))
        for configuration in sorted(active - self._slot_of.keys()):
            self._slot_of[configuration] = self._fill(configuration)
        slots = torch.zeros(self._slot_of_row_R.shape, dtype=torch.int32)
        for row, configuration in self._row_configurations.items():
            slots[row] = self._slot_of[configuration]
        self._slot_of_row_R.copy_(slots)

    def _fill(self, configuration: str) -> int:
        slot = self._free.pop()
        additions = self._additions(configuration)
        for layer, table_SH in enumerate(self.tables_SH):
            if layer in additions:
                table_SH[slot].copy_(additions[layer])
            else:
                table_SH[slot].zero_()
        return slot

    def place(self, starts: Tensor | None, tokens: int) -> None:
        """Before the layers run: the slot of each of the step's `tokens`, by where each row begins, shape (rows + 1,).

        None: no requests, as when vLLM measures memory or compiles.
        """
        if starts is None or not self._row_configurations:
            if not self._all_zero:
                self.slot_of_token_N.zero_()
                self._all_zero = True
            return
        # Counting the rows that end at or before a token needs no size from the device, so nothing waits for a GPU.
        ends_R = starts[1:].to(torch.int32)
        row_N = torch.searchsorted(ends_R, self._token_N[:tokens], right=True, out_int32=True)
        row_N.clamp_(max=self._slot_of_row_R.shape[0] - 1)
        self.slot_of_token_N[:tokens] = self._slot_of_row_R[row_N]
        self._all_zero = False
