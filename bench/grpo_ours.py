"""Our side of a GRPO step: LocalSampler, StepBatch and our_loss, called as our trainer calls them."""

from bench.grpo_case import TEMPERATURE, Step
from steerlift.sampling.draws import row_seed
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.models import Model, Tokenizer
from steerlift.training.config import TrainConfig
from steerlift.training.policy_loss import our_loss


class Ours:
    """Generates completions for a step's prompts, and computes the loss of its given ones."""

    def __init__(self, model: Model, tokenizer: Tokenizer, step: Step) -> None:
        self.model = model.train()
        self.step = step
        self._sampler = LocalSampler(model, tokenizer)
        self._loss = our_loss(TrainConfig(temperature=TEMPERATURE, max_completion_length=step.longest))

    def generate(self, greedy: bool = False) -> list[list[int]]:
        """The ids of a group of completions for each prompt, all of the step's greatest length."""
        sizes = self.step.sizes
        options = SamplingOptions(0 if greedy else TEMPERATURE, self.step.longest)
        requests = [
            Request(prompt, tuple(row_seed(sizes.seed, index, sample) for sample in range(sizes.group)))
            for index, prompt in enumerate(self.step.prompts)
        ]
        return [list(c.token_ids) for completions in self._sampler.sample(requests, options) for c in completions]

    def loss(self) -> float:
        """The batch is built, then each micro-batch runs forward and backward; gradients add up."""
        total = 0.0
        for micro_batch in self.step.batch().micro_batches(self.step.sizes.group, self.model.device):
            part = self._loss(self.model, micro_batch).loss
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        return total
