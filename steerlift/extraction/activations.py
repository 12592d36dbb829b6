"""Mean activations of a model over chosen tokens, one vector per decoder layer, in memory that does not grow with the data.

Shapes: B sequences of a batch, T tokens (after what all sequences begin with, where that is shared), H hidden size, L layers,
N tokens that count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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

    What all prompts begin with goes through the model once a batch, and counts for each of its sequences. Padding never
    counts. The running sums are float64: bfloat16 sums stick and float32 ones drift.
    Raises InputError when there is no token to average.
    """
    layers = decoder_layers(model)
    body = decoder_body(model)
    sums = _RunningSums(list(layers))
    readers = {index: partial(sums.read, index) for index in layers}
    beginning = _common_beginning(body, sequences)
    first = 0 if include_first_position else 1
    beginning_counts_N = torch.arange(len(beginning) if tokens == "prompt" else 0, device=model.device)[first:]
    rests = [TokenSequence(s.ids[len(beginning) :], s.start - len(beginning)) for s in sequences]
    for batch in _batches(rests):
        # Position 0 is in the beginning, where there is one.
        ids_BT, mask_BT, chosen_BT = _tensors(batch, tokens, include_first_position or bool(beginning), model.device)
        chosen_N = chosen_BT.flatten().nonzero().squeeze(1)
        with layer_hooks(layers, readers):
            if beginning:
                sums.choose(beginning_counts_N, times=len(batch))
                context = _begun(body, beginning, len(batch))
                sums.choose(chosen_N)
                context.read(ids_BT, mask_BT)
            else:
                sums.choose(chosen_N)
                body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        if on_done is not None:
            on_done(len(batch))
    if not sums.count:
        raise InputError(
            f"found no {tokens} token to average in {len(sequences)} sequences; give longer ones or other --tokens"
        )
    return MeanActivations(
        torch.stack(list(sums.states.values())) / sums.count, torch.stack(list(sums.norms.values())) / sums.count, sums.count
    )


class _RunningSums:
    """Sums of each layer's states, shape (H,), and of their norms over the tokens that count."""

    def __init__(self, layers: list[int]) -> None:
        self.count = 0
        self.states = dict.fromkeys(layers, torch.zeros((), dtype=torch.float64))
        self.norms = dict.fromkeys(layers, torch.zeros((), dtype=torch.float64))
        self._chosen_N = torch.empty(0, dtype=torch.long)
        self._times = 1

    def choose(self, chosen_N: Tensor, times: int = 1) -> None:
        """Which tokens of the next pass count, by their places in the flattened batch, and how often each."""
        self._chosen_N = chosen_N
        self._times = times
        self.count += times * len(chosen_N)

    def read(self, layer: int, hidden_BTH: Tensor) -> None:
        """A forward hook's view of a layer's output; changes nothing."""
        chosen_NH = hidden_BTH.flatten(0, 1)[self._chosen_N].float()
        # Apple's devices have no float64: there a batch is summed in float32, and only the running sums are float64.
        wide = torch.float32 if chosen_NH.device.type == "mps" else torch.float64
        norms = torch.linalg.vector_norm(chosen_NH, dim=-1).sum(dtype=wide)
        self.states[layer] = self.states[layer] + self._times * chosen_NH.sum(0, dtype=wide).cpu().double()
        self.norms[layer] = self.norms[layer] + self._times * norms.cpu().double()


def _common_beginning(body: nn.Module, sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """The tokens that all prompts begin with, where the model can go on from them and that saves something."""
    if not can_share_beginnings(body):
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
