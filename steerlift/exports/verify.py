"""Whether a baked checkpoint is the steered model: their logits on real prompts and answers, one model in memory at a time.

Shape letters: T tokens of the answer, V vocabulary.
"""

import gc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steerlift.problems.prompt import encode_prompt
from steerlift.records.errors import InputError
from steerlift.steering.apply import steer
from steerlift.steering.models import Model, load_model, load_tokenizer
from steerlift.steering.vectors import SteeringVectors

QUESTIONS = (
    "Compute 12 + 30.",
    "Tom has 3 boxes with 4 pens each and gives 5 pens away. How many pens does he keep?",
    "Solve 3x + 5 = 20 for x.",
)
ANSWER_TOKENS = 24
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest difference of two logits over the largest logit, by what the biases were rounded to."""


@dataclass(frozen=True)
class Agreement:
    """One prompt: the largest change that steering makes to its answer's logits, and the largest that baking does."""

    question: str
    moved: float
    difference: float
    same_tokens: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.question}  steering moves logits by up to {self.moved:.2f}, baked is off by up to {self.difference:.2g}; "
            f"greedy tokens equal: {self.same_tokens} of {self.tokens}"
        )


def compare(
    name: str, folder: Path, vectors: SteeringVectors, weight: float, dtype: torch.dtype, device: torch.device
) -> list[Agreement]:
    """The model `name` under `steer`, and the checkpoint in `folder`, on the same tokens: prompts and the steered answers.

    Weights are read as `dtype` and computed with in float32: the rounding of bfloat16 sums alone moves logits as far as weak
    steering does. Raises InputError where the tokenizers or the logits differ by more than rounding.
    """
    prompts = _prompts(name)
    if _prompts(str(folder)) != prompts:
        raise InputError(f"model {name}: its tokenizer reads the prompts otherwise beside a Llama model; it cannot be baked")
    base = load_model(name, device, dtype).float()
    with steer(base, vectors, weight):
        answered = [_answer(base, prompt) for prompt in prompts]
    starts = [len(prompt) for prompt in prompts]
    plain, steered = (_logits(base, answered, starts, context) for context in (nullcontext(), steer(base, vectors, weight)))
    del base
    gc.collect()
    baked = _logits(load_model(str(folder), device, dtype).float(), answered, starts, nullcontext())
    agreements = []
    for question, plain_TV, steered_TV, baked_TV in zip(QUESTIONS, plain, steered, baked, strict=True):
        difference = float((baked_TV - steered_TV).abs().max())
        allowed = TOLERANCE[dtype] * float(steered_TV.abs().max())
        if not difference <= allowed:
            raise InputError(
                f"model {name}: the baked logits are off by {difference:.3g}, expected at most {allowed:.3g}; "
                "bake with --dtype float32, or report this"
            )
        same = int((baked_TV.argmax(-1) == steered_TV.argmax(-1)).sum())
        moved = float((steered_TV - plain_TV).abs().max())
        agreements.append(Agreement(question, moved, difference, same, len(steered_TV)))
    return agreements


def _prompts(name: str) -> list[list[int]]:
    tokenizer = load_tokenizer(name)
    return [encode_prompt(tokenizer, question) for question in QUESTIONS]


@torch.no_grad()
def _answer(model: Model, prompt: list[int]) -> list[int]:
    """The prompt and its greedy answer, end tokens or not."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=None,
    )
    answered: list[int] = output[0].tolist()
    return answered


@torch.no_grad()
def _logits(model: Model, rows: list[list[int]], starts: list[int], context: AbstractContextManager[object]) -> list[Tensor]:
    """Per row the float32 logits that choose each token of its answer, shape (T, V)."""
    with context:
        return [
            model(torch.tensor([row], device=model.device)).logits[0, start - 1 : -1].float().cpu()
            for row, start in zip(rows, starts, strict=True)
        ]
