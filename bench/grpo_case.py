"""What a GRPO step is measured on: a model, its tokenizer, and one step's prompts and graded completions."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.scoring.rewards import math_reward
from steerlift.steering.models import Model, Tokenizer, load_config, load_model, load_tokenizer, text_config
from steerlift.training.batch import StepBatch

TEMPERATURE = 0.9
# Token ids below this exist in every model here and are no padding or end token.
_EMBEDDED_IDS = 400
_NEVER = "<|never|>"


@dataclass(frozen=True)
class Sizes:
    """A step's shape. Lengths are drawn evenly from the given ranges.

    `vocabulary` None is the embedded model itself, a number a random model of that vocabulary, or, with `saved`, the model
    in that folder, which has it.
    """

    name: str = "embedded model"
    vocabulary: int | None = None
    saved: str | None = None
    problems: int = 16
    group: int = 8
    prompt_tokens: tuple[int, int] = (12, 24)
    completion_tokens: tuple[int, int] = (6, 30)
    signal_share: float = 1.0
    seed: int = 0
    repetitions: int = 5


# Ours computes a prompt once for its group: it should be as long as a system prompt and a short question are.
LONG_PROMPTS = Sizes(
    name="vocabulary 49,152",
    vocabulary=49_152,
    problems=2,
    prompt_tokens=(91, 95),
    completion_tokens=(25, 60),
    repetitions=3,
)
SHORT_PROMPTS = replace(
    LONG_PROMPTS, name="vocabulary 49,152, short prompts", prompt_tokens=(16, 32), completion_tokens=(8, 64)
)


def smollm2(folder: Path) -> Sizes:
    """The same step of SmolLM2-135M-Instruct, as recipes/smollm2.py saves it in `folder`."""
    saved = str(folder.resolve())
    return replace(LONG_PROMPTS, name="SmolLM2-135M-Instruct", saved=saved, vocabulary=load_config(saved).vocab_size)


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
        rewards_PG = torch.tensor([math_reward(g) for g in self.graded])
        return StepBatch.build(self.prompts, self.graded, rewards_PG, "dr_grpo", self.longest)


def build_model(sizes: Sizes, folder: Path) -> Model:
    """The embedded model in `folder`, a saved one, or a random Llama: a third of SmolLM2-135M's width, four layers."""
    torch.manual_seed(sizes.seed)
    if sizes.vocabulary is None or sizes.saved:
        return load_model(sizes.saved or str(folder), torch.device("cpu"), torch.float32)
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


def build_tokenizer(sizes: Sizes, folder: Path, model: Model) -> Tokenizer:
    """The model's tokenizer, changed so that both sides generate completions of one length: the limit.

    Both are told, the model's generation config included, that completions end with a token that is not in the vocabulary.
    """
    if sizes.vocabulary is None or sizes.saved:
        tokenizer = load_tokenizer(sizes.saved or str(folder))
    else:
        words = {str(number): number for number in range(sizes.vocabulary)}
        backend = BackendTokenizer(models.WordLevel(words, unk_token="0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", padding_side="left")
    tokenizer.add_special_tokens({"eos_token": _NEVER})
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return tokenizer


def described(model: Model) -> str:
    """What a reader should know of a model, in words."""
    config = text_config(model)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, vocabulary {config.vocab_size:,}, "
        f"{parameters:.1f} million parameters"
    )


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
