"""What sampling is asked for and who can do it: one protocol for training, extraction and evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from steerlift.records.errors import InputError
from steerlift.records.types import Completion


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to draw: from the whole softmax at `temperature` (0: greedy), at most `max_completion_length` tokens."""

    temperature: float = 0.9
    max_completion_length: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number")
        if self.max_completion_length < 1:
            raise InputError(f"max_completion_length is {self.max_completion_length}, expected at least 1 token")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, sampled once per seed under one steering weight.

    A completion depends on its prompt, seed and weight alone, never on what else is in the batch: the same seed under two
    weights uses the same random numbers, so arms can be compared draw by draw.
    """

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    weight: float = 0.0


OnDone = Callable[[int], None]
"""Called with the number of completions just finished."""

OnToken = Callable[[Request, int, float], None]
"""Called with a request, a token just sampled for it and its log probability. What it raises ends the sampling."""


class Sampler(Protocol):
    """Turns requests into completions."""

    def sample(
        self, requests: Sequence[Request], options: SamplingOptions, on_done: OnDone | None = None
    ) -> list[list[Completion]]:
        """The completions of each request, in the order of the requests and of their seeds."""


class StreamingSampler(Protocol):
    """A sampler that can be watched as it goes."""

    def sample(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        on_done: OnDone | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Completion]]:
        """As `Sampler.sample`; `on_token` hears of every token as it comes."""
