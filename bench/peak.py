"""The fresh process of a memory measurement: `python -m bench.peak JSON` prepares, does the work once, prints MiB."""

import gc
import json
import sys
from pathlib import Path

import torch

from bench import extraction, grpo_step, learning
from bench.measure import highest_memory

_PREPARE = {
    "grpo loss": grpo_step.memory_of_loss,
    "grpo steps": grpo_step.memory_of_steps,
    "learning": learning.memory_of_steps,
    "extraction": extraction.memory_way,
}


def main() -> None:
    """Takes the arguments that `bench.measure.peak_memory` sends."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    way = _PREPARE[case["benchmark"]](case["way"], case["sizes"], Path(case["folder"]))
    gc.collect()
    before = highest_memory()
    way()
    print(highest_memory() - before)


if __name__ == "__main__":
    main()
