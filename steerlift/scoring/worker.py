"""The process that asks math-verify: `python -m steerlift.scoring.worker`, JSON lines in, JSON lines out.

It prints `{"ready": true}` once everything is imported, then answers every `{"gold", "predicted", "timeout"}` with
`{"equal": bool, "lost": bool}`. math-verify bounds nothing off the main thread and little on it (its alarm cannot interrupt
`9^{9^{9^9}}`), so a forked child does the comparing: it is killed at the limit, and its replacement costs milliseconds
where a new interpreter would import sympy for two seconds. Forking is safe here and only here: this process has one thread.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import IO, Any

MEMORY_LIMIT_BYTES = 2 * 1024**3
# How long after the limit a child ends by itself, if the process that should kill it was itself killed.
ALARM_SLACK_SECONDS = 1.0

# sympy imports some of itself, and the parser builds its tables, on first use: that should not count against a limit.
WARM_UP = (
    (r"\frac{x}{2}+\sqrt{3}", r"2x^2-\sin(x)"),
    (r"x=\frac{1}{2}, y=2", "x<3"),
    (r"(1,2)\cup[3,\infty)", r"\{1,2\}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\sum_{k=1}^{n} a_k b_{n-k}"),
)

Comparison = Callable[[str, str], bool]


def load_comparison() -> Comparison:
    """Imports math-verify (a second) and returns `equal(gold, predicted)` for two tidy answers."""
    from math_verify import LatexExtractionConfig, parse, verify

    # Only LaTeX: the plain-expression fallback takes a stray number out of what it could not read as a whole. No units:
    # that table holds single letters and makes 3t equal to 3; `steerlift.scoring.units` does it instead.
    default = LatexExtractionConfig()
    targets = (replace(default, normalization_config=replace(default.normalization_config, units=False)),)

    @lru_cache(maxsize=512)
    def parsed(answer: str) -> list[Any]:
        found: list[Any] = parse(f"${answer}$", targets, parsing_timeout=None)
        return found

    def equal(gold: str, predicted: str) -> bool:
        return bool(verify(parsed(gold), parsed(predicted), timeout_seconds=None))

    return equal


def main() -> None:
    """Imports, reports ready (or what failed) and serves until its input ends, which it does when the parent ends."""
    # Whatever a library prints must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our input
    logging.disable(logging.CRITICAL)
    try:
        equal = load_comparison()
    except ImportError as error:
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    for gold, predicted in WARM_UP:
        equal(gold, predicted)
    _say(replies, {"ready": True})
    if hasattr(os, "fork"):
        supervise(sys.stdin, replies, equal)
    else:  # the parent kills the whole process at the limit
        serve(sys.stdin, replies, equal)


def supervise(requests: IO[str], replies: IO[str], equal: Comparison) -> None:
    """Hands every request to the child, and replaces the child when it takes too long or ends."""
    child = _Child(equal, replies)
    for line in requests:
        reply, timed_out = child.ask(line, json.loads(line)["timeout"])
        if reply is None:
            child.kill()
            child = _Child(equal, replies)
        _say(replies, reply or {"equal": False, "lost": not timed_out})
    child.kill()


def serve(requests: IO[str], replies: IO[str], equal: Comparison) -> None:
    """Compares one pair after the other until the requests end."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_resources()
    for line in requests:
        request = json.loads(line)
        _alarm(request["timeout"] + ALARM_SLACK_SECONDS)
        # math-verify turns what sympy raises into "not equal"; what gets past it ends this process and costs one answer.
        verdict = equal(request["gold"], request["predicted"])
        _alarm(0)
        _say(replies, {"equal": verdict, "lost": False})


def limit_resources() -> None:
    """A bound on memory and no core files, where the system has such limits."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (wanted, wanted))


class _Child:
    """A forked copy of this process that runs `serve` on a pair of pipes."""

    def __init__(self, equal: Comparison, parents_replies: IO[str]) -> None:
        requests_end, self._requests = os.pipe()
        self._replies, replies_end = os.pipe()
        self._id = os.fork()
        if self._id == 0:
            # Held open here, the parent's pipes would hide from it that this process's parent has ended.
            for end in (self._requests, self._replies, sys.stdin.fileno(), parents_replies.fileno()):
                os.close(end)
            try:
                with os.fdopen(requests_end, encoding="ascii") as requests, os.fdopen(replies_end, "w") as replies:
                    serve(requests, replies, equal)
            finally:
                os._exit(0)
        os.close(requests_end)
        os.close(replies_end)

    def ask(self, line: str, timeout: float) -> tuple[dict[str, Any] | None, bool]:
        """The child's reply and False; None and whether the time was up when there is none."""
        requests = os.fdopen(self._requests, "w", encoding="ascii", closefd=False)
        with contextlib.suppress(BrokenPipeError), requests:  # if it is gone, the read below says so
            requests.write(line)
        if not select.select([self._replies], [], [], timeout)[0]:
            return None, True
        reply = os.read(self._replies, 4096)
        return (json.loads(reply) if reply else None), False

    def kill(self) -> None:
        os.kill(self._id, signal.SIGKILL)
        os.waitpid(self._id, 0)
        os.close(self._requests)
        os.close(self._replies)


def _say(replies: IO[str], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _alarm(seconds: float) -> None:
    """Has the kernel end this process after so many seconds, whatever Python is doing then; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
