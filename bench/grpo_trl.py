"""trl's side of a GRPO step: generation and loss of its GRPOTrainer, which is never told to train."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench.grpo_case import TEMPERATURE, Step
from steerlift.steering.models import Model, Tokenizer

TRL = f"trl {version('trl')}"


class Trl:
    """Generates completions for a step's prompts, and computes the loss of its given ones."""

    def __init__(self, model: Model, tokenizer: Tokenizer, step: Step) -> None:
        self.model = model.train()
        self.tokenizer = tokenizer
        self.step = step
        self._trainer = _trainer(model, tokenizer, step)

    def generate(self, greedy: bool = False) -> list[list[int]]:
        """The ids of a group of completions for each prompt, all of the step's greatest length; decoded, as ours are."""
        # Of the likeliest token alone its sampling takes that one.
        trainer = _trainer(self.model, self.tokenizer, self.step, top_k=1) if greedy else self._trainer
        repeated = [list(prompt) for prompt in self.step.prompts for _ in range(self.step.sizes.group)]
        # What its step calls once the prompts are token ids: padding, model.generate, and the mask after the end token.
        rows: list[list[int]]
        rows, _ = trainer._generate_single_turn(repeated, None, {}, self.step.sizes.group)
        self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return rows

    def loss(self) -> float:
        """As in its train() with as many accumulation steps as there are groups; gradients add up."""
        total = 0.0
        for inputs in _inputs(self.step):
            part = self._trainer.compute_loss(self.model, inputs)
            part.backward()
            total += part.item()
        return total


def _trainer(model: Model, tokenizer: Tokenizer, step: Step, **options: object) -> Any:
    # Imported here: trl takes seconds to import, and the measurement of our memory should not hold it.
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    # The trainer wants a folder of its own, into which nothing is written here.
    with TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=step.sizes.group,
            gradient_accumulation_steps=step.sizes.problems,
            num_generations=step.sizes.group,
            max_completion_length=step.longest,
            temperature=TEMPERATURE,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            **options,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "given as token ids"}]),
            processing_class=tokenizer,
        )
    # Its train() sets this before the first step.
    trainer.current_gradient_accumulation_steps = step.sizes.problems
    return trainer


def _inputs(step: Step) -> Iterator[dict[str, Tensor]]:
    """What its sampling hands to its loss: prompts padded on the left, completions on the right, to the step's longest."""
    batch = step.batch()
    reversed_BT, prompt_mask_BT = _padded([prompt[::-1] for prompt in batch.prompts])
    completions_BT, mask_BT = _padded(batch.completions)
    for start in range(0, len(batch.completions), step.sizes.group):
        rows = slice(start, start + step.sizes.group)
        yield {
            "prompt_ids": reversed_BT[rows].flip(1),
            "prompt_mask": prompt_mask_BT[rows].flip(1),
            "completion_ids": completions_BT[rows],
            "completion_mask": mask_BT[rows],
            "advantages": batch.advantages_B[rows],
        }


def _padded(rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Ids padded on the right and their mask, both of shape (rows, longest)."""
    ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows])
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
