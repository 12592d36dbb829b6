"""Memory of a run: the most it took, and a line of ours where it is not enough."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from steerlift.records.errors import OutOfMemoryError
from steerlift.sampling.room import give_back_freed_memory

# What is left to everyone else on the machine when a step has taken all that it may.
_LEFT = 1 / 20
# Free memory is scarce when less than this share of the machine's is.
_SCARCE = 1 / 2


@contextmanager
def naming_memory(doing: str, option: str) -> Iterator[None]:
    """Turns running out of memory into one line that says what to lower."""
    try:
        with _refused_before_killed():
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(doing, option) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise _out_of_memory(doing, option) from error


@contextmanager
def _refused_before_killed() -> Iterator[None]:
    """Within it the process may take the memory that is free now and no more.

    Linux grants more than there is and kills who uses it, without a word; what goes past this limit is refused instead. Only
    Linux counts all of a process's own memory as its data, also what it has given back: that part it may take again unasked,
    so it is counted as taken.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if psutil.virtual_memory().available < _SCARCE * psutil.virtual_memory().total:
        give_back_freed_memory()  # holes that the phase before has left would be taken a second time
    memory = psutil.Process().memory_info()
    given_back = memory.data - (memory.rss - memory.shared)
    limit = memory.data + max(0, int((1 - _LEFT) * psutil.virtual_memory().available) - given_back)
    limits = [limit, *(known for known in (soft, hard) if known != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _out_of_memory(doing: str, option: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{doing}: out of memory; lower {option} or --max_completion_length, or pass --gradient_checkpointing;"
        " --resume goes on from the last checkpoint"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that torch has held, elsewhere the largest resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
