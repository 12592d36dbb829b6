"""Sampled completions as tensors: what one optimizer step is computed from.

Shapes: P problems, G completions of each, B = P x G, T completion tokens, R rows of a micro-batch, S prompt and completion
tokens, N completion tokens of a micro-batch that count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlift.records.types import GradedProblem
from steerlift.scoring.rewards import reward
from steerlift.training.grpo import LossType, group_advantages, has_no_signal, token_weights


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a step: ids and attention mask (R, S), and of the N tokens that count their place in the flattened (R, S)
    grid of predicting positions, their ids, advantages and weights in the loss."""

    ids_RS: Tensor
    mask_RS: Tensor
    predictors_N: Tensor
    targets_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor

    def hidden(self, body: nn.Module) -> Tensor:
        """The last hidden states at the positions that predict the tokens that count, shape (N, H): the rest needs no head."""
        states_RSH = body(input_ids=self.ids_RS, attention_mask=self.mask_RS, use_cache=False).last_hidden_state
        states_NH: Tensor = states_RSH.flatten(0, 1)[self.predictors_N]
        return states_NH


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step's completions with their advantages and token weights."""

    prompts: list[tuple[int, ...]]
    completions: list[tuple[int, ...]]
    rewards_PG: Tensor
    advantages_B: Tensor
    weights_BT: Tensor
    skipped_B: Tensor

    @classmethod
    def build(
        cls,
        prompts: Sequence[Sequence[int]],
        graded: Sequence[GradedProblem],
        loss_type: LossType,
        max_completion_length: int,
        scale_rewards: bool,
        keep_all: bool,
    ) -> "StepBatch":
        """`keep_all` keeps groups without signal too, whose KL may still count."""
        rewards_PG = torch.tensor([[reward(grade) for grade in g.grades] for g in graded])
        group = rewards_PG.shape[1]
        completions = [c.token_ids for g in graded for c in g.completions]
        mask_BT = torch.zeros(len(completions), max(map(len, completions)))
        for row, ids in enumerate(completions):
            mask_BT[row, : len(ids)] = 1
        skipped_B = has_no_signal(rewards_PG).repeat_interleave(group)
        return cls(
            prompts=[tuple(prompt) for prompt in prompts for _ in range(group)],
            completions=completions,
            rewards_PG=rewards_PG,
            advantages_B=group_advantages(rewards_PG, scale_rewards).flatten(),
            weights_BT=token_weights(mask_BT, loss_type, max_completion_length),
            skipped_B=torch.zeros_like(skipped_B) if keep_all else skipped_B,
        )

    def micro_batches(self, rows: int, device: torch.device) -> Iterator[MicroBatch]:
        """The rows that carry signal, `rows` at a time, those of similar length together."""
        kept = (~self.skipped_B).nonzero().flatten().tolist()
        kept.sort(key=lambda row: len(self.prompts[row]) + len(self.completions[row]))
        for start in range(0, len(kept), rows):
            some = kept[start : start + rows]
            yield pack(
                [self.prompts[row] for row in some],
                [self.completions[row] for row in some],
                self.advantages_B[some],
                self.weights_BT[some],
                device,
            )


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    advantages_R: Tensor,
    weights_RT: Tensor,
    device: torch.device,
) -> MicroBatch:
    """Rows padded on the right to the longest, with the tokens that count picked out."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    longest = max(lengths)
    ids_RS = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask_RS = torch.zeros_like(ids_RS)
    predictors, targets, advantages, weights = [], [], [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids_RS[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        mask_RS[row, : lengths[row]] = 1
        # The state at a position predicts the token at the next.
        first = row * longest + len(prompt) - 1
        predictors.append(torch.arange(first, first + len(completion)))
        targets.append(torch.tensor(completion))
        advantages.append(advantages_R[row].expand(len(completion)))
        weights.append(weights_RT[row, : len(completion)])
    tokens = (torch.cat(values).to(device) for values in (predictors, targets, advantages, weights))
    return MicroBatch(ids_RS.to(device), mask_RS.to(device), *tokens)
