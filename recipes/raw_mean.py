"""The raw mean that increments were taken from: at each layer, the sum of the increments up to it.

    python recipes/raw_mean.py results/qwen-gsm8k-0_float32/increments.safetensors runs/completion-mean.safetensors

So what was kept of a run as increments can be evaluated as a raw mean without its fine-tuned model.
"""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from as_command import as_command

from steerlift.records.errors import InputError
from steerlift.steering.vectors import SteeringVectors


def raw_mean(increments: SteeringVectors) -> SteeringVectors:
    """Raises InputError for vectors that are no increments of every layer."""
    if increments.metadata.get("method") != "increments" or list(increments.layers) != list(range(len(increments.layers))):
        raise InputError("expected increments of every layer, as `steerlift extract --method increments` writes them")
    sums = accumulate(vector.double() for vector in increments.layers.values())
    layers = {index: total.float() for index, total in zip(increments.layers, sums, strict=True)}
    return replace(increments, layers=layers, metadata={**increments.metadata, "method": "mean_difference"})


def main(increments: Path, output: Path) -> None:
    """Writes the raw mean of a file of increments."""
    print(f"wrote {raw_mean(SteeringVectors.load(increments)).save(output)}")


if __name__ == "__main__":
    as_command(main)
