"""What a GRPO step is measured on: a model, and one step's prompts and graded completions."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.steering.models import Model, load_model
from steerlift.training.batch import StepBatch

TEMPERATURE = 0.9
# Token ids below this exist in every model here and are no padding or end token.
_EMBEDDED_IDS = 400


@dataclass(frozen=True)
class Sizes:
    """A step's shape. Lengths are drawn evenly from the given ranges; `vocabulary` None is the embedded model itself."""

    name: str = "embedded model"
    vocabulary: int | None = None
    problems: int = 16
    group: int = 8
    prompt_tokens: tuple[int, int] = (12, 24)
    completion_tokens: tuple[int, int] = (6, 30)
    signal_share: float = 1.0
    seed: int = 0
    repetitions: int = 5


@dataclass(frozen=True)
class Step:
    """One sampled step: a prompt and the graded completions of each problem."""

    prompts: list[tuple[int, ...]]
    graded: list[GradedProblem]
    sizes: Sizes

    @property
    def longest(self) -> int:
        """The limit of completion tokens, Dr. GRPO's constant denominator."""
        return self.sizes.completion_tokens[1]

    def batch(self) -> StepBatch:
        """Advantages and token weights, as the trainer builds them."""
        return StepBatch.build(self.prompts, self.graded, "dr_grpo", self.longest, scale_rewards=False, keep_all=False)


def build_model(sizes: Sizes, folder: Path) -> Model:
    """The embedded model, or a random Llama with the asked vocabulary: a third of SmolLM2-135M's width, four layers."""
    torch.manual_seed(sizes.seed)
    if sizes.vocabulary is None:
        return load_model(str(folder), torch.device("cpu"), torch.float32)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=512,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def sampled_step(sizes: Sizes) -> Step:
    """Random prompts and completions; in a group with signal half of the answers are right, in the others all are."""
    rng = random.Random(sizes.seed)

    def ids(lengths: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.randrange(3, sizes.vocabulary or _EMBEDDED_IDS) for _ in range(rng.randint(*lengths)))

    graded = []
    for index in range(sizes.problems):
        signal = index < sizes.signal_share * sizes.problems
        right = [place < sizes.group // 2 or not signal for place in range(sizes.group)]
        rng.shuffle(right)
        graded.append(
            GradedProblem(
                Problem(problem=f"problem {index}", answer="1"),
                prompt="",
                completions=tuple(Completion(ids(sizes.completion_tokens), (), "", truncated=False) for _ in right),
                grades=tuple(Grade("1", format_ok=True, correct=correct, lenient_correct=correct) for correct in right),
            )
        )
    return Step([ids(sizes.prompt_tokens) for _ in graded], graded, sizes)
