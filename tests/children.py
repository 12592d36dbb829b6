"""Child processes that have everything imported already: forked, so that they start in milliseconds."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState


def start(work: Callable[[], object], said: Path) -> int:
    """Runs `work` in a child whose stderr goes to the file `said`; its exit code is what `work` returns, 0 for None."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with said.open("a") as sink:
            os.dup2(sink.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        torch.set_num_threads(1)  # the threads of the parent's OpenMP are not there any more
        code = int(work() or 0)  # type: ignore[call-overload]
    except BaseException:  # noqa: BLE001 - whatever it was, the parent goes on in the parent only
        traceback.print_exc(file=sys.stderr)
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def start_two(work: Callable[[], object], said: Sequence[Path]) -> list[int]:
    """The same for two children that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

    def join(rank: int) -> object:
        os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, which is alone
        return work()

    return [start(partial(join, rank), path) for rank, path in enumerate(said)]


def has_ended(child: int) -> int | None:
    """The exit code, negative for a signal; None while it runs. To be asked until it has ended, and not again."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def kill(child: int) -> bool:
    """Kills it where it stands. False where it had ended by itself."""
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def wait(child: int) -> int:
    """The exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
