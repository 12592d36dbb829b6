"""Worker processes for comparing answers: started when first needed, reused, killed when stuck, replaced.

Nothing is forked from a process that may hold torch's threads: workers are fresh interpreters (`subprocess`, JSON lines
over pipes). The pool may be used from any number of threads at once.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from steerlift.records.errors import SteerliftError

START_LIMIT_SECONDS = 60.0
START_ATTEMPTS = 3
# The worker keeps the limit itself; this much later it is stuck, and killed.
STUCK_SECONDS = 0.5
WORKER_COMMAND = (sys.executable, "-m", "steerlift.scoring.worker")


class CheckerError(SteerliftError, RuntimeError):
    """The process that checks answers does not start, so that nothing can be graded."""


class WorkerLostError(Exception):
    """The process ended over this pair: the pair is not decided, the next one gets a new process."""


class Worker:
    """One process and its replacements. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, predicted: str, timeout: float) -> bool:
        """math-verify's verdict; False when it takes longer than `timeout` seconds. Starting up is not counted.

        Raises WorkerLostError when the process ends by itself, CheckerError when it cannot be started.
        """
        request = json.dumps({"gold": gold, "predicted": predicted, "timeout": timeout})
        try:
            try:
                reply, timed_out = self._exchange(request, timeout + STUCK_SECONDS)
            except BrokenPipeError:  # it ended while it was idle; that says nothing about this pair
                self.close()
                reply, timed_out = self._exchange(request, timeout + STUCK_SECONDS)
        except BaseException:
            # Interrupted with a reply on the way: the next question must not read it.
            self.close()
            raise
        if reply is None:
            self.close()
            reply = {"equal": False, "lost": not timed_out}
        if reply["lost"]:
            raise WorkerLostError
        return bool(reply["equal"])

    def close(self) -> None:
        """Kills the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _exchange(self, request: str, timeout: float) -> tuple[dict[str, Any] | None, bool]:
        if self._process is None:
            self._process = _start()
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return _read_line(self._process, timeout)


class WorkerPool:
    """At most `size` workers, one pair at a time each; by default two, or one on a single core."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size if size is not None else min(2, os.cpu_count() or 1)
        self.process_id = os.getpid()
        workers = [Worker() for _ in range(self.size)]
        # Last in, first out: a single thread keeps asking the one worker that already runs.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in workers:
            self._idle.put(worker)
        # Runs when the pool is collected and when the interpreter exits, whichever comes first.
        self.close = weakref.finalize(self, _close_all, workers, self.process_id)

    def ask(self, gold: str, predicted: str, timeout: float) -> bool:
        """As `Worker.ask`, with the next idle worker; waiting for one is not counted."""
        worker = self._idle.get()
        try:
            return worker.ask(gold, predicted, timeout)
        finally:
            self._idle.put(worker)


def _close_all(workers: list[Worker], process_id: int) -> None:
    if os.getpid() == process_id:  # a forked child must not kill its parent's
        for worker in workers:
            worker.close()


def _start() -> "subprocess.Popen[str]":
    """A worker that has said that it is ready. One that was killed while it started is started again."""
    cause = ""
    for _ in range(START_ATTEMPTS):
        process = _spawn()
        try:
            greeting, timed_out = _read_line(process, START_LIMIT_SECONDS)
        except BaseException:
            _end(process)
            raise
        if greeting is not None and "ready" in greeting:
            return process
        _end(process)
        cause = f"not ready in {START_LIMIT_SECONDS:.0f} s" if timed_out else "it ended while starting"
        if greeting is not None:
            cause = str(greeting.get("error", greeting))
            break
    raise CheckerError(f"cannot start the answer checker: {cause}; try `{' '.join(WORKER_COMMAND)}` to see why")


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
        start_new_session=True,  # Ctrl-C in the terminal goes to the whole group; and we kill by the group
    )


def _read_line(process: "subprocess.Popen[str]", timeout: float) -> tuple[dict[str, Any] | None, bool]:
    """The next message and False; None and whether the time was up if there is none (the process is then dead)."""
    assert process.stdout is not None
    time_up = threading.Event()

    def kill() -> None:
        time_up.set()
        _kill(process)

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


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kills the worker with the child that it may have forked, even if the worker itself has ended."""
    if not hasattr(os, "killpg"):
        process.kill()
    elif process.returncode is None:  # not collected yet, so that its number cannot have gone to another process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[str]") -> None:
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                pipe.close()
