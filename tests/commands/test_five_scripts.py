"""The original's five commands, one after the other, through the real command line, on real MATH problems.

The embedded model, untrained, stands in for a pretrained one: `docs/log.md` has the same run with SmolLM2-135M-Instruct.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steerlift.training.checkpoints import save_checkpoint
from steerlift.training.embedded import EmbeddedRecipe, embedded_model, embedded_tokenizer

ROOT = Path(__file__).parents[2]
WEIGHTS = ["0.1", "0.15", "0.2", "0.25", "0.3", "0.35"]

pytestmark = pytest.mark.e2e


def run(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STEERLIFT_DATA": str(ROOT / "tests" / "data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def test_the_five_commands_make_a_picture_from_problems(tmp_path):
    recipe = EmbeddedRecipe()
    tokenizer = embedded_tokenizer(recipe)
    base = save_checkpoint(tmp_path / "base", embedded_model(recipe, tokenizer), tokenizer)
    out = tmp_path / "run"
    sizes = ["--max_completion_length", "24", "--eval-size", "3", "--num_completions_eval", "2"]

    trained = run(
        "main.py", "--model_name", str(base), "--output_dir", str(out), "--num_train_iters", "2", "--num_chains", "4",
        "--gradient_accumulation_steps", "2", "--train-size", "30", "--eval_every", "1", "--save_every", "1", *sizes,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    log = json.loads((out / "run_log.json").read_text())
    assert set(log) == {"args", "steps"}
    assert set(log["steps"]["1"]["train"]) == {
        "prompt", "question", "target_answer", "problem_type", "generations", "loss", "lr",
    }  # fmt: skip
    assert log["steps"]["1"]["train"]["problem_type"].split("_level_")[1] in {"1", "2", "3", "4", "5", "None"}
    assert set(json.loads((out / "eval_summary.json").read_text())) == {"0", "1", "2"}

    vectors = tmp_path / "steering_vectors.json"
    pair = ["--base_model_name", str(base), "--finetuned_checkpoint", str(out / "checkpoint_step_2")]
    extracted = run(
        "build_steering_vectors.py", *pair, "--output_path", str(vectors), "--train_size", "20", "--max_examples", "10",
        "--max_completion_length", "24",
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    assert {key: len(values) for key, values in json.loads(vectors.read_text()).items()} == {"0": 128, "1": 128, "2": 128}

    results_path = tmp_path / "steering_eval_results.json"
    evaluated = run(
        "eval_with_steering.py", *pair, "--steering_vectors_path", str(vectors), "--output_path", str(results_path), *sizes
    )
    assert evaluated.returncode == 0, evaluated.stderr
    results = json.loads(results_path.read_text())
    assert list(results["base_with_steering"]) == WEIGHTS
    for arm in (results["base_model"], results["finetuned_model"], *results["base_with_steering"].values()):
        assert {"pass_at_1", "avg_format_reward", "num_eval_problems", "examples"} <= set(arm)
        assert arm["num_eval_problems"] == len(arm["examples"]) == 3
        assert all(len(example["completions"]) == 2 for example in arm["examples"])
    assert str(results_path) in evaluated.stdout

    figure = tmp_path / "plots" / "steering_results.png"
    plotted = run("plotter.py", "--results-path", str(results_path), "--output-path", str(figure))
    assert plotted.returncode == 0, plotted.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")

    assert run("vllm_server.py", "--help").returncode == 0
