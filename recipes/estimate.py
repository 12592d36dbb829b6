"""Estimates what a run on a GPU needs, from the tokens per second that a run of the recipes reached on this machine.

    OMP_NUM_THREADS=1 python recipes/estimate.py results/smollm2-sums-0 --flops 4e14 --parameters 7.6e9

A token costs 2 x parameters floating-point operations to sample and 6 x to train (Kaplan et al. 2020, section 2.1). What share
of this machine's matrix products the run reached is taken to be reached on the GPU too, of `--flops` (give what a large
bfloat16 product reaches there, not the data sheet's peak); sampling is taken to reach half of that share there, as it waits
for memory. An estimate, not a measurement.
"""

import argparse
import json
import time
from pathlib import Path

import torch

# What a run with --dtype bfloat16 multiplies and saves in; all others, as far as recipes have them, in float32.
FORMATS = {"bfloat16": torch.bfloat16}


def matmul_flops(dtype: torch.dtype, size: int = 1024, turns: int = 20) -> float:
    """Floating-point operations per second of a matrix product with the threads in use, in the best turn."""
    left, right = torch.randn(2, size, size).to(dtype)
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def main() -> None:
    """Prints the estimate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--flops", type=float, required=True)
    parser.add_argument("--here", type=float, help="this machine's operations per second; measured now if left out")
    parser.add_argument("--parameters", type=float, default=7.6e9)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--completions", type=int, default=64, help="of a step")
    parser.add_argument("--tokens", type=int, default=300, help="of a completion")
    options = parser.parse_args()
    path = options.results / "summary.json"
    if not path.exists():
        parser.error(f"expected a folder of results/, which has a summary.json; got {options.results}")
    summary = json.loads(path.read_text(encoding="utf-8"))
    dtype = FORMATS.get(summary["settings"]["grpo"]["dtype"], torch.float32)
    speed, measured_parameters = summary["speed"], summary["bytes"]["checkpoint"] / dtype.itemsize
    here = options.here or matmul_flops(dtype)
    sampling = speed["sampled_tokens_per_second"] * 2 * measured_parameters / here
    training = speed["trained_tokens_per_second"] * 6 * measured_parameters / here
    sampled = 0.5 * sampling * options.flops / (2 * options.parameters)
    trained = training * options.flops / (6 * options.parameters)
    tokens = options.steps * options.completions * options.tokens
    hours = tokens * (1 / sampled + 1 / trained) / 3600
    evaluated = 200 * 4 * 12 * options.tokens / sampled / 3600
    weights = 2 * options.parameters / 1e9
    print(f"here: {here / 1e9:.0f} GFLOP/s; sampling reached {100 * sampling:.0f} % of it, training {100 * training:.0f} %")
    print(f"there: {sampled:,.0f} tokens/s sampled, {trained:,.0f} tokens/s trained")
    print(f"GRPO, {options.steps} steps of {options.completions} x {options.tokens} tokens: {hours:.1f} h")
    print(f"evaluation, 12 arms of 200 problems x 4: {evaluated:.1f} h")
    print(f"memory, with gradients and AdamW's two moments, before activations: {4 * weights:.0f} GB (--dtype bfloat16),")
    print(f"  {8 * weights:.0f} GB (--dtype mixed); --lora_r 16 or learned vectors: {weights:.0f} GB and little more")


if __name__ == "__main__":
    main()
