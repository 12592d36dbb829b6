"""64 requests at once on one server: each with a steering weight of its own, all with one weight, or unsteered."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx2

from bench.measure import Way, interleaved, require_same_tokens
from bench.serving_models import Served
from bench.serving_server import VECTORS, Running
from bench.table import Aim, Row, rate_row
from steerlift.sampling.draws import row_seed
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.sampling.server import check_answer

REQUESTS = 64
OWN_WEIGHTS = tuple((index + 1) / 50 for index in range(REQUESTS))
ONE_WEIGHT = (0.5,) * REQUESTS
UNSTEERED = (0.0,) * REQUESTS
SAME_SHARE = 0.95
"""Of greedy rows, how many must be the same: few are compared, and two tokens may be equally likely up to rounding."""
_SECONDS = 600.0


class Load:
    """The requests of one turn after the other; all ways ask the same prompts and seeds in their i-th turn."""

    def __init__(self, served: Served, running: Running, new_tokens: int, seed: int) -> None:
        self.served = served
        self.running = running
        self.new_tokens = new_tokens
        self.seed = seed

    def rows(self, name: str, turns: int, aim: Aim | None) -> list[Row]:
        """Times all ways in turns; new tokens per second, steered against unsteered. CPU seconds are the server's own."""
        ways = {weights: self.way(weights) for weights in (UNSTEERED, OWN_WEIGHTS, ONE_WEIGHT)}
        times = interleaved(ways, turns)
        rows = []
        for weights, what in ((OWN_WEIGHTS, f"{REQUESTS} weights"), (ONE_WEIGHT, "one weight")):
            measured = f"{REQUESTS} requests at once, {what}: {name}"
            rows.append(rate_row(measured, "tokens/s", times[weights], "unsteered", times[UNSTEERED], aim))
        return [replace(row, cpu_ratios=()) for row in rows]

    def way(self, weights: Sequence[float]) -> Way:
        """Asks one turn's requests after another's; the number of new tokens."""
        turns = 0

        def once() -> float:
            nonlocal turns
            turns += 1
            return float(asyncio.run(self._ask(self._bodies(weights, turns))))

        return once

    def check(self, length: int) -> str:
        """In how many requests the likeliest tokens are those of LocalSampler. Raises DifferentResultsError."""
        prompts = self.served.prompts(REQUESTS, self.seed)
        requests = [Request(prompt, (0,), weight) for prompt, weight in zip(prompts, OWN_WEIGHTS, strict=True)]
        there, here = (
            [completion.token_ids for [completion] in sampler.sample(requests, SamplingOptions(0.0, length))]
            for sampler in (remote_sampler(self.served, self.running), local_sampler(self.served))
        )
        return require_same_tokens(f"greedy tokens under {REQUESTS} weights", there, here, SAME_SHARE)

    def _bodies(self, weights: Sequence[float], turn: int) -> list[dict[str, Any]]:
        common = {
            "model": self.running.model,
            "max_tokens": self.new_tokens,
            "ignore_eos": True,
            "temperature": 1.0,
        }
        # New in every turn, so that no turn finds the caches of another.
        prompts = self.served.prompts(len(weights), row_seed(self.seed, turn))
        return [
            {
                **common,
                "prompt": prompt,
                "seed": row_seed(self.seed, turn, index) % 2**63,
                **({"steering": {"vector": VECTORS, "weight": weight}} if weight else {}),
            }
            for index, (prompt, weight) in enumerate(zip(prompts, weights, strict=True))
        ]

    async def _ask(self, bodies: Sequence[Mapping[str, Any]]) -> int:
        where, headers = f"{self.running.server.url}/v1/completions", self.running.server.headers
        async with httpx2.AsyncClient(timeout=_SECONDS, trust_env=False) as client:
            answers = await asyncio.gather(*(client.post(where, json=body, headers=headers) for body in bodies))
        for answer in answers:
            check_answer(answer, where)
        counts = [int(answer.json()["usage"]["completion_tokens"]) for answer in answers]
        if counts != [self.new_tokens] * len(bodies):
            raise RuntimeError(f"{where}: completions of {min(counts)} to {max(counts)} tokens, expected {self.new_tokens}")
        return sum(counts)


def remote_sampler(served: Served, running: Running) -> RemoteSampler:
    """Samples from the model on the server."""
    # No token ends a completion; vLLM refuses the one that the models were given, which is outside of their vocabulary.
    return RemoteSampler([running.server], running.model, served.tokenizer, (), VECTORS)


def local_sampler(served: Served) -> LocalSampler:
    """Samples from the same model here."""
    return LocalSampler(served.model, served.tokenizer, served.vectors)
