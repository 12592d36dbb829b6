"""Mean activations of a model over chosen tokens, one vector per decoder layer, in memory that does not grow with the data.

Shapes: B sequences of a batch, T tokens (after what all sequences begin with, where that is shared), H hidden size, L layers,
N tokens that count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlift.extraction.config import TokenChoice
from steerlift.records.errors import InputError
from steerlift.sampling.sampler import OnDone
from steerlift.steering.hooks import layer_hooks
from steerlift.steering.models import Model, decoder_body, decoder_layers
from steerlift.steering.shared_context import SharedContext, can_share_beginnings, common_prefix

# Tokens of one forward pass, padding included: enough to keep matrix products busy, little next to a model's weights.
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of a prompt and its completion (empty if there is none); `start` is where the completion starts."""

    ids: tuple[int, ...]
    start: int

    def span(self, tokens: TokenChoice, include_first_position: bool) -> tuple[int, int]:
        """The positions to average, first and one past the last."""
        first, end = {
            "prompt": (0, self.start),
            "last": (self.start - 1, self.start),
            "completion": (self.start, len(self.ids)),
        }[tokens]
        return (first if include_first_position else max(first, 1)), end


@dataclass(frozen=True, slots=True)
class MeanActivations:
    """Means over `count` tokens: each layer's state, shape (L, H), and the norm of its states, shape (L,), both float64."""

    state_LH: Tensor
    norm_L: Tensor
    count: int


@torch.no_grad()
def mean_activations(
    model: Model,
    sequences: Sequence[TokenSequence],
    tokens: TokenChoice,
    include_first_position: bool = False,
    on_done: OnDone | None = None,
) -> MeanActivations:
    """Runs the decoder body (not the head) over the sequences and averages each layer's output over the chosen tokens.

    What all prompts begin with goes through the model once a batch, where none of it is averaged. Padding never counts.
    The running sums are float64: bfloat16 sums stick and float32 ones drift.
    Raises InputError when there is no token to average.
    """
    layers = decoder_layers(model)
    body = decoder_body(model)
    sums = {index: _RunningSums() for index in layers}
    count = 0
    beginning = _uncounted_beginning(body, sequences, tokens)
    if beginning:
        sequences = [TokenSequence(s.ids[len(beginning) :], s.start - len(beginning)) for s in sequences]
        include_first_position = True  # position 0 is in the beginning
    readers = {index: layer_sums.read for index, layer_sums in sums.items()}
    for batch in _batches(sequences):
        ids_BT, mask_BT, chosen_BT = _tensors(batch, tokens, include_first_position, model.device)
        chosen_N = chosen_BT.flatten().nonzero().squeeze(1)
        for layer_sums in sums.values():
            layer_sums.chosen_N = chosen_N
        count += len(chosen_N)
        context = _begun(body, beginning, len(batch)) if beginning else None
        with layer_hooks(layers, readers):
            if context is None:
                body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
            else:
                context.read(ids_BT, mask_BT)
        if on_done is not None:
            on_done(len(batch))
    if not count:
        raise InputError(
            f"found no {tokens} token to average in {len(sequences)} sequences; give longer ones or other --tokens"
        )
    return MeanActivations(
        torch.stack([layer_sums.states_H for layer_sums in sums.values()]) / count,
        torch.stack([layer_sums.norms for layer_sums in sums.values()]) / count,
        count,
    )


class _RunningSums:
    """Sums of one layer's states and of their norms over the tokens that count."""

    def __init__(self) -> None:
        self.chosen_N = torch.empty(0, dtype=torch.long)
        self.states_H = torch.zeros((), dtype=torch.float64)
        self.norms = torch.zeros((), dtype=torch.float64)

    def read(self, hidden_BTH: Tensor) -> None:
        """A forward hook's view of a layer's output; changes nothing."""
        chosen_NH = hidden_BTH.flatten(0, 1)[self.chosen_N].float()
        # Apple's devices have no float64: there a batch is summed in float32, and only the running sums are float64.
        wide = torch.float32 if chosen_NH.device.type == "mps" else torch.float64
        self.states_H = self.states_H + chosen_NH.sum(0, dtype=wide).cpu().double()
        self.norms = self.norms + torch.linalg.vector_norm(chosen_NH, dim=-1).sum(dtype=wide).cpu().double()


def _uncounted_beginning(body: nn.Module, sequences: Sequence[TokenSequence], tokens: TokenChoice) -> tuple[int, ...]:
    """The tokens that all prompts begin with, where none of them is averaged and the model can go on from them."""
    if tokens == "prompt" or not can_share_beginnings(body):
        return ()
    prompts = {sequence.ids[: sequence.start] for sequence in sequences}
    return sequences[0].ids[: common_prefix(prompts)] if sequences else ()


def _begun(body: nn.Module, beginning: tuple[int, ...], rows: int) -> SharedContext:
    """Rows that have all gone through the beginning."""
    context = SharedContext(body, keeps=True)
    ids_1T = torch.tensor([beginning], device=next(body.parameters()).device)
    context.read(ids_1T, torch.ones_like(ids_1T))
    context.repeat(rows)
    return context


def _batches(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """Sequences of similar length together, at most TOKENS_PER_BATCH padded tokens a batch (or one longer sequence)."""
    batch: list[TokenSequence] = []
    for sequence in sorted(sequences, key=lambda s: len(s.ids), reverse=True):
        if batch and len(batch[0].ids) * (len(batch) + 1) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def _tensors(
    batch: list[TokenSequence], tokens: TokenChoice, include_first_position: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, attention mask, and which tokens are averaged, each of shape (B, T)."""
    longest = len(batch[0].ids)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    chosen_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, sequence in enumerate(batch):
        ids_BT[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask_BT[row, : len(sequence.ids)] = 1
        first, end = sequence.span(tokens, include_first_position)
        chosen_BT[row, first:end] = True
    return ids_BT.to(device), mask_BT.to(device), chosen_BT.to(device)
