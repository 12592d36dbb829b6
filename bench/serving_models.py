"""What the benchmark of the server serves: saved models whose completions never end, with random steering vectors.

Shapes: L layers, H hidden size.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.grpo_case import Sizes, build_model, build_tokenizer
from bench.setting import Setting
from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.steering.models import Model, Tokenizer, decoder_layers, text_config
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.checkpoints import save_checkpoint

RANDOM = Sizes(name="random Llama", vocabulary=16_384)
PROMPT_TOKENS = (8, 24)
# Share of the residual stream's own norm, as in the sweep.
_VECTOR_NORM = 0.1


@dataclass(frozen=True)
class Served:
    """A model here, and the folder that a server loads it from."""

    name: str
    model: Model
    tokenizer: Tokenizer
    vectors: SteeringVectors
    folder: Path

    @property
    def vectors_file(self) -> Path:
        """Where the vectors stand; in the folder itself vLLM would take them for weights."""
        return self.folder.with_name(f"{self.folder.name} vectors.safetensors")

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def prompts(self, count: int, seed: int) -> list[tuple[int, ...]]:
        """Prompts of random tokens."""
        return _prompts(self.model, count, seed)


def build(case: Sizes, setting: Setting, folder: Path) -> Served:
    """The case's model and its vectors, saved in `folder`."""
    model = build_model(case, setting.folder)
    if case is RANDOM:
        # As it is initialized it only says its last token again, whatever the steering.
        with torch.no_grad():
            for layer in decoder_layers(model).values():
                for parameter in layer.parameters():
                    parameter.mul_(3 if parameter.dim() == 2 else 1)
    tokenizer = build_tokenizer(case, setting.folder, model)
    save_checkpoint(folder, model, tokenizer)
    served = Served(case.name, model, tokenizer, _random_vectors(model, setting.seed), folder)
    served.vectors.save(served.vectors_file)
    return served


def _prompts(model: Model, count: int, seed: int) -> list[tuple[int, ...]]:
    rng, vocabulary = random.Random(seed), text_config(model).vocab_size
    lengths = [rng.randint(*PROMPT_TOKENS) for _ in range(count)]
    return [tuple(rng.randrange(3, vocabulary) for _ in range(length)) for length in lengths]


def _random_vectors(model: Model, seed: int) -> SteeringVectors:
    torch.manual_seed(seed)
    # Without the first position, whose state is far larger than all others in pre-trained models.
    sequences = [TokenSequence(prompt, start=1) for prompt in _prompts(model, 16, seed)]
    means = mean_activations(model, sequences, "completion")
    directions_LH = torch.nn.functional.normalize(torch.randn(means.state_LH.shape), dim=-1)
    vectors_LH: Tensor = _VECTOR_NORM * means.norm_L[:, None] * directions_LH
    return SteeringVectors(dict(enumerate(vectors_LH)))
