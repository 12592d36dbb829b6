"""The processes that train together: one, or those that `accelerate launch` has started.

Each samples and grades its share of a step's problems, whole groups only, then all hand round what they have, so that every
process knows the whole step. Gradients are averaged by DDP or FSDP2, whichever the accelerate configuration asks for.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import Tensor

from steerlift.records.errors import InputError
from steerlift.steering.precision import Precision

T = TypeVar("T")

# What transformers goes by; set by `accelerate launch`.
_READ_ONCE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
_SETTLE_SECONDS = 0.2


def process_count() -> int:
    """How many processes were started to train together, known before they have met."""
    return int(os.environ.get("WORLD_SIZE", 1))


class Processes:
    """This process among `count`; `main` is the one that writes."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if process_count() > 1 and device.index is not None:
            raise InputError(f"--device {device} names one device for several processes; leave the number out")
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,
            # FSDP2 casts the shards itself; everywhere else our own autocast covers training and sampling alike.
            mixed_precision="bf16" if sharded and precision.autocast else "no",
        )
        if sharded and device.type == "cpu":
            # accelerate would take DDP without a word.
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.main = self.accelerator.is_main_process
        self.sharded = bool(self.accelerator.is_fsdp2)
        self.device = device if self.count == 1 else self.accelerator.device

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items: neighbours, as many as everybody else has, give or take one."""
        return list(items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count])

    def gather(self, items: list[T]) -> list[T]:
        """Everybody's items in the order of the processes: the inverse of `share`."""
        return list(gather_object(items))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def wait(self) -> None:
        """Returns once every process has come here."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def reading_weights(self) -> Iterator[None]:
        """Inside it every process reads a model's weights. Elsewhere under FSDP2 only the first does, and `prepare` hands those
        of the trained model round; a model that is not prepared would be zeros on all others."""
        before = os.environ.get(_READ_ONCE)
        if before is not None:
            os.environ[_READ_ONCE] = "false"
        try:
            yield
        finally:
            if before is not None:
                os.environ[_READ_ONCE] = before

    def end(self) -> None:
        """Lets the other processes go; called when the work is done."""
        if self.count > 1:
            # gloo's thread needs Python's lock to let go of the last message, and the group's end waits for that thread with
            # the lock held: without this pause one run in sixty never ended.
            time.sleep(_SETTLE_SECONDS)
        self.accelerator.end_training()

    def __str__(self) -> str:
        kind = ", FSDP2" if self.sharded else ""
        return f"{self.device}" if self.count == 1 else f"{self.count} processes on {self.device.type}{kind}"
