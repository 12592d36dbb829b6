"""How many threads to compute with, decided before torch is loaded.

Two busy torch threads that have to share one free core wait for each other: ten times slower than one thread alone, seen on
two cores. So the cores that others keep busy are left to them, and threads that wait give their core away.
"""

import os

from steerlift.records.progress import say

_LOOK_SECONDS = 0.3


def share_cores() -> None:
    """Sets OMP_NUM_THREADS to the cores that are free now, and passive waiting; what the user has set stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "OMP_NUM_THREADS" in os.environ:
        return
    import psutil

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    busy = psutil.cpu_percent(interval=_LOOK_SECONDS) / 100
    free = max(1, round(cores * (1 - busy)))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if free < cores or processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, free // processes))
    if free < cores:
        say(f"{cores - free} of {cores} cores are busy: computing with {free}; OMP_NUM_THREADS overrides this")
