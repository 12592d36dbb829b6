"""Runs that are killed at random moments and resumed: what they leave is what a run leaves that nobody killed."""

import random
import time
from dataclasses import replace
from pathlib import Path

import children
import pytest
from safetensors.torch import load_file
from training_runs import assert_same_run, metrics

from steerlift.training.checkpoints import checkpoint_path, resumable_step, saved_steps
from steerlift.training.config import TrainConfig
from steerlift.training.train import train

pytestmark = pytest.mark.e2e

WARM = {"sft_steps": 3, "sft_batch": 4, "problems": "solved.jsonl"}
TWICE = {"num_iterations": 2, "beta": 0.05, "model_name": "dropout", "keep_checkpoints": 1}
LORA = {"lora_r": 4, "beta": 0.05, "model_name": "dropout", "keep_checkpoints": 3}
STATE = "training_state.safetensors"


def kill_one(config: TrainConfig, in_saving: bool, seconds: float, said: Path) -> bool:
    """Resumes the run and kills it so many seconds later, or later than it begins its second saving. False: it ended before."""
    folder = config.output_dir
    step = min((resumable_step(folder) or 0) + 2, config.num_train_iters)
    child = children.start(lambda: train(replace(config, resume=True)) and None, said)
    while in_saving and not any((*folder.glob(f".checkpoint_step_{step}.*"), *folder.glob(f"checkpoint_step_{step}"))):
        if (code := children.has_ended(child)) is not None:
            assert code == 0, said.read_text()
            return False
        time.sleep(0.001)
    time.sleep(seconds)
    return children.kill(child)


def files_in(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def assert_whole(folder: Path, expected: set[str]) -> None:
    """Every checkpoint is complete, and the last can be gone on from."""
    steps = saved_steps(folder)
    for step in steps:
        names = files_in(checkpoint_path(folder, step))
        assert names | {STATE} == expected, step
        for name in (name for name in names if name.endswith(".safetensors")):
            load_file(checkpoint_path(folder, step) / name)
    assert not steps or steps[-1] == (resumable_step(folder) or 0)


@pytest.mark.parametrize(
    ("kills", "changes"),
    [(8, {}), (20, {**WARM, **TWICE}), (20, LORA), (8, {**WARM, **LORA})],
    ids=["plain", "warm-twice", "lora", "warm-lora"],
)
def test_kills_change_nothing(config, prepared, tmp_path, kills, changes):
    places = {name: str(prepared / changes[name]) for name in ("model_name", "problems") if name in changes}
    small = {"eval_every": 5, "eval_size": 2, "num_chains": 3, "learning_rate": 5e-4}
    config = replace(config, **{"num_train_iters": kills, "save_every": 1, **small, **changes, **places})
    folder, whole, said = config.output_dir, replace(config, output_dir=tmp_path / "whole"), tmp_path / "said"
    start = time.perf_counter()
    assert children.wait(children.start(lambda: train(whole) and None, said)) == 0, said.read_text()
    seconds = time.perf_counter() - start
    expected = files_in(checkpoint_path(whole.output_dir, kills))

    rng = random.Random(7)
    moments: list[int | None] = []
    halves = 0
    for number in range(kills):
        # Anywhere from loading to the second step, and in turn within the saving of a checkpoint.
        in_saving = number % 2 == 1
        if not kill_one(config, in_saving, rng.uniform(0, 0.02 if in_saving else 1.5 * seconds / kills), said):
            break
        halves += any(folder.glob(".checkpoint_step_*"))
        assert_whole(folder, expected)
        moments.append(resumable_step(folder))
    train(replace(config, resume=True))
    print(f"{len(moments)} kills, {halves} of them within a checkpoint; resumed after steps {moments}")
    assert len(moments) >= kills - 4
    assert halves >= kills // 5
    assert_same_run(folder, whole.output_dir)
    assert len(metrics(folder)) == kills
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.output_dir.iterdir()} | {"resumed.jsonl"}
