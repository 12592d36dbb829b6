import copy
from pathlib import Path

import pytest
from small_pipeline import problem_file, saved, trained, untrained

from steerlift.training.config import TrainConfig
from steerlift.training.train import train


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Models and problems; what a test changes of them it must copy."""
    root = tmp_path_factory.mktemp("prepared")
    saved(root / "base", trained("base"))
    saved(root / "untrained", untrained())
    # Its training draws random numbers of its own; dropout does nothing when a model samples.
    forgetful = copy.deepcopy(trained("base"))
    forgetful.config.attention_dropout = 0.2
    saved(root / "dropout", forgetful)
    problem_file(root)
    problem_file(root, solution="7")
    return root


@pytest.fixture
def config(prepared, tmp_path) -> TrainConfig:
    return small_run(prepared, tmp_path / "run")


@pytest.fixture(scope="session")
def finished(prepared, tmp_path_factory) -> TrainConfig:
    """A run that is done, for tests that only read it."""
    config = small_run(prepared, tmp_path_factory.mktemp("finished") / "run")
    train(config)
    return config


def small_run(prepared: Path, output_dir: Path) -> TrainConfig:
    return TrainConfig(
        model_name=str(prepared / "base"),
        output_dir=output_dir,
        problems=str(prepared / "problems.jsonl"),
        train_size=20,
        eval_size=4,
        seed=3,
        num_train_iters=3,
        gradient_accumulation_steps=3,
        num_chains=4,
        learning_rate=2e-3,
        max_grad_norm=1.0,
        temperature=1.0,
        max_completion_length=12,
        eval_every=2,
        save_every=2,
        num_completions_eval=3,
        pass_at_k=(2, 1),
        dtype="float32",
    )
