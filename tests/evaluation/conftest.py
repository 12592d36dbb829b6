from pathlib import Path

import pytest
from evaluated import some_vectors
from small_pipeline import problem_file, saved, trained

from steerlift.evaluation import samplers as samplers_module
from steerlift.evaluation.config import EvaluateConfig


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Models, vectors and problems; what a test changes of them it must copy."""
    root = tmp_path_factory.mktemp("prepared")
    for name in ("base", "finetuned"):
        saved(root / name, trained(name))
    some_vectors().save(root / "v.safetensors")
    problem_file(root)
    return root


@pytest.fixture
def config(prepared, tmp_path) -> EvaluateConfig:
    return EvaluateConfig(
        base_model_name=str(prepared / "base"),
        finetuned_checkpoint=str(prepared / "finetuned"),
        steering_vectors_path=prepared / "v.safetensors",
        output_path=tmp_path / "out" / "r.json",
        problems=str(prepared / "problems.jsonl"),
        eval_size=8,
        num_completions_eval=3,
        max_completion_length=12,
        temperature=1.0,
        seed=5,
        weights=(0.5, 1.0),
    )


@pytest.fixture
def no_sampling(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(samplers_module, "load_model", refuse)
