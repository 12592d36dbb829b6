"""Several processes without a GPU.

`accelerate launch --num_processes 2 main.py` starts one process for each GPU; where there is none it starts a single one and
says nothing. Training would then silently use one process instead of two, so the rest is started here.
"""

import os
import sys

from steerlift.records.progress import say


def start_asked_processes() -> None:
    """Becomes as many processes as `accelerate launch` was asked for, where it has started one; otherwise returns."""
    count = _asked_processes()
    if count < 2 or "WORLD_SIZE" in os.environ:
        return
    say(f"accelerate started one process where there is no GPU: starting {count} with torchrun")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *sys.argv]
    os.execv(sys.executable, [sys.executable, *command])


def _asked_processes() -> int:
    """The --num_processes of the `accelerate launch` that started this process; 1 if none did."""
    # Only its launcher sets these two; how many it was asked for stands in its own command line alone.
    if not ("ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ):
        return 1
    import psutil

    arguments = psutil.Process(os.getppid()).cmdline()
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
            return int(value) if value.isdigit() else 1
    return 1
