"""A small HTTP server in a thread that answers as a vLLM server would, until a test tells it to do otherwise."""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END = 1
GREEDY = (-0.25, -0.5)

Fault = Callable[["Handler", dict[str, Any]], None]
"""Answers a request wrongly, or not at all."""


@dataclass
class SmallServer:
    """`faults` are used up one by one, one for each completion that is asked for; `answers` are those of other paths. `paths`
    and `keys` are all that was asked, and `bodies` the completions that were given without fault."""

    port: int = 0
    faults: deque[Fault | None] = field(default_factory=deque)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: Counter[tuple[tuple[int, ...], int]] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["SmallServer"]:
        with _Quiet(("127.0.0.1", self.port), type("Bound", (Handler,), {"small": self})) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    small: SmallServer

    def do_GET(self) -> None:
        with self.small.lock:
            self.counted = True
            self.small.at_once += 1
            self.small.most_at_once = max(self.small.most_at_once, self.small.at_once)
        try:
            self._handle()
        finally:
            self._leave()

    do_POST = do_GET

    def _leave(self) -> None:
        """Before the answer goes out: whoever has it may ask the next before this thread is awake again."""
        with self.small.lock:
            self.small.at_once -= self.counted
            self.counted = False

    def send(self, status: int, content: Any) -> None:
        self._leave()
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        path = self.path.partition("?")[0]
        with self.small.lock:
            self.small.paths.append(f"{self.command} {path}")
            self.small.keys.add(self.headers.get("Authorization", ""))
            fault = self.small.faults.popleft() if path == "/v1/completions" and self.small.faults else None
        if path != "/v1/completions":
            self.send(*self.small.answers.get(path, (200, {})))
        elif fault is not None:
            fault(self, body)
        else:
            with self.small.lock:
                self.small.bodies.append(body)
                self.small.answered[tuple(body["prompt"]), body["seed"]] += 1
            self.send(200, completion(body))


def tokens_of(prompt: Any, seed: int) -> tuple[int, int]:
    """What the model behind the server says."""
    return 5 + (sum(prompt) * 31 + seed) % 300, END


def completion(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The right answer, but for `changes` to its only choice."""
    ids = list(tokens_of(body["prompt"], body["seed"]))
    choice = {"index": 0, "text": "", "token_ids": ids, "logprobs": {"token_logprobs": list(GREEDY)}, "finish_reason": "stop"}
    return {"choices": [{**choice, **changes}]}


def status(code: int, content: Any = None) -> Fault:
    return lambda handler, _: handler.send(code, {"error": {"message": "out of\nsorts"}} if content is None else content)


def changed(**changes: Any) -> Fault:
    return lambda handler, body: handler.send(200, completion(body, **changes))


def dropped(handler: Handler, _: dict[str, Any]) -> None:
    handler.close_connection = True


def cut_short(handler: Handler, body: dict[str, Any]) -> None:
    text = json.dumps(completion(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text[: len(text) // 2])
    handler.close_connection = True


def slow(seconds: float) -> Fault:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.send(200, completion(body))

    return answer
