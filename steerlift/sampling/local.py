"""Samples on this machine, on any transformers causal language model, in batches that share work.

What all prompts begin with is prefilled once, and a long beginning kept once; the rest of each prompt is prefilled once for all
its completions, rows leave the batch as they finish, and each row carries its own steering weight and random numbers.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from steerlift.records.errors import InputError, NotFiniteError
from steerlift.records.progress import say
from steerlift.records.types import Completion
from steerlift.sampling.attention import fast_decoding, go_on_after
from steerlift.sampling.beginning import Beginning, take_beginning
from steerlift.sampling.cache import can_split_rows, new_cache
from steerlift.sampling.draws import choose_tokens, uniforms
from steerlift.sampling.generate import decode_with_generate
from steerlift.sampling.room import rows_that_fit
from steerlift.sampling.sampler import OnDone, OnToken, Request, SamplingOptions
from steerlift.sampling.written import Written
from steerlift.steering.apply import Steering, steer
from steerlift.steering.models import Model, Tokenizer, decoder_body, end_token_ids
from steerlift.steering.shared_context import allows_gaps, common_beginning
from steerlift.steering.vectors import SteeringVectors

# A shorter beginning costs more as a forward pass of its own than it saves.
_LEAST_SHARED = 16

T = TypeVar("T")


class LocalSampler:
    """Samples from `model`, with `vectors` added to its residual stream at each request's weight."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, vectors: SteeringVectors | None = None, batch_rows: int | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.vectors = vectors
        self.batch_rows = batch_rows
        self._end_ids = torch.tensor(end_token_ids(model, tokenizer), device=model.device)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        # By an index, not as the end of a slice: torch multiplies a slice with as many copies of the head's weights as it has
        # rows. For 32 prompts of Qwen2.5-0.5B in bfloat16 they were 8 GB and nine tenths of the time that prompts took.
        self._only_last_logits = (
            {"logits_to_keep": torch.tensor([-1], device=model.device)}
            if "logits_to_keep" in inspect.signature(model.forward).parameters
            else {}
        )
        self._can_split = can_split_rows(model)
        self._can_share_beginnings = self._can_split and allows_gaps(decoder_body(model))
        self._keeps_beginnings_apart = True
        if not self._can_split:
            say(f"{type(model).__name__}: its cache cannot be split by rows; sampling falls back to transformers' generate")

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        on_done: OnDone | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Completion]]:
        """The completions of each request, in the order of the requests and of their seeds.

        `on_token` hears of no token of a model whose cache cannot be split by rows.
        """
        if self.vectors is None and any(request.weight for request in requests):
            raise InputError("a request has a steering weight, but the sampler was given no vectors")
        results: list[list[Completion]] = [[] for _ in requests]
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(requests, options):
                with fast_decoding():
                    sampled = self._sample_batch([request for _, request in batch], options, on_done or _ignore, on_token)
                for (index, _), completions in zip(batch, sampled, strict=True):
                    results[index].extend(completions)
        finally:
            self.model.train(was_training)
        return results

    def _batches(self, requests: Sequence[Request], options: SamplingOptions) -> Iterator[list[tuple[int, Request]]]:
        """Requests of similar prompt length together (little padding), in batches of as many rows as fit in memory."""
        longest = max((len(request.prompt_ids) for request in requests), default=0) + options.max_completion_length
        room = self.batch_rows or rows_that_fit(self.model, longest, sum(len(request.seeds) for request in requests))
        batch: list[tuple[int, Request]] = []
        rows = 0
        for index in sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids)):
            request = requests[index]
            for start in range(0, len(request.seeds), room):
                part = Request(request.prompt_ids, request.seeds[start : start + room], request.weight)
                if batch and rows + len(part.seeds) > room:
                    yield batch
                    batch, rows = [], 0
                batch.append((index, part))
                rows += len(part.seeds)
        if batch:
            yield batch

    def _sample_batch(
        self, requests: list[Request], options: SamplingOptions, on_done: OnDone, on_token: OnToken | None
    ) -> list[list[Completion]]:
        steered = any(request.weight for request in requests)
        steering: AbstractContextManager[Steering | None] = (
            steer(self.model, self.vectors, [request.weight for request in requests])
            if steered and self.vectors is not None
            else nullcontext()
        )
        with steering as active:
            if self._can_split:
                rows = self._decode(requests, options, active, on_done, on_token)
            else:
                if active is not None:
                    active.set_weight(_per_row([request.weight for request in requests], requests))
                prompts, mask = self._padded([r.prompt_ids for r in requests for _ in r.seeds])
                draws = uniforms([s for r in requests for s in r.seeds], options.max_completion_length)
                rows = decode_with_generate(self.model, prompts, mask, draws, options, self._end_ids.tolist(), self._pad_id)
                on_done(len(draws))
        return self._completions(requests, *rows)

    def _decode(
        self,
        requests: list[Request],
        options: SamplingOptions,
        steering: Steering | None,
        on_done: OnDone,
        on_token: OnToken | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and logprobs, shape (rows, max_completion_length), and lengths, shape (rows,)."""
        limit = options.max_completion_length
        cache = new_cache(self.model)
        logits_PV, mask_PT, last_P, beginning = self._prefill(requests, steering, cache)

        # From here on a row is a completion: each takes over its prompt's cache.
        request_N = _per_row(requests, requests)
        prompt_R = torch.tensor(_per_row(list(range(len(requests))), requests), device=self.model.device)
        _select(prompt_R, cache, beginning)
        logits_RV, positions_R = logits_PV[prompt_R], last_P[prompt_R]
        mask_RT = torch.nn.functional.pad(mask_PT[prompt_R], (0, limit), value=1)
        weights_N = torch.tensor([request.weight for request in request_N])
        draws_NT = uniforms([seed for request in requests for seed in request.seeds], limit).to(self.model.device)
        written = Written(len(request_N), limit, self.model.device)
        if steering is not None:
            steering.set_weight(weights_N)

        for step in range(limit):
            tokens_R, logprobs_R = choose_tokens(logits_RV, draws_NT[written.completion_R, step], options.temperature)
            if not bool(torch.isfinite(logprobs_R[written.running_R]).all()):
                raise NotFiniteError(f"{type(self.model).__name__}: its logits are not finite; its weights are damaged")
            going = written.add(tokens_R, logprobs_R)
            if on_token is not None:
                for n in going.tolist():
                    on_token(request_N[n], int(written.tokens_NT[n, step]), float(written.logprobs_NT[n, step]))
            ended = written.end(torch.isin(tokens_R, self._end_ids))
            if ended:
                on_done(ended)
                if not bool(written.running_R.any()):
                    break
                keep = written.leave()
                if keep is not None:
                    tokens_R, mask_RT, positions_R = tokens_R[keep], mask_RT[keep], positions_R[keep]
                    _select(keep, cache, beginning)
                    if steering is not None:
                        steering.set_weight(weights_N[written.completion_R.cpu()])
            if step + 1 < limit:
                positions_R = positions_R + 1
                seen_RT = mask_RT[:, : mask_PT.shape[1] + step + 1]
                logits_RV = self._forward(tokens_R[:, None], seen_RT, positions_R[:, None], cache)
        cut_off = int(written.running_R.sum())
        if cut_off:
            on_done(cut_off)
        return written.tokens_NT, written.logprobs_NT, written.lengths_N

    def _prefill(
        self, requests: list[Request], steering: Steering | None, cache: DynamicCache
    ) -> tuple[Tensor, Tensor, Tensor, Beginning | None]:
        """Takes every prompt into the cache: next-token logits (P, V), what of the cache is no padding (P, T), each's last
        position (P,), and what stands before the cache.

        The beginning that all prompts share is taken in once for every weight there is among them, and stays apart where
        that is worth it.
        """
        prompts = [request.prompt_ids for request in requests]
        weights = [request.weight for request in requests]
        different = list(dict.fromkeys(weights))
        shared = common_beginning(prompts) if self._can_share_beginnings and len(different) < len(requests) else 0
        beginning = None
        if shared >= _LEAST_SHARED:
            if steering is not None:
                steering.set_weight(different)
            beginnings_WT = torch.tensor([prompts[0][:shared]] * len(different), device=self.model.device)
            positions_WT = torch.arange(shared, device=self.model.device).expand_as(beginnings_WT)
            self._forward(beginnings_WT, torch.ones_like(beginnings_WT), positions_WT, cache)
            beginning = take_beginning(
                cache, torch.tensor([different.index(weight) for weight in weights], device=self.model.device)
            )
        else:
            shared = 0
        if steering is not None:
            steering.set_weight(weights)
        rests_PT, mask_PT = self._padded([prompt[shared:] for prompt in prompts])
        positions_PT = shared + (mask_PT.cumsum(-1) - 1).clamp(min=0)
        if beginning is not None and self._keeps_beginnings_apart and beginning.can_be_apart(self.model):
            go_on_after(beginning)
            logits_PV = self._forward(rests_PT, mask_PT, positions_PT, cache)
            if beginning.was_read():
                return logits_PV, mask_PT, positions_PT[:, -1], beginning
            # Its attention is not the one that is replaced here: what it computed lacks the beginning.
            go_on_after(None)
            self._keeps_beginnings_apart = False
        if beginning is not None:
            beginning.put_back(cache)
            mask_PT = torch.nn.functional.pad(mask_PT, (shared, 0), value=1)
        return self._forward(rests_PT, mask_PT, positions_PT, cache), mask_PT, positions_PT[:, -1], None

    def _forward(self, ids_RT: Tensor, mask_RT: Tensor, positions_RT: Tensor, cache: DynamicCache) -> Tensor:
        output = self.model(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            position_ids=positions_RT,
            past_key_values=cache,
            use_cache=True,
            **self._only_last_logits,
        )
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV

    def _padded(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left and their attention mask, both of shape (prompts, longest)."""
        longest = max(map(len, prompts))
        ids = [[self._pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _completions(
        self, requests: list[Request], tokens_RT: Tensor, logprobs_RT: Tensor, lengths_R: Tensor
    ) -> list[list[Completion]]:
        end_ids = set(self._end_ids.tolist())
        ids = [row[:length] for row, length in zip(tokens_RT.tolist(), lengths_R.tolist(), strict=True)]
        logprobs = [row[:length] for row, length in zip(logprobs_RT.tolist(), lengths_R.tolist(), strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rows = iter(zip(ids, logprobs, texts, strict=True))
        return [
            [
                Completion(tuple(row_ids), tuple(row_logprobs), text, truncated=row_ids[-1] not in end_ids)
                for row_ids, row_logprobs, text in (next(rows) for _ in request.seeds)
            ]
            for request in requests
        ]


def _ignore(count: int) -> None:
    """Nobody wants to know how many are done."""


def _select(rows: Tensor, cache: DynamicCache, beginning: Beginning | None) -> None:
    cache.batch_select_indices(rows)
    if beginning is not None:
        beginning.select(rows)


def _per_row(values: list[T], requests: list[Request]) -> list[T]:
    return [value for value, request in zip(values, requests, strict=True) for _ in request.seeds]
