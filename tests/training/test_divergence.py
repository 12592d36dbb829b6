"""Runs that cannot go on: which step it was, what is kept, what to do, in one line."""

from dataclasses import replace

import pytest
import torch
import training_rewards
from small_pipeline import saved, untrained
from training_runs import assert_same_tensors, completions, metrics, read, weights

from steerlift.records.errors import NotFiniteError, TrainingDivergedError
from steerlift.training.checkpoints import load_training_state, saved_steps
from steerlift.training.train import train

OVERFLOWING = ("training_rewards:overflowing",)


@pytest.fixture(autouse=True)
def _no_calls_yet(monkeypatch):
    monkeypatch.setattr(training_rewards, "calls", [])


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_state_before_it(config, tmp_path):
    with pytest.raises(TrainingDivergedError) as raised:
        train(replace(config, rewards=OVERFLOWING, save_every=50))
    assert str(raised.value) == (
        f"step 2: loss nan, gradient norm nan, expected finite numbers; the state before it is in "
        f"{config.output_dir}/checkpoint_step_1; lower --learning_rate, then --resume or start over"
    )
    assert [row["step"] for row in metrics(config.output_dir)] == [1]
    assert {row["step"] for row in completions(config.output_dir)} == {1}
    assert list(read(config.output_dir / "run_log.json")["steps"]) == ["0", "1"]
    # Both are those of a run that saves after every step.
    good = replace(config, output_dir=tmp_path / "good", rewards=OVERFLOWING, save_every=1)
    training_rewards.calls.clear()
    with pytest.raises(TrainingDivergedError):
        train(good)
    assert saved_steps(config.output_dir) == saved_steps(good.output_dir) == [1]
    assert_same_tensors(weights(config.output_dir), weights(good.output_dir))
    assert all(bool(tensor.isfinite().all()) for tensor in weights(config.output_dir).values())
    assert_same_tensors(load_training_state(config.output_dir, 1), load_training_state(good.output_dir, 1))


@pytest.mark.e2e
def test_a_run_that_diverged_goes_on_from_there(config):
    with pytest.raises(TrainingDivergedError):
        train(replace(config, rewards=OVERFLOWING))
    training_rewards.calls.clear()
    with pytest.raises(TrainingDivergedError, match="step 3: loss nan"):
        train(replace(config, rewards=OVERFLOWING, learning_rate=1e-3, resume=True))
    assert [row["step"] for row in metrics(config.output_dir)] == [1, 2]


def test_a_loss_that_is_no_number_at_the_first_step_says_that_nothing_is_saved(config):
    training_rewards.calls.extend([None] * 3)
    with pytest.raises(TrainingDivergedError, match=r"step 1: loss nan.*; no checkpoint is saved yet; lower"):
        train(replace(config, rewards=OVERFLOWING))
    assert saved_steps(config.output_dir) == []


def test_a_loss_that_is_no_number_in_a_later_update_of_a_batch_keeps_the_last_checkpoint(config):
    # The weights have moved since the batch was sampled: the state before the step is gone.
    train(replace(config, num_train_iters=1, num_iterations=2))
    with pytest.raises(TrainingDivergedError, match=r"step 2: loss .*; the last checkpoint is whole; lower"):
        train(replace(config, num_iterations=2, learning_rate=1e30, resume=True))
    assert saved_steps(config.output_dir) == [1]


def test_so_large_a_step_that_the_next_logits_overflow_is_said_with_its_step(config):
    with pytest.raises(TrainingDivergedError, match=r"step 2: .*not finite.*; try a lower --learning_rate") as raised:
        train(replace(config, learning_rate=1e30))
    assert "\n" not in str(raised.value)


def test_the_same_when_an_evaluation_comes_first(config):
    with pytest.raises(TrainingDivergedError) as raised:
        train(replace(config, learning_rate=1e30, eval_every=1))
    assert str(raised.value) == (
        "step 1, evaluation: Qwen2ForCausalLM: its logits are not finite; its weights are damaged; try a lower --learning_rate"
    )


def test_a_model_that_is_not_finite_is_refused(config, tmp_path):
    model = untrained()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    name = saved(tmp_path / "nan", model)
    with pytest.raises(NotFiniteError, match="its logits are not finite; its weights are damaged") as raised:
        train(replace(config, model_name=name))
    assert not isinstance(raised.value, TrainingDivergedError)
    assert "\n" not in str(raised.value)
