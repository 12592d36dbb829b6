"""The demo as a newcomer runs it, and what it promises."""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlift.steering.vectors import SteeringVectors

pytestmark = pytest.mark.e2e


def test_the_demo_keeps_its_promises(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "steerlift", "demo", "--seed", "0", "--output-dir", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "STEERLIFT_CACHE": str(tmp_path / "cache")},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    summary = json.loads((out / "summary.json").read_text())
    base, finetuned = summary["base"]["pass_at_1"], summary["finetuned"]["pass_at_1"]
    assert 20 <= base <= 45
    assert finetuned >= base + 40
    assert summary["gap_recovered"] >= 60
    assert summary["random_control"]["pass_at_1"] <= base + 10
    assert summary["learned"]["gap_recovered"] >= 75
    for arm in ("base", "finetuned", "steered", "learned", "random_control"):
        low, high = summary[arm]["ci95"]
        assert low <= summary[arm]["pass_at_1"] <= high
    assert summary["gap_recovered_ci95"][0] <= summary["gap_recovered"] <= summary["gap_recovered_ci95"][1]
    assert (summary["steered"]["method"], summary["steered"]["tokens"]) == ("mean_difference", "completion")
    assert summary["seed"] == 0

    for name in ("base", "finetuned"):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        assert len(AutoTokenizer.from_pretrained(out / name)) == model.config.vocab_size
    for path in (out / "vectors.safetensors", out / "learn" / "vectors.safetensors"):
        assert list(SteeringVectors.load(path).layers) == [0, 1, 2]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert results["base_model"]["num_eval_problems"] == 400
    assert list(results["base_with_steering"]) == ["0.25", "0.5", "0.75", "1.0", "1.25", "1.5"]
    assert results["chosen"]["num_dev_problems"] == 120

    for said in (
        "pass@1 %",
        "gap recovered",
        "seconds",
        "toy",
        "steerlift train",
        "base + learned vectors",
        str(out / "figure.png"),
    ):
        assert said in done.stdout
    assert len(list((tmp_path / "cache").iterdir())) == 1
