"""Worker processes that can be killed: started when first needed, reused, killed at the limit, replaced.

Nothing is forked from a process that may hold torch's threads: workers are fresh interpreters (`subprocess`, JSON lines
over pipes). The pool may be used from any number of threads at once.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from steerlift.records.errors import SteerliftError

START_LIMIT_SECONDS = 60.0
WORKER_COMMAND = (sys.executable, "-m", "steerlift.scoring.worker")


class CheckerError(SteerliftError, RuntimeError):
    """The process that checks answers does not start, so that nothing can be graded."""


class WorkerLostError(Exception):
    """The worker ended while it had this pair: the pair is not decided, the next one gets a new worker."""


class Worker:
    """One process and its replacements. Not for use by two threads at once."""

    def __init__(self) -> None:
        self.started = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._ready = False

    def start(self) -> None:
        """Starts a new process, killing the old one, without waiting until it is ready."""
        self.close()
        self._process = _spawn()
        self.started = time.monotonic()

    def ask(self, gold: str, predicted: str, timeout: float) -> bool:
        """math-verify's verdict; False when it takes longer than `timeout` seconds. Starting up is not counted.

        Raises WorkerLostError when the process ends by itself, CheckerError when it cannot be started.
        """
        request = json.dumps({"gold": gold, "predicted": predicted, "timeout": timeout})
        try:
            try:
                reply, timed_out = self._exchange(request, timeout)
            except BrokenPipeError:  # it ended while it was idle; that says nothing about this pair
                self.close()
                reply, timed_out = self._exchange(request, timeout)
        except BaseException:
            # Interrupted with a reply on the way: the next question must not read it.
            self.close()
            raise
        if reply is None:
            self.start()  # its imports run while the other workers are asked
            if not timed_out:
                raise WorkerLostError
        return reply is not None and bool(reply["equal"])

    def close(self) -> None:
        """Kills the process, if there is one."""
        process, self._process, self._ready = self._process, None, False
        if process is not None:
            _end(process)

    def _exchange(self, request: str, timeout: float) -> tuple[dict[str, Any] | None, bool]:
        if self._process is None:
            self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._ready:
            _await_ready(self._process)
            self._ready = True
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return _read_line(self._process, timeout)


class WorkerPool:
    """At most `size` workers, one pair at a time each; by default two, or one on a single core."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size if size is not None else min(2, os.cpu_count() or 1)
        self.process_id = os.getpid()
        workers = [Worker() for _ in range(self.size)]
        for worker in workers:
            worker.start()
        # The one that was started first is asked first: it is ready, where a replacement may still import.
        self._idle: queue.PriorityQueue[tuple[float, int]] = queue.PriorityQueue()
        self._workers = workers
        for index in range(self.size):
            self._release(index)
        # Runs when the pool is collected and when the interpreter exits, whichever comes first.
        self.close = weakref.finalize(self, _close_all, workers, self.process_id)

    def ask(self, gold: str, predicted: str, timeout: float) -> bool:
        """As `Worker.ask`, with the next idle worker; waiting for one is not counted."""
        _, index = self._idle.get()
        try:
            return self._workers[index].ask(gold, predicted, timeout)
        finally:
            self._release(index)

    def _release(self, index: int) -> None:
        self._idle.put((self._workers[index].started, index))


def _close_all(workers: list[Worker], process_id: int) -> None:
    if os.getpid() == process_id:  # a forked child must not kill its parent's
        for worker in workers:
            worker.close()


def _spawn() -> "subprocess.Popen[str]":
    # It imports from where this process does, wherever the working directory is; the seed keeps its verdicts the same
    # from run to run (sympy orders some terms by hash); one thread is all it uses.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        WORKER_COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="ascii",
        env=environment,
        start_new_session=True,  # Ctrl-C in the terminal goes to the whole group
    )


def _await_ready(process: "subprocess.Popen[str]") -> None:
    greeting, timed_out = _read_line(process, START_LIMIT_SECONDS)
    if greeting is None or "ready" not in greeting:
        cause = f"not ready in {START_LIMIT_SECONDS:.0f} s" if timed_out else (greeting or {}).get("error", "it ended at once")
        raise CheckerError(f"cannot start the answer checker: {cause}; try `{' '.join(WORKER_COMMAND)}` to see why")


def _read_line(process: "subprocess.Popen[str]", timeout: float) -> tuple[dict[str, Any] | None, bool]:
    """The next message and False; None and whether the time was up if there is none (the process is then dead)."""
    assert process.stdout is not None
    time_up = threading.Event()

    def kill() -> None:
        time_up.set()
        process.kill()

    # Killing it ends the blocking read below: this works in any thread and on any system, unlike signals and select.
    timer = threading.Timer(timeout, kill)
    timer.daemon = True
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    timer.join()
    # The kill may have come just after the line: then the process is gone all the same.
    return (None, True) if time_up.is_set() else (json.loads(line) if line.endswith("\n") else None, False)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                pipe.close()
