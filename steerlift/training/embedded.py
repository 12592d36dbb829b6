"""The embedded base model: a half-million-parameter Qwen2 trained from nothing on two cores, so that everything runs anywhere.

It first learns to work problems out, then a noisy habit of skipping the work: a skill hidden under noise on purpose, which
reinforcement learning can bring out again, as it does in real pre-trained models.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BackendTokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from steerlift.problems.embedded import LARGEST, SKIPPED, embedded_problems, sample_solution
from steerlift.problems.prompt import encode_prompt
from steerlift.records.progress import Progress, progress, say
from steerlift.records.types import Problem
from steerlift.steering.models import Model, Tokenizer
from steerlift.training.checkpoints import save_checkpoint
from steerlift.training.supervised import Example, SupervisedOptions, supervised

_USER, _ASSISTANT, _END = "<|user|>", "<|assistant|>", "<|end|>"
# transformers gives every Qwen2 tokenizer this token; under another name padding would leave it outside the vocabulary.
_PAD = "<|endoftext|>"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# The system prompt is left out on purpose: half a million parameters have no use for an instruction of a hundred tokens.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}" + _USER + "{{ message.content }}"
    "{% elif message.role == 'assistant' %}" + _ASSISTANT + "{{ message.content }}" + _END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + _ASSISTANT + "{% endif %}"
)


@dataclass(frozen=True)
class EmbeddedRecipe:
    """Everything that the embedded base model depends on; its hash names the cached model."""

    seed: int = 0
    steps: int = 1200
    batch: int = 32
    learning_rate: float = 2e-3
    clean_share: float = 0.75
    # Products and quotients are the hardest to learn.
    subject_weights: Mapping[str, float] = field(default_factory=lambda: {"Counting & Probability": 2.0, "Algebra": 2.0})
    noisy_mix: Mapping[str, float] = field(
        default_factory=lambda: {"good": 0.28, "careless": 0.04, "skipped": 0.63, "untagged": 0.05}
    )
    hidden_size: int = 128
    layers: int = 3
    vocabulary: int = 500
    version: int = 2

    def digest(self) -> str:
        """Changes whenever a recipe would give another model."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def embedded_base(recipe: EmbeddedRecipe, fresh: bool = False) -> Path:
    """The folder of the trained base model: from the cache, or trained now (`fresh` trains it anyway)."""
    folder = _cache_folder() / f"embedded-{recipe.digest()}"
    if (folder / "config.json").is_file() and not fresh:
        say(f"embedded base model: taken from {folder} (--fresh trains it anew)")
        return folder
    tokenizer = embedded_tokenizer(recipe)
    model = embedded_model(recipe, tokenizer)
    with progress("pre-training the base", recipe.steps) as bar:
        pretrain(model, tokenizer, recipe, bar)
    return save_checkpoint(folder, model, tokenizer)


def embedded_tokenizer(recipe: EmbeddedRecipe) -> Tokenizer:
    """Byte-level BPE of about `vocabulary` entries; every integer up to 99 and every tag is one token."""
    whole = [*_TAGS, *map(str, range(LARGEST + 1))]
    special = [_PAD, _END, _USER, _ASSISTANT]
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - len(whole),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    # Not special: they are text that a completion consists of, and decoding must keep them.
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_END,
        pad_token=_PAD,
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterable[str]:
    # Numbers and tags are tokens of their own; what is left to learn are the words.
    words = ("".join(c for c in problem.problem if not c.isdigit()) for problem in embedded_problems("train"))
    return (f"{text}\n{SKIPPED}" for text in words)


def embedded_model(recipe: EmbeddedRecipe, tokenizer: Tokenizer) -> Model:
    """A random Qwen2 of the recipe's size."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=2 * recipe.hidden_size,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def pretrain(model: Model, tokenizer: Tokenizer, recipe: EmbeddedRecipe, bar: Progress) -> None:
    """Worked solutions first, then the noisy mix, in place."""
    problems = embedded_problems("train")
    prompts = {problem: encode_prompt(tokenizer, problem.problem) for problem in problems}
    weights = [recipe.subject_weights.get(problem.subject, 1.0) for problem in problems]
    rng = random.Random(recipe.seed)

    def encode(problem: Problem, mix: Mapping[str, float]) -> Example:
        solution = sample_solution(problem, rng, mix)
        return prompts[problem], [*tokenizer.encode(solution, add_special_tokens=False), tokenizer.eos_token_id]

    def examples(step: int) -> list[Example]:
        mix = {"good": 1.0} if step < recipe.clean_share * recipe.steps else recipe.noisy_mix
        return [encode(problem, mix) for problem in rng.choices(problems, weights, k=recipe.batch)]

    supervised(model, examples, SupervisedOptions(recipe.steps, recipe.learning_rate), bar)


def _cache_folder() -> Path:
    root = os.environ.get("STEERLIFT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "steerlift"
    return Path(root).expanduser()
