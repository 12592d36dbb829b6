"""liger-kernel's fused loss against ours: the same numbers, in one kernel."""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny_models import random_prompts, tiny_model
from training_runs import metrics

from steerlift.records.errors import InputError
from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.steering.models import load_config, load_tokenizer
from steerlift.training.batch import MicroBatch, StepBatch
from steerlift.training.config import TrainConfig
from steerlift.training.policy_loss import PolicyLoss, liger_loss, our_loss
from steerlift.training.train import train

with warnings.catch_warnings():
    # Its own imports warn of what is none of our doing.
    warnings.simplefilter("ignore")
    pytest.importorskip("liger_kernel.chunked_loss", reason="liger-kernel is not installed: pip install 'steerlift[liger]'")

LIMIT = 12
REWARDS = torch.tensor([[1.2, 0.2, -0.5, 0.2], [0.2, 0.2, 1.2, 0.2]])


def micro_batches(loss_type: str, mask_truncated: bool) -> list[MicroBatch]:
    torch.manual_seed(1)
    graded = [
        GradedProblem(
            Problem("p", "7"),
            "p",
            tuple(Completion(c, (), "", truncated=place == 1) for place, c in enumerate(random_prompts(5, 12, 1, 8))),
            (Grade("7", True, True, True),) * 4,
        )
        for _ in REWARDS
    ]
    batch = StepBatch.build(random_prompts(3, 7), graded, REWARDS, loss_type, LIMIT, mask_truncated=mask_truncated)
    return batch.micro_batches(3, torch.device("cpu"))


def gradient(model: torch.nn.Module, loss: PolicyLoss, batches: list[MicroBatch]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        part = loss(model, batch).loss
        part.backward()
        total += part.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "bnpo"])
def test_loss_and_gradients_are_ours(loss_type, mask_truncated):
    model = tiny_model("qwen2")
    config = TrainConfig(loss_type=loss_type, max_completion_length=LIMIT, temperature=0.7)
    batches = micro_batches(loss_type, mask_truncated)
    ours, theirs = (gradient(model, make(config), batches) for make in (our_loss, liger_loss))
    assert theirs[0] == pytest.approx(ours[0], rel=1e-5, abs=1e-7)
    assert float(ours[1].norm()) > 0
    assert float((theirs[1] - ours[1]).norm() / ours[1].norm()) < 1e-5


@pytest.mark.e2e
def test_a_run_is_the_same_but_for_what_liger_does_not_tell(config, tmp_path):
    train(replace(config, num_train_iters=2))
    train(replace(config, num_train_iters=2, use_liger=True, output_dir=tmp_path / "liger"))
    for ours, theirs in zip(metrics(config.output_dir), metrics(tmp_path / "liger"), strict=True):
        assert (theirs["entropy"], theirs["clip_rate"]) == (None, None)
        known = [name for name, value in theirs.items() if value is not None]
        assert {"loss", "grad_norm", "reward"} < set(known)
        assert [theirs[name] for name in known] == pytest.approx([ours[name] for name in known], rel=1e-4, abs=1e-6)


@pytest.mark.e2e
def test_a_head_that_liger_does_not_know_leaves_no_run_behind(config, tmp_path):
    model = tiny_model("gemma2", vocab_size=load_config(config.model_name).vocab_size)
    model.save_pretrained(tmp_path / "capped")
    load_tokenizer(config.model_name).save_pretrained(tmp_path / "capped")
    with pytest.raises(InputError, match="--use_liger knows no head with a soft cap"):
        train(replace(config, model_name=str(tmp_path / "capped"), use_liger=True))
    assert not config.output_dir.exists()
