"""The model that the KL of GRPO is taken to: the one that GRPO started from."""

from collections.abc import Sequence
from dataclasses import replace

from steerlift.steering.models import Model
from steerlift.training.batch import MicroBatch
from steerlift.training.learner import Learner
from steerlift.training.policy_loss import batch_logprobs


class Reference:
    """Its log probabilities of a step's tokens, computed once per batch.

    With adapters and no warm-up it is the trained model with its adapters switched off, which costs no memory; otherwise
    `model` is a second, frozen model.
    """

    def __init__(self, learner: Learner, model: Model | None = None) -> None:
        self.learner = learner
        self.model = None if model is None else model.requires_grad_(False).eval()

    def with_logprobs(self, batches: Sequence[MicroBatch], temperature: float) -> list[MicroBatch]:
        """The micro-batches with `reference_logprobs_N` filled in."""

        def fill(trained: Model) -> list[MicroBatch]:
            if self.model is not None:
                return self._filled(self.model, batches, temperature)
            trained.eval()
            with trained.disable_adapter():
                return self._filled(trained, batches, temperature)

        return self.learner.run(fill)

    @staticmethod
    def _filled(model: Model, batches: Sequence[MicroBatch], temperature: float) -> list[MicroBatch]:
        return [replace(batch, reference_logprobs_N=batch_logprobs(model, batch, temperature)) for batch in batches]
