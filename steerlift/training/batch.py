"""Sampled completions as tensors: what one step is computed from.

Shapes: P problems, G completions of each, B = P x G, T completion tokens; in a micro-batch R rows (completions), D distinct
prompts of S tokens, the first F of them the same in all, N completion tokens that count, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from steerlift.records.types import GradedProblem
from steerlift.steering.shared_context import SharedContext, can_share, can_share_beginnings, common_prefix
from steerlift.training.grpo import LossType, group_advantages, has_no_signal, token_weights


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a step: distinct prompts padded on the left (D, S), completions padded on the right (R, T), which prompt
    each row has, and the advantage and weight in the loss of each of the N completion tokens, row by row.

    `prefix_1F` are the tokens that all prompts begin with, none where they are too few to be worth a pass of their own.

    `sampled_logprobs_N` are what the sampler gave; `old_logprobs_N` those of the policy that sampled, computed here, where it
    is no longer the one that is trained;
    `reference_logprobs_N` those of the model that the KL is taken to.
    """

    prompts_DS: Tensor
    prompt_mask_DS: Tensor
    prompt_of_row_R: Tensor
    completions_RT: Tensor
    mask_RT: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    prefix_1F: Tensor
    sampled_logprobs_N: Tensor | None = None
    old_logprobs_N: Tensor | None = None
    reference_logprobs_N: Tensor | None = None

    @property
    def targets_N(self) -> Tensor:
        """The ids of the tokens that count."""
        return self.completions_RT[self.mask_RT]

    def hidden(self, body: nn.Module) -> Tensor:
        """The last hidden states at the positions that predict the tokens that count, shape (N, H): the rest needs no head.

        What all prompts begin with and a prompt that several rows share are computed once each, where the model allows:
        their keys and values serve all that come after them, and gradients flow back through them.
        """
        prefix = self.prefix_1F.shape[1] if can_share_beginnings(body) else 0
        shares = len(self.prompts_DS) < len(self.completions_RT) and can_share(body)
        context = SharedContext(body, keeps=shares or prefix > 0)
        prompts_DS, prompt_mask_DS = self.prompts_DS, self.prompt_mask_DS
        if prefix:
            context.read(self.prefix_1F, torch.ones_like(self.prefix_1F))
            context.repeat(len(prompts_DS))
            # All prompts lose as many tokens: the rests are padded on the left by as much as the prompts were.
            prompts_DS, prompt_mask_DS = prompts_DS[:, prefix:], prompt_mask_DS[:, :-prefix]
        inputs_RT, input_mask_RT = self.completions_RT[:, :-1], self.mask_RT[:, :-1].long()
        if shares:
            states_RTH = context.read(prompts_DS, prompt_mask_DS)[self.prompt_of_row_R, -1:]
            if inputs_RT.shape[1]:
                context.select(self.prompt_of_row_R)
                states_RTH = torch.cat([states_RTH, context.read(inputs_RT, input_mask_RT)], dim=1)
        else:
            ids_RS = torch.cat([prompts_DS[self.prompt_of_row_R], inputs_RT], dim=1)
            mask_RS = torch.cat([prompt_mask_DS[self.prompt_of_row_R], input_mask_RT], dim=1)
            states_RTH = context.read(ids_RS, mask_RS)[:, prompts_DS.shape[1] - 1 :]
        states_NH: Tensor = states_RTH[self.mask_RT]
        return states_NH


@dataclass(frozen=True)
class StepBatch:
    """One step's completions, those of all processes, with their advantages and token weights.

    `kept_P` says of each group whether it is worth a forward pass, `masked_B` of each completion whether it is left out of
    the loss although it counts in its group's mean.
    """

    prompts: list[tuple[int, ...]]
    completions: list[tuple[int, ...]]
    logprobs: list[tuple[float, ...]]
    rewards_PG: Tensor
    advantages_B: Tensor
    weights_BT: Tensor
    kept_P: Tensor
    masked_B: Tensor

    @classmethod
    def build(
        cls,
        prompts: Sequence[Sequence[int]],
        graded: Sequence[GradedProblem],
        rewards_PG: Tensor,
        loss_type: LossType,
        max_completion_length: int,
        scale_rewards: bool = False,
        mask_truncated: bool = False,
        keep_all: bool = False,
    ) -> "StepBatch":
        """From a prompt's token ids per problem and a reward per completion, shape (problems, group).

        `mask_truncated` leaves completions that the length limit ended out of the loss, as DAPO does; `keep_all` keeps
        groups without signal too, whose KL may still count.
        """
        group = rewards_PG.shape[1]
        completions = [c.token_ids for g in graded for c in g.completions]
        truncated_B = torch.tensor([c.truncated for g in graded for c in g.completions])
        masked_B = truncated_B if mask_truncated else torch.zeros_like(truncated_B)
        mask_BT = torch.zeros(len(completions), max(map(len, completions)))
        for row, ids in enumerate(completions):
            mask_BT[row, : 0 if masked_B[row] else len(ids)] = 1
        return cls(
            prompts=[tuple(prompt) for prompt in prompts for _ in range(group)],
            completions=completions,
            logprobs=[c.logprobs for g in graded for c in g.completions],
            rewards_PG=rewards_PG,
            advantages_B=group_advantages(rewards_PG, scale_rewards).flatten(),
            weights_BT=token_weights(mask_BT, loss_type, max_completion_length),
            kept_P=torch.ones(len(graded), dtype=torch.bool) if keep_all else ~has_no_signal(rewards_PG),
            masked_B=masked_B,
        )

    def micro_batches(self, rows: int, device: torch.device, rank: int = 0, processes: int = 1) -> list[MicroBatch]:
        """The rows of one process that carry signal, `rows` at a time.

        Rows of one prompt stand together, so that it is computed once, or rows of similar length do, so that little is
        padding: whichever computes fewer tokens. Groups are dealt out whole. Every process gets equally many micro-batches,
        filled up with a row of weight 0, so that they can meet after each.
        """
        dealt = self._deal(processes)
        count = max(-(-len(part) // rows) for part in dealt)
        orders = (dealt[rank], sorted(dealt[rank], key=self._length))
        cuts = [[order[start : start + rows] for start in range(0, len(order), rows)] for order in orders]
        parts = min(cuts, key=lambda cut: sum(self._computed_tokens(part) for part in cut))
        # The largest first: what it frees holds all that follow. Growing ones each need new memory, in the end twice as much.
        parts.sort(key=self._computed_tokens, reverse=True)
        batches = [self._pack(part, self.weights_BT[part], device) for part in parts]
        shortest = min(range(len(self.completions)), key=self._length)
        idle = self._pack([shortest], torch.zeros_like(self.weights_BT[[shortest]]), device)
        return batches + [idle] * (count - len(batches))

    def _deal(self, processes: int) -> list[list[int]]:
        """The rows of the groups worth a forward pass: the longest groups first, dealt out as in a game of cards."""
        group = self.rewards_PG.shape[1]
        groups = [sorted(range(p * group, (p + 1) * group), key=self._length) for p in range(len(self.kept_P))]
        kept = sorted(self.kept_P.nonzero().flatten().tolist(), key=lambda p: -sum(map(self._length, groups[p])))
        hands = (kept[rank::processes] for rank in range(processes))
        return [[row for p in hand for row in groups[p] if not self.masked_B[row]] for hand in hands]

    def _length(self, row: int) -> int:
        return len(self.prompts[row]) + len(self.completions[row])

    def _computed_tokens(self, rows: Sequence[int]) -> int:
        prompts = {self.prompts[row] for row in rows}
        prefix = common_prefix(prompts)
        in_prompts = prefix + len(prompts) * (max(map(len, prompts)) - prefix)
        return in_prompts + len(rows) * max(len(self.completions[row]) for row in rows)

    def _pack(self, rows: list[int], weights_RT: Tensor, device: torch.device) -> MicroBatch:
        prompts, completions = [self.prompts[row] for row in rows], [self.completions[row] for row in rows]
        batch = pack(prompts, completions, self.advantages_B[rows], weights_RT, device)
        sampled = torch.tensor([value for row in rows for value in self.logprobs[row]], device=device)
        # Completions read back from a file have none.
        return replace(batch, sampled_logprobs_N=sampled) if len(sampled) == len(batch.targets_N) else batch


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    advantages_R: Tensor,
    weights_RT: Tensor,
    device: torch.device,
) -> MicroBatch:
    """The rows as tensors: a prompt, a completion and an advantage each, and weights per token (as many columns or more)."""
    distinct = {tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    longest_prompt, longest = max(map(len, distinct)), max(map(len, completions))
    prompts_DS = torch.zeros(len(distinct), longest_prompt, dtype=torch.long)
    prompt_mask_DS = torch.zeros_like(prompts_DS)
    for prompt, number in distinct.items():
        prompts_DS[number, longest_prompt - len(prompt) :] = torch.tensor(prompt)
        prompt_mask_DS[number, longest_prompt - len(prompt) :] = 1
    completions_RT = torch.zeros(len(completions), longest, dtype=torch.long)
    lengths_R = torch.tensor([len(completion) for completion in completions])
    mask_RT = torch.arange(longest) < lengths_R[:, None]
    for row, completion in enumerate(completions):
        completions_RT[row, : len(completion)] = torch.tensor(completion)
    tensors = (
        prompts_DS,
        prompt_mask_DS,
        torch.tensor([distinct[tuple(prompt)] for prompt in prompts]),
        completions_RT,
        mask_RT,
        advantages_R[:, None].expand(-1, longest)[mask_RT],
        weights_RT[:, :longest][mask_RT],
        torch.tensor([prompts[0][: common_prefix(distinct)]], dtype=torch.long),
    )
    return MicroBatch(*(tensor.to(device) for tensor in tensors))
