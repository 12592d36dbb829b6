"""A sweep over steering weights through a server, against the local sampler and against transformers' generate."""

from dataclasses import replace

from bench.measure import interleaved, require_same_tokens
from bench.sampling import TEMPERATURE, Generate
from bench.serving_models import Served
from bench.serving_requests import SAME_SHARE, local_sampler, remote_sampler
from bench.serving_server import Running
from bench.table import Row, time_row
from steerlift.sampling.draws import row_seed
from steerlift.sampling.sampler import Request, Sampler, SamplingOptions
from steerlift.steering.apply import steer

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
COMPLETIONS = 4
SERVER, LOCAL, GENERATE = "server", "LocalSampler", "transformers generate"


class Sweep:
    """The same prompts under the base model and every weight, completions of one length, in either way."""

    def __init__(self, served: Served, running: Running, problems: int, length: int, seed: int) -> None:
        self.served = served
        self.running = running
        self.length = length
        self.seed = seed
        self.prompts = served.prompts(problems, seed)
        self.batch = Generate(served.model, served.tokenizer, self.prompts, length)

    def rows(self, name: str, turns: int) -> list[Row]:
        """Times all ways in turns. The comparison of `check` has warmed them up."""
        ways = {
            SERVER: lambda: self._sampled(remote_sampler(self.served, self.running)),
            LOCAL: lambda: self._sampled(local_sampler(self.served)),
            GENERATE: self._generated,
        }
        times = interleaved(ways, turns, warm=True)
        measured = f"sweep, {len(WEIGHTS) - 1} weights and base, {len(self.prompts)} x {COMPLETIONS} completions: {name}"
        rows = [time_row(measured, times[SERVER], other, times[other]) for other in (LOCAL, GENERATE)]
        return [replace(row, cpu_ratios=()) for row in rows]

    def check(self) -> str:
        """In how many prompts and weights the likeliest tokens of all ways are the same. Raises DifferentResultsError."""
        options = SamplingOptions(0.0, self.length)
        there, here = (
            [completion.token_ids for [completion] in sampler.sample(self._requests(1), options)]
            for sampler in (remote_sampler(self.served, self.running), local_sampler(self.served))
        )
        batches = []
        for weight in WEIGHTS:
            with steer(self.served.model, self.served.vectors, weight):
                batches += self.batch.greedy()
        same = [require_same_tokens("greedy tokens", there, other, SAME_SHARE) for other in (here, batches)]
        return f"{same[0]} and {same[1]}"

    def _requests(self, completions: int) -> list[Request]:
        seeds = [tuple(row_seed(self.seed, i, sample) for sample in range(completions)) for i in range(len(self.prompts))]
        return [Request(prompt, own, weight) for weight in WEIGHTS for prompt, own in zip(self.prompts, seeds, strict=True)]

    def _sampled(self, sampler: Sampler) -> float:
        answers = sampler.sample(self._requests(COMPLETIONS), SamplingOptions(TEMPERATURE, self.length))
        return self._whole(sum(len(completion.token_ids) for completions in answers for completion in completions))

    def _generated(self) -> float:
        tokens = 0.0
        for weight in WEIGHTS:
            with steer(self.served.model, self.served.vectors, weight):
                tokens += self.batch.sample(COMPLETIONS, repeated_rows=True)
        return self._whole(tokens)

    def _whole(self, tokens: float) -> float:
        expected = len(WEIGHTS) * len(self.prompts) * COMPLETIONS * self.length
        if tokens != expected:
            raise RuntimeError(f"a sweep of {tokens:,.0f} tokens, expected {expected:,}: a completion has ended early")
        return tokens
