"""Samples on a vLLM server as `RemoteSampler` does, and reads each completion while the server writes it."""

import json
import math
from collections.abc import Iterator, Sequence

import httpx2

from steerlift.records.errors import ServerError
from steerlift.records.types import Completion
from steerlift.sampling.remote import Job, RemoteSampler
from steerlift.sampling.sampler import OnDone, OnToken, Request, SamplingOptions
from steerlift.sampling.server import Patience, Server, check_answer

_EVENT = "data: "
_LAST_EVENT = "[DONE]"


class NoPatience(Patience):
    """Whoever looks at a page tries again by himself; and a token that was heard cannot be taken back."""

    def pause(self, error: ServerError, waits: Iterator[float]) -> None:  # noqa: ARG002 - Patience's signature
        """Raises the error."""
        raise error


class StreamedSampler(RemoteSampler):
    """One call of `sample` at a time. What `on_token` raises comes in an exception group and ends the server's work."""

    _requests: Sequence[Request] = ()
    _on_token: OnToken | None = None

    def sample(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        on_done: OnDone | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Completion]]:
        """As `RemoteSampler.sample`; `on_token` hears of every token as it comes."""
        self._requests, self._on_token = requests, on_token
        return super().sample(requests, options, on_done)

    async def ask(self, client: httpx2.AsyncClient, server: Server, job: Job, options: SamplingOptions) -> Completion:
        """As `RemoteSampler.ask`, of an answer that comes token by token."""
        where = f"{server.url}/v1/completions"
        ids: list[int] = []
        logprobs: list[float] = []
        reason = None
        try:
            async with client.stream("POST", where, json={**job.body, "stream": True}, headers=server.headers) as answer:
                if not answer.is_success:
                    await answer.aread()
                check_answer(answer, where)
                async for line in answer.aiter_lines():
                    pieces, ended_by = _read(line, where)
                    reason = ended_by or reason
                    for token_id, logprob in pieces:
                        ids.append(token_id)
                        logprobs.append(logprob)
                        if self._on_token is not None:
                            self._on_token(self._requests[job.request], token_id, logprob)
        except httpx2.HTTPError as error:
            raise ServerError(f"{where}: {type(error).__name__} {error}".rstrip()) from error
        truncated, ended = reason == "length", bool(ids) and ids[-1] in self.end_ids
        whole = ended or len(ids) == options.max_completion_length
        if truncated == ended or not whole or not all(map(math.isfinite, logprobs)):
            raise ServerError(
                f"{where}: its answer is no completion ({len(ids)} of {options.max_completion_length} tokens, it ended by"
                f" {reason}); does its --max-model-len hold prompt and answer?"
            )
        return Completion(tuple(ids), tuple(logprobs), self.tokenizer.decode(ids, skip_special_tokens=True), truncated)


def _read(line: str, where: str) -> tuple[list[tuple[int, float]], str | None]:
    """The tokens with their logprobs that one line of the stream brings, and what has ended the completion, if it has.

    Raises ServerError for a line that is none, and where the server says that it has failed.
    """
    if not line.startswith(_EVENT) or line == _EVENT + _LAST_EVENT:
        return [], None
    try:
        event = json.loads(line.removeprefix(_EVENT))
        if "error" in event:
            raise ServerError(f"{where}: {event['error']['message']}")
        if not event["choices"]:
            return [], None
        (choice,) = event["choices"]
        ids = choice["token_ids"] or []
        logprobs = choice["logprobs"]["token_logprobs"] if ids else []
        pieces = [(int(token_id), float(logprob)) for token_id, logprob in zip(ids, logprobs, strict=True)]
        return pieces, choice["finish_reason"]
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{where}: its answer is no completion ({type(error).__name__} {error})") from error
