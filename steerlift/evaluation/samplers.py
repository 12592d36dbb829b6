"""Where the arms of an evaluation are sampled: here, one model at a time, or (`served_models`) on vLLM servers."""

from collections.abc import Callable
from typing import Protocol

from steerlift.evaluation.config import EvaluateConfig
from steerlift.records.progress import say
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Sampler
from steerlift.steering.models import Model, Tokenizer, choose_device, choose_dtype, load_model, load_tokenizer
from steerlift.steering.vectors import SteeringVectors

MakeSampler = Callable[[], tuple[Sampler, Tokenizer]]
"""Called only when there is something to sample, so that a finished stage loads no model."""


class Samplers(Protocol):
    """Makes samplers of the models that an evaluation compares."""

    def sampler(self, name: str, vectors: SteeringVectors | None = None) -> MakeSampler:
        """What makes a sampler of the model `name`, steered by `vectors` at each task's weight."""

    def release(self) -> None:
        """Called when all is sampled."""


class LocalModels:
    """Holds one model at a time: asking for another releases the one before."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.loaded: tuple[str, Model, Tokenizer] | None = None

    def sampler(self, name: str, vectors: SteeringVectors | None = None) -> MakeSampler:
        """What makes a sampler of the model `name`, steered by `vectors` at each task's weight."""

        def make() -> tuple[Sampler, Tokenizer]:
            model, tokenizer = self._load(name)
            return LocalSampler(model, tokenizer, vectors, self.config.batch_rows), tokenizer

        return make

    def release(self) -> None:
        """Lets the model go."""
        self.loaded = None

    def _load(self, name: str) -> tuple[Model, Tokenizer]:
        if self.loaded is None or self.loaded[0] != name:
            self.release()
            device = choose_device(self.config.device)
            dtype = choose_dtype(self.config.dtype, device)
            say(f"loading {name} ({str(dtype).removeprefix('torch.')}, {device})")
            self.loaded = (name, load_model(name, device, dtype), load_tokenizer(name))
        return self.loaded[1:]
