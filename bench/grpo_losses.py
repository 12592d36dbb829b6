"""Forward and backward of one GRPO step: ours, and by the loss of trl's GRPOTrainer."""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench.grpo_case import TEMPERATURE, Step
from bench.measure import OURS
from steerlift.steering.models import Model, load_tokenizer
from steerlift.training.config import TrainConfig
from steerlift.training.policy_loss import our_loss

TRL = f"trl {version('trl')}"

Loss = Callable[[], float]
"""Forward and backward of a whole step, gradients added up; returns its loss."""


def step_loss(way: str, model: Model, step: Step, folder: Path) -> Loss:
    """OURS or TRL; `folder` holds the tokenizer that trl's trainer asks for."""
    model.train()
    return _our_loss(model, step) if way == OURS else _trl_loss(model, step, folder)


def _our_loss(model: Model, step: Step) -> Loss:
    """As in our trainer: the batch is built, then each micro-batch runs forward and backward."""
    loss = our_loss(TrainConfig(temperature=TEMPERATURE, max_completion_length=step.longest), model, None)

    def backward() -> float:
        total = 0.0
        for micro_batch in step.batch().micro_batches(step.sizes.group, model.device):
            part, _ = loss(micro_batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        return total

    return backward


def _trl_loss(model: Model, step: Step, folder: Path) -> Loss:
    """As in trl's trainer with as many accumulation steps as there are groups."""
    trainer = _trl_trainer(model, step, folder)

    def backward() -> float:
        total = 0.0
        for inputs in _trl_inputs(step):
            part = trainer.compute_loss(model, inputs)
            part.backward()
            total += part.item()
        return total

    return backward


def _trl_trainer(model: Model, step: Step, folder: Path) -> Any:
    """A GRPOTrainer that never samples: only its loss is called."""
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
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "never sampled"}]),
            processing_class=load_tokenizer(str(folder)),
        )
    # Its train() sets this before the first step.
    trainer.current_gradient_accumulation_steps = step.sizes.problems
    return trainer


def _trl_inputs(step: Step) -> Iterator[dict[str, Tensor]]:
    """What trl's sampling hands to its loss: prompts padded on the left, completions on the right, to the step's longest."""
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
