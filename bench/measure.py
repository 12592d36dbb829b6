"""Measures ways of doing the same work: time in turns (A B A B), peak memory in a fresh process each."""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent

# glibc keeps freed memory by rules that learn as it runs: the same work then peaks at 96 MiB or at 143. With these, blocks of
# 64 KiB and more go back at once, and the peak is that of the tensors alive.
_PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

OURS = "ours"

Way = Callable[[], float]
"""One way of doing the work: does all of it and returns how much that was (tokens, or 1.0 where only the time counts)."""

Name = TypeVar("Name", bound=Hashable)

QUIET = 0.2
"""Cores that other work may keep busy on a quiet machine."""

_LOOK_SECONDS = 1.0

SAME_SHARE = 0.99
"""Of greedy rows, how many must be the same."""


class DifferentResultsError(AssertionError):
    """Two ways that are timed against each other do not give the same result, so their times mean nothing."""


@dataclass(frozen=True)
class Times:
    """Wall and CPU seconds of each repetition, and the work done in it. CPU seconds are those of this process, all threads."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    work: tuple[float, ...]

    def per_second(self) -> tuple[float, ...]:
        """Work per wall second of each repetition."""
        return tuple(work / seconds for work, seconds in zip(self.work, self.wall, strict=True))

    def per_cpu_second(self) -> tuple[float, ...]:
        """Work per CPU second of each repetition."""
        return tuple(work / seconds for work, seconds in zip(self.work, self.cpu, strict=True))


def total(phases: Iterable[Times]) -> Times:
    """Work that was timed in phases, as a whole: the seconds of each repetition added up."""
    laps = list(phases)
    wall, cpu = (tuple(map(sum, zip(*part, strict=True))) for part in ([t.wall for t in laps], [t.cpu for t in laps]))
    return Times(wall, cpu, work=(1.0,) * len(wall))


def interleaved(ways: Mapping[Name, Way], repetitions: int, warm: bool = False) -> dict[Name, Times]:
    """Runs all ways in turns, so that a machine that slows down slows all of them; once before to warm up, unless `warm`."""
    for way in () if warm else ways.values():
        way()
    laps: dict[Name, list[tuple[float, float, float]]] = {name: [] for name in ways}
    # Set aside what the libraries have loaded: a collection then takes no time, and none that is due falls into one lap only.
    gc.collect()
    gc.freeze()
    for _ in range(repetitions):
        for name, way in ways.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            work = way()
            laps[name].append((time.perf_counter() - wall, time.process_time() - cpu, work))
    gc.unfreeze()
    return {name: Times(*zip(*rows, strict=True)) for name, rows in laps.items()}


def busy_cores() -> float:
    """How many cores are busy with other work: looks for a second, in which this process does nothing."""
    return float(psutil.cpu_percent(interval=_LOOK_SECONDS) / 100 * psutil.cpu_count())


def peak_memory(benchmark: str, way: str, sizes: Mapping[str, Any], folder: Path) -> float:
    """MiB by which doing the work once raises a fresh process's highest memory use over that of loading and preparing.

    `benchmark`, `way`, `sizes` and the model `folder` are handed to `bench.peak`.
    """
    arguments = json.dumps(
        {"benchmark": benchmark, "way": way, "sizes": sizes, "folder": str(folder), "threads": torch.get_num_threads()}
    )
    command = [sys.executable, "-m", "bench.peak", arguments]
    environment = {**os.environ, **_PLAIN_MALLOC}
    gc.collect()  # two models that are no longer needed may take the room that the fresh process asks for
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {benchmark}, {way} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def highest_memory() -> float:
    """The most memory this process has used, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands ru_maxrss on to child processes: a small child of a large parent would show the parent's peak.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def require_close(what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> float:
    """The largest difference as a share of the largest value of theirs. Raises DifferentResultsError above `tolerance`."""
    if ours.shape != theirs.shape:
        raise DifferentResultsError(f"{what}: ours has shape {tuple(ours.shape)}, the alternative's {tuple(theirs.shape)}")
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    if not difference <= tolerance:
        raise DifferentResultsError(
            f"{what}: ours differs from the alternative's by {difference:.1e}, expected {tolerance:.0e}"
        )
    return difference


def require_same_tokens(what: str, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], share: float) -> str:
    """How many rows are the same, in words. Raises DifferentResultsError below `share` of them, naming the first that differs.

    Where two tokens are equally likely up to rounding, either may be taken: ask for a little less than all of many rows.
    """
    different = [row for row, (our, their) in enumerate(zip(ours, theirs, strict=True)) if list(our) != list(their)]
    same = f"{len(ours) - len(different)} of {len(ours)}"
    if len(different) > (1 - share) * len(ours):
        row = different[0]
        raise DifferentResultsError(
            f"{what}: the same in {same} rows, expected {share:.0%}; row {row} is {list(ours[row])}, "
            f"the alternative's {list(theirs[row])}"
        )
    return same
