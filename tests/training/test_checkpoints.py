"""Checkpoints are whole or not there, also where the disk is full; what is left of a run can be gone on from."""

import shutil
from dataclasses import replace

import pytest
import torch
import training_rewards
from limits import full_disk
from small_pipeline import tokenizer, untrained
from training_runs import assert_same_run, files_of, metrics

from steerlift.records.errors import CheckpointError, InputError
from steerlift.steering.models import load_model
from steerlift.training.checkpoints import (
    checkpoint_path,
    load_training_state,
    remove_checkpoints,
    resumable_step,
    save_checkpoint,
    saved_steps,
    tidy,
)
from steerlift.training.train import train

STATE = {"model.weight|exp_avg": torch.arange(3.0), "model.weight|step": torch.tensor(2.0)}


@pytest.fixture(autouse=True)
def _no_calls_yet(monkeypatch):
    monkeypatch.setattr(training_rewards, "calls", [])


def checkpoints(folder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(checkpoint_path(folder, step), untrained(), tokenizer(), training_state=STATE if step else None)


def test_the_training_state_comes_back(tmp_path):
    checkpoints(tmp_path, 0, 3, 20)
    assert saved_steps(tmp_path) == [0, 3, 20]
    assert resumable_step(tmp_path) == 20
    state = load_training_state(tmp_path, 20)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {name: t.tolist() for name, t in STATE.items()}


def test_tidying_keeps_the_start_the_last_and_one_state(tmp_path):
    checkpoints(tmp_path, 0, 1, 2, 3)
    tidy(tmp_path, None)
    assert saved_steps(tmp_path) == [0, 1, 2, 3]
    assert [path.parent.name for path in tmp_path.rglob("training_state.safetensors")] == ["checkpoint_step_3"]
    (tmp_path / ".checkpoint_step_4.half").mkdir()
    tidy(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_step_0", "checkpoint_step_2", "checkpoint_step_3"]
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("remove", [remove_checkpoints, lambda folder: tidy(folder, 1)])
def test_a_checkpoint_that_is_only_half_removed_does_not_bear_its_name(tmp_path, monkeypatch, remove):
    checkpoints(tmp_path, 1, 2)

    def stopped(path):
        next(path.glob("model*")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        remove(tmp_path)
    assert saved_steps(tmp_path) == [2]
    monkeypatch.undo()
    tidy(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_step_2"]


@pytest.mark.parametrize(("most", "last"), [(50_000, ""), (130_000, "; the last whole one is {}/checkpoint_step_1")])
def test_a_full_disk_leaves_no_half_of_a_checkpoint(tmp_path, most, last):
    """It fills up at the weights (120 kB), or at the optimizer's state."""
    if last:
        checkpoints(tmp_path, 1)
    before = files_of(tmp_path)
    target = checkpoint_path(tmp_path, 2)
    large = {"model.weight|exp_avg": torch.zeros(100_000)}
    with full_disk(most), pytest.raises(CheckpointError) as raised:
        save_checkpoint(target, untrained(), tokenizer(), training_state=large)
    message = str(raised.value)
    assert message.startswith(f"checkpoint {target} cannot be written: ")
    assert "File too large" in message
    assert message.endswith(f"{last.format(tmp_path)}; make room, then --resume")
    assert "\n" not in message
    assert files_of(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_disk_that_is_full_when_the_tokenizer_is_written_is_the_same(tmp_path):
    # tokenizers, written in Rust, knows no OSError.
    with full_disk(20_000), pytest.raises(CheckpointError, match="cannot be written: File too large"):
        save_checkpoint(tmp_path / "checkpoint", untrained(hidden_size=8, layers=1), tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_full_disk_keeps_its_traceback(tmp_path):
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "checkpoint", untrained(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("most", "error", "message"),
    [
        (50_000, CheckpointError, "checkpoint {0}/checkpoint_step_3 cannot be written: .*; the last whole one is "
                                  "{0}/checkpoint_step_2; make room, then --resume"),
        (9000, InputError, "cannot write {0}/completions.jsonl: File too large; make room or name another place"),
    ],
)  # fmt: skip
def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(config, tmp_path, most, error, message):
    config = replace(config, rewards=("training_rewards:on_a_disk_that_fills_up",))
    training_rewards.most_bytes[:] = [most]
    with full_disk(), pytest.raises(error, match=message.format(config.output_dir)) as raised:
        train(config)
    assert "\n" not in str(raised.value)
    assert len(training_rewards.calls) == 9
    assert saved_steps(config.output_dir) == [2]
    load_model(str(checkpoint_path(config.output_dir, 2)), torch.device("cpu"), torch.float32)
    train(replace(config, resume=True))
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    assert_same_run(config.output_dir, whole.output_dir)
    assert len(metrics(config.output_dir)) == 3
