"""One vLLM server of `steerlift serve` as a client sees it: requests with its key, and patience when it does not answer."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2

from steerlift.records.errors import InputError, ServerError
from steerlift.records.progress import say

# A connection is there or it is not; an answer may take as long as the longest completion.
CONNECT_SECONDS = 10.0
CONTROL_SECONDS = 600.0

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a single answer may take, and how long a server may be away before its client gives up, in seconds."""

    answer: float = 1800.0
    server: float = 1800.0

    def waits(self) -> Iterator[float]:
        """Growing waits until the patience is used up."""
        end = time.monotonic() + self.server
        wait = _FIRST_WAIT_SECONDS
        while (left := end - time.monotonic()) > 0:
            yield min(wait, left)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def pause(self, error: ServerError, waits: Iterator[float]) -> None:
        """Says what is wrong and sleeps for the next of `waits`. Raises the error when there is none."""
        wait = next(waits, None)
        if wait is None:
            raise ServerError(f"{error}; waited {self.server:g} s for it to come back") from error
        say(f"{error}; trying again in {wait:.3g} s")
        time.sleep(wait)


class Server:
    """A running server. `key` opens its control paths; the server itself keeps it in a file only its owner can read."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(CONTROL_SECONDS, connect=CONNECT_SECONDS),
            # The server ends a connection that was idle for some seconds, perhaps just as the next request goes out.
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=False,  # proxies from the environment have no place between a client and its server
        )

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"}

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def info(self) -> dict[str, Any]:
        """What the server says of itself: model, architecture, dtype, tokenizer, longest context, vectors."""
        return self.ask("GET", "/steerlift/info")

    def ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's own arguments
        """The JSON object that answers one request. Raises as `request` does, and ServerError for an answer that is none."""
        answer = self.request(method, path, **content)
        try:
            parsed = answer.json()
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ServerError(f"{self.url}{path}: its answer is no JSON object: {_shortened(answer)}")
        return parsed

    def request(self, method: str, path: str, **content: Any) -> httpx2.Response:  # noqa: ANN401 - httpx's own arguments
        """The answer to one request. Raises ServerError for a connection that fails, InputError for one that is refused."""
        try:
            answer = self._client.request(method, f"{self.url}{path}", headers=self.headers, **content)
        except httpx2.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {type(error).__name__} {error}".rstrip()) from error
        check_answer(answer, f"{self.url}{path}")
        return answer


def check_serves(url: str, info: Mapping[str, Any], expected: Mapping[str, str], who: str, advice: str) -> None:
    """Raises InputError where what a server says of itself is not what its client, `who`, expects: the first that differs."""
    for name, value in expected.items():
        if info.get(name) != value:
            raise InputError(f"{url} has {name} {info.get(name)}, {who} has {value}; {advice}")


def check_answer(answer: httpx2.Response, where: str) -> None:
    """Raises InputError when the server refuses what was asked, ServerError when it fails."""
    if answer.is_success:
        return
    line = f"{where} answered {answer.status_code}: {_shortened(answer) or answer.reason_phrase}"
    raise InputError(line) if answer.is_client_error else ServerError(line)


def _shortened(answer: httpx2.Response) -> str:
    """What an answer says, in one line: the message of an error, else the beginning of its text."""
    text = answer.text
    with suppress(ValueError, KeyError, TypeError):
        text = str(answer.json()["error"]["message"])
    return " ".join(text.split())[:300]
