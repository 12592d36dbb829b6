"""What the completions of a batch have written so far, and which rows of the batch are theirs.

Shapes: N completions, T most tokens of one, R rows that are in the batch: completions leave it some time after they have ended.
"""

import torch
from torch import Tensor

# Rows that have ended stay in the batch until they are this share of it: taking them out copies all that is left.
_MOST_ENDED = 1 / 8


class Written:
    """`tokens_NT`, `logprobs_NT` and `lengths_N`; of each row `completion_R`, whose it is, and `running_R`, if that goes on."""

    def __init__(self, completions: int, limit: int, device: torch.device) -> None:
        self.tokens_NT = torch.zeros(completions, limit, dtype=torch.long, device=device)
        self.logprobs_NT = torch.zeros(completions, limit, device=device)
        self.lengths_N = torch.zeros(completions, dtype=torch.long, device=device)
        self.completion_R = torch.arange(completions, device=device)
        self.running_R = torch.ones(completions, dtype=torch.bool, device=device)

    def add(self, tokens_R: Tensor, logprobs_R: Tensor) -> Tensor:
        """Takes in the next token of every row that runs; returns whose they are."""
        going = self.completion_R[self.running_R]
        places = self.lengths_N[going]
        self.tokens_NT[going, places] = tokens_R[self.running_R]
        self.logprobs_NT[going, places] = logprobs_R[self.running_R]
        self.lengths_N[going] += 1
        return going

    def end(self, ended_R: Tensor) -> int:
        """These rows write no more; returns how many of them still did."""
        ended = int((ended_R & self.running_R).sum())
        self.running_R &= ~ended_R
        return ended

    def leave(self) -> Tensor | None:
        """The rows to go on with, where so many have ended that leaving them out is worth a copy of the others; else None."""
        going = self.running_R.nonzero().squeeze(1)
        if len(going) > (1 - _MOST_ENDED) * len(self.running_R):
            return None
        self.completion_R, self.running_R = self.completion_R[going], self.running_R[going]
        return going
