"""The process that asks math-verify: `python -m steerlift.scoring.worker`, JSON lines in, JSON lines out.

It prints `{"ready": true}` once everything is imported, then answers every `{"gold", "predicted", "timeout"}` with
`{"equal": true or false}`. math-verify bounds nothing off the main thread and little on it (its alarm cannot interrupt
`9^{9^{9^9}}`), so that this process is made to be killed: `steerlift.scoring.pool` does it at the limit.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TextIO

MEMORY_LIMIT_BYTES = 2 * 1024**3
# How long after the limit the worker ends by itself, if the process that should kill it was itself killed.
ALARM_SLACK_SECONDS = 1.0
# sympy imports some of itself, and the parser builds its tables, on first use: that should not count against a limit.
WARM_UP = (
    (r"\frac{x}{2}+\sqrt{3}", r"2x^2-\sin(x)"),
    (r"x=\frac{1}{2}, y=2", "x<3"),
    (r"(1,2)\cup[3,\infty)", r"\{1,2\}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\sum_{k=1}^{n} a_k b_{n-k}"),
)


def load_comparison() -> Callable[[str, str], bool]:
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


def serve(requests: TextIO, replies: TextIO, equal: Callable[[str, str], bool]) -> None:
    """Answers one line after the other until the requests end, which they do when the parent process ends."""
    for line in requests:
        request = json.loads(line)
        _alarm(request["timeout"] + ALARM_SLACK_SECONDS)
        # math-verify turns what sympy raises into "not equal"; what gets past it ends this process and costs one answer.
        verdict = equal(request["gold"], request["predicted"])
        _alarm(0)
        _say(replies, {"equal": verdict})


def main() -> None:
    """Sets the limits, imports, reports ready (or what failed) and serves."""
    # Whatever a library prints must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our stdin
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    try:
        equal = load_comparison()
        for gold, predicted in WARM_UP:
            equal(gold, predicted)
    except ImportError as error:
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _limit_resources()
    _say(replies, {"ready": True})
    serve(sys.stdin, replies, equal)


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _alarm(seconds: float) -> None:
    """Has the kernel end this process after so many seconds, whatever Python is doing then; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_resources() -> None:
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


if __name__ == "__main__":
    main()
