"""Samples on vLLM servers: token ids in, token ids and logprobs out, a steering weight per request.

A server that does not answer, fails or answers nonsense is waited for, longer each time; what it had finished stays, the
rest is asked again.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import httpx2

from steerlift.records.errors import InputError, ServerError
from steerlift.records.types import Completion
from steerlift.sampling.sampler import OnDone, Request, SamplingOptions
from steerlift.sampling.server import CONNECT_SECONDS, Patience, Server, check_answer
from steerlift.steering.models import Tokenizer

# Requests under way: more than servers run at a time, so that they never wait for us, but fewer than the 1024 files that a
# process may have open on most systems.
_CONCURRENT = 768


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to be made: its place in the results, and the body of the request."""

    request: int
    sample: int
    body: dict[str, Any]


class RemoteSampler:
    """Samples from one model on one or several servers, all serving the same.

    `steering` names the vector that the servers hold, for requests with a weight. `prepare` is called for each server before
    it is asked: it may have started anew since, without what it had been given.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        model: str,
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
        steering: str | None = None,
        patience: Patience | None = None,
        prepare: Callable[[Server], None] = lambda _: None,
    ) -> None:
        self.servers = list(servers)
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = sorted(end_ids)
        self.steering = steering
        self.patience = patience or Patience()
        self.prepare = prepare

    def sample(
        self, requests: Sequence[Request], options: SamplingOptions, on_done: OnDone | None = None
    ) -> list[list[Completion]]:
        """The completions of each request, in the order of the requests and of their seeds.

        Raises InputError when a server refuses a request and ServerError when one stays away too long.
        """
        if self.steering is None and any(request.weight for request in requests):
            raise InputError("a request has a steering weight, but the sampler was given no vectors")
        results: dict[tuple[int, int], Completion] = {}
        jobs = list(self._jobs(requests, options))
        waits = self.patience.waits()
        while jobs:
            try:
                for server in self.servers:
                    self.prepare(server)
                asyncio.run(self._ask_all(jobs, results, options, on_done))
            except ServerError as error:
                left = [job for job in jobs if (job.request, job.sample) not in results]
                if len(left) < len(jobs):  # it has worked since it was last away
                    waits = self.patience.waits()
                jobs = left
                self.patience.pause(error, waits)
            else:
                break
        return [[results[index, sample] for sample in range(len(r.seeds))] for index, r in enumerate(requests)]

    def _jobs(self, requests: Sequence[Request], options: SamplingOptions) -> Iterator[Job]:
        common = {
            "model": self.model,
            "max_tokens": options.max_completion_length,
            "temperature": options.temperature,
            # Whatever a server or a checkpoint has as its default would change the policy that is sampled.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": self.end_ids,
        }
        for index, request in enumerate(requests):
            steering = {"steering": {"vector": self.steering, "weight": request.weight}} if request.weight else {}
            for sample, seed in enumerate(request.seeds):
                # A request's seed is a signed 64-bit number there.
                seeded = {"prompt": list(request.prompt_ids), "seed": seed % 2**63}
                yield Job(index, sample, {**common, **steering, **seeded})

    async def _ask_all(
        self,
        jobs: Sequence[Job],
        results: dict[tuple[int, int], Completion],
        options: SamplingOptions,
        on_done: OnDone | None,
    ) -> None:
        """Fills in what can be answered. Raises InputError for what a server refuses, else ServerError for one that fails."""
        failures: list[ServerError | InputError] = []
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_CONCURRENT)
        timeout = httpx2.Timeout(self.patience.answer, connect=CONNECT_SECONDS, pool=None)
        async with httpx2.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
            room = asyncio.Semaphore(_CONCURRENT)

            async def fill_in(job: Job, server: Server) -> None:
                async with room:
                    if failures:  # no use asking on; what is left is asked again
                        return
                    try:
                        results[job.request, job.sample] = await self.ask(client, server, job, options)
                    except (ServerError, InputError) as error:
                        failures.append(error)
                        return
                if on_done is not None:
                    on_done(1)

            async with asyncio.TaskGroup() as tasks:
                for job, server in zip(jobs, cycle(self.servers), strict=False):
                    tasks.create_task(fill_in(job, server))
        if failures:
            raise min(failures, key=lambda error: isinstance(error, ServerError))

    async def ask(self, client: httpx2.AsyncClient, server: Server, job: Job, options: SamplingOptions) -> Completion:
        """One completion; who reads answers in another way overrides it.

        Raises ServerError for what may be better the next time, InputError for what will not.
        """
        where = f"{server.url}/v1/completions"
        try:
            answer = await client.post(where, json=job.body, headers=server.headers)
        except httpx2.HTTPError as error:
            raise ServerError(f"{where}: {type(error).__name__} {error}".rstrip()) from error
        check_answer(answer, where)
        try:
            (choice,) = answer.json()["choices"]
            ids = tuple(int(token) for token in choice["token_ids"])
            logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
            truncated = choice["finish_reason"] == "length"
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{where}: its answer is no completion ({type(error).__name__} {error})") from error
        ended = bool(ids) and ids[-1] in self.end_ids
        sound = (
            len(ids) == len(logprobs)
            and 1 <= len(ids) <= options.max_completion_length
            and all(map(math.isfinite, logprobs))
            and truncated != ended
        )
        if not sound:
            raise ServerError(f"{where}: its answer is no completion ({len(ids)} tokens, {len(logprobs)} logprobs)")
        if truncated and len(ids) < options.max_completion_length:
            # vLLM cuts off there without a word.
            raise InputError(
                f"{server.url} ended a completion after {len(ids)} of {options.max_completion_length} tokens, behind a prompt "
                f"of {len(job.body['prompt'])}; start it with a --max-model-len that holds both"
            )
        return Completion(ids, logprobs, self.tokenizer.decode(ids, skip_special_tokens=True), truncated)
