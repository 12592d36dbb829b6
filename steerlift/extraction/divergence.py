"""Where in a completion two models differ most: KL(fine-tuned || base) at every token, in nats.

Shapes: C tokens of a completion, V vocabulary, P positions of the longest completion.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from steerlift.extraction.activations import TokenSequence
from steerlift.sampling.sampler import OnDone
from steerlift.steering.models import Model

# Tokens whose distributions exist in float32 at a time.
CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class CompletionDivergence:
    """Of each token of a completion, shape (C,), on the CPU.

    `kl_C` is that of the distributions it was drawn from, `finetuned_C` and `base_C` the models' log probabilities of the
    token itself, `base_choice_C` the token that the base finds likeliest in its place.
    """

    kl_C: Tensor
    finetuned_C: Tensor
    base_C: Tensor
    base_choice_C: Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """A token of a completion: which sequence, and how far into the completion (0: its first token)."""

    sequence: int
    position: int


@torch.no_grad()
def divergences(
    finetuned: Model, base: Model, sequences: Sequence[TokenSequence], on_done: OnDone | None = None
) -> list[CompletionDivergence]:
    """Runs both models over the sequences, one at a time: only one completion's logits exist at once."""
    found = []
    for sequence in sequences:
        found.append(_divergence(_completion_logits(finetuned, sequence), _completion_logits(base, sequence), sequence))
        if on_done is not None:
            on_done(1)
    return found


def mean_by_position(found: Sequence[CompletionDivergence]) -> tuple[Tensor, Tensor]:
    """The mean KL at each position and how many completions reach it, both of shape (P,)."""
    longest = max(len(one.kl_C) for one in found)
    sums_P = torch.zeros(longest, dtype=torch.float64)
    counts_P = torch.zeros(longest, dtype=torch.long)
    for one in found:
        sums_P[: len(one.kl_C)] += one.kl_C
        counts_P[: len(one.kl_C)] += 1
    return sums_P / counts_P, counts_P


def largest(found: Sequence[CompletionDivergence], count: int) -> list[Place]:
    """The `count` tokens of the largest KL, the largest first."""
    places = [Place(index, position) for index, one in enumerate(found) for position in range(len(one.kl_C))]
    return [places[i] for i in torch.cat([one.kl_C for one in found]).topk(min(count, len(places))).indices.tolist()]


def _completion_logits(model: Model, sequence: TokenSequence) -> Tensor:
    """The logits that each token of the completion was drawn from, shape (C, V)."""
    count = len(sequence.ids) - sequence.start
    # The last logits are of the token after the completion. A model that cannot leave the prompt's out computes them all.
    kept = {"logits_to_keep": count + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    output = model(input_ids=torch.tensor([sequence.ids], device=model.device), use_cache=False, **kept)
    logits_CV: Tensor = output.logits[0, -count - 1 : -1]
    return logits_CV


def _divergence(finetuned_CV: Tensor, base_CV: Tensor, sequence: TokenSequence) -> CompletionDivergence:
    targets_C = torch.tensor(sequence.ids[sequence.start :], device=finetuned_CV.device)
    chunks = []
    split = [torch.split(part, CHUNK_TOKENS) for part in (finetuned_CV, base_CV, targets_C)]
    for logits, base_logits, targets in zip(*split, strict=True):
        logprobs, base_logprobs = (log_softmax(part.float(), -1) for part in (logits, base_logits))
        # Rounding can put a KL of 0 below it.
        kl = kl_div(base_logprobs, logprobs, reduction="none", log_target=True).sum(-1).clamp(min=0)
        of_target = [part.gather(1, targets[:, None]).squeeze(1) for part in (logprobs, base_logprobs)]
        chunks.append((kl, *of_target, base_logprobs.argmax(-1)))
    return CompletionDivergence(*(torch.cat(parts).cpu() for parts in zip(*chunks, strict=True)))
