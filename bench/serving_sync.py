"""Seconds that a server takes to have new weights: the file is written, then loaded in place of the old ones."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.measure import DifferentResultsError, require_same_tokens
from bench.serving_models import Served
from bench.serving_requests import SAME_SHARE, local_sampler, remote_sampler
from bench.serving_server import Running
from bench.table import spread
from steerlift.sampling.hand_over import give_weights, save_weights, scratch_folder
from steerlift.sampling.sampler import Request, Sampler, SamplingOptions
from steerlift.serving.private import WEIGHTS
from steerlift.steering.models import Model

HEADINGS = ("weights", "parameters", "writing the file, s", "the server loads it, s", "whole sync, s", "syncs")
_PROMPTS, _LENGTH = 16, 8


def sync(served: Served, running: Running, name: str, repetitions: int, seed: int) -> tuple[list[str], str]:
    """Gives the server other weights so many times: the line of the table, and how far it then says what they say here.

    Raises DifferentResultsError where it does not say the same.
    """
    requests = [Request(prompt, (0,)) for prompt in served.prompts(_PROMPTS, seed)]
    before = _greedy(remote_sampler(served, running), requests)
    with _other_embeddings(served.model):
        # Once to warm up.
        times = [_sync(served, running, f"bench {number}") for number in range(repetitions + 1)][1:]
        after = _greedy(remote_sampler(served, running), requests)
        if after == before:
            raise DifferentResultsError(f"{name}: other weights were given to the server, but it says what it said before")
        same = require_same_tokens("greedy tokens after a sync", after, _greedy(local_sampler(served), requests), SAME_SHARE)
    writing, loading = zip(*times, strict=True)
    whole = [write + load for write, load in zip(writing, loading, strict=True)]
    seconds = [spread(writing), spread(loading), f"**{spread(whole)}**"]
    return [name, f"{served.parameters / 1e6:,.1f} million", *seconds, str(repetitions)], same


@contextmanager
def _other_embeddings(model: Model) -> Iterator[None]:
    """Inside the block the rows of the embeddings stand in reverse order."""
    embeddings_VH = model.get_output_embeddings().weight
    with torch.no_grad():
        embeddings_VH.copy_(embeddings_VH.flip(0))
        yield
        embeddings_VH.copy_(embeddings_VH.flip(0))


def _sync(served: Served, running: Running, version: str) -> tuple[float, float]:
    """Seconds of writing the file and of having the server load it."""
    scratch = scratch_folder(running.folder)
    try:
        file = scratch / "weights.safetensors"
        start = time.perf_counter()
        save_weights(served.model.state_dict(), file)
        written = time.perf_counter()
        give_weights(running.server, running.folder / WEIGHTS, file, version)
        return written - start, time.perf_counter() - written
    finally:
        shutil.rmtree(scratch)


def _greedy(sampler: Sampler, requests: list[Request]) -> list[tuple[int, ...]]:
    answers = sampler.sample(requests, SamplingOptions(0.0, _LENGTH))
    return [completion.token_ids for [completion] in answers]
