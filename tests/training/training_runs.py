"""What stands in a run directory, and whether two runs are the same run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steerlift.records.runs import Journal
from steerlift.training.checkpoints import checkpoint_path, load_training_state, saved_steps
from steerlift.training.metrics import MEASURED

LINES = ("completions.jsonl", "eval_completions.jsonl")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Of every step, but for what depends on the machine."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in Journal(folder / "metrics.jsonl").read()]


def completions(folder: Path, step: int | None = None) -> list[dict[str, Any]]:
    return [row for row in Journal(folder / "completions.jsonl").read() if step in (None, row["step"])]


def weights(folder: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """Of a checkpoint, the last by default."""
    return load_file(checkpoint_path(folder, saved_steps(folder)[-1] if step is None else step) / "model.safetensors")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(folder: Path, other: Path) -> None:
    """Bit by bit, but for what depends on the machine and the options that name the run."""
    assert metrics(folder) == metrics(other)
    for name in (*LINES, "eval_summary.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert read(folder / "run_log.json")["steps"] == read(other / "run_log.json")["steps"]
    assert saved_steps(folder) == saved_steps(other)
    for step in saved_steps(folder):
        assert_same_tensors(weights(folder, step), weights(other, step))
    last = saved_steps(folder)[-1]
    assert_same_tensors(load_training_state(folder, last), load_training_state(other, last))


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert one
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_close_runs(folder: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The same completions, and numbers that differ by no more than the order in which they were summed up."""
    for name in LINES:
        texts = [
            [(row["step"], row["problem"]["problem"], [c["token_ids"] for c in row["completions"]]) for row in rows]
            for rows in (Journal(folder / name).read(), Journal(other / name).read())
        ]
        assert texts[0] == texts[1], name
    assert len(metrics(folder)) == len(metrics(other))
    for one, two in zip(metrics(folder), metrics(other), strict=True):
        assert list(one) == list(two)
        far = {name: (one[name], two[name]) for name in one if not _near(one[name], two[name], tolerance)}
        assert not far, f"step {one['step']}: {far}"
    assert_close_tensors(weights(folder), weights(other), tolerance)


def assert_close_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def _near(one: float | None, two: float | None, tolerance: float) -> bool:
    return one == two if None in (one, two) else one == pytest.approx(two, rel=tolerance, abs=tolerance)
