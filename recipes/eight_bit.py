"""Saves a model with its weights rounded to 8 bits, as GGUF's Q8_0 rounds them: does a vector survive what a server may store?

    python recipes/eight_bit.py MODEL FOLDER

Every matrix is cut into runs of 32 numbers that share one float16 scale. The rounded numbers are saved in the model's own
dtype, so that everything loads the folder as it loads the original.
"""

import torch
from as_command import as_command
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlift.steering.pretrained import checked_name, from_pretrained

BLOCK = 32


def rounded(weight: Tensor) -> Tensor:
    """The nearest numbers that 8 bits and a scale per block hold; shape and dtype stay."""
    blocks = weight.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scales > 0, blocks / scales, 0.0).round()
    return (steps * scales.half().float()).reshape(weight.shape).to(weight.dtype)


def main(source: str, target: str) -> None:
    """Rounds every matrix whose size allows it and saves the model."""
    model = from_pretrained(AutoModelForCausalLM, checked_name(source), dtype="auto")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.numel() % BLOCK == 0:
                parameter.copy_(rounded(parameter))
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    as_command(main)
