"""Vectors to evaluate with, and what stands in the files of an evaluation."""

import json
from pathlib import Path

import torch
from small_pipeline import RECIPE

from steerlift.records.runs import Journal, completions_path
from steerlift.records.types import GradedProblem
from steerlift.steering.vectors import SteeringVectors

# More entries than one, in an order of their own: a results file must not depend on how safetensors orders them.
METADATA = {"tokens": "completion", "method": "mean_difference", "seed": "3", "base_model": "b", "problems": "p", "a": "a"}


def some_vectors(scale: float = 0.2) -> SteeringVectors:
    torch.manual_seed(1)
    layers = {layer: scale * torch.randn(RECIPE.hidden_size) for layer in range(RECIPE.layers)}
    return SteeringVectors(layers, METADATA)


def timeless(path: Path) -> str:
    """A results file without what differs between two runs: the date and the command line."""
    content = json.loads(path.read_text())
    del content["provenance"]["date"], content["provenance"]["command"]
    return json.dumps(content)


def graded(path: Path, split: str, arm: str) -> list[GradedProblem]:
    rows = [row for row in Journal(completions_path(path)).read()[1:] if (row["split"], row["arm"]) == (split, arm)]
    return [GradedProblem.from_row(row) for row in sorted(rows, key=lambda row: row["index"])]
