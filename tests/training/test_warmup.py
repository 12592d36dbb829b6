"""The supervised warm-up before GRPO, and worked examples in prompts: both take the problems' own solutions."""

from dataclasses import replace

import pytest
import torch
from small_pipeline import tokenizer, trained
from training_runs import assert_close_tensors, assert_same_run, completions, metrics, read, weights

from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import render_prompt
from steerlift.records.errors import InputError
from steerlift.records.runs import Journal
from steerlift.steering.models import load_model
from steerlift.steering.precision import Precision
from steerlift.training.checkpoints import checkpoint_path, load_training_state, saved_steps
from steerlift.training.learner import AdamOptions, Learner
from steerlift.training.processes import Processes
from steerlift.training.train import train
from steerlift.training.warmup import warm_up, worked_solutions

CPU, PRECISION = torch.device("cpu"), Precision(torch.float32, None)


@pytest.fixture
def warm(config, prepared):
    """Ends in its first step, which has nothing to learn from: its evaluation at step 0 is that of the warmed-up model."""
    solved = {"problems": str(prepared / "solved.jsonl"), "num_train_iters": 1, "pass_at_k": (1,)}
    return replace(config, sft_steps=12, sft_batch=4, sft_learning_rate=1e-2, **solved)


def test_the_loss_falls(warm):
    problems = load_problems(warm.problems, "train", 20, 3)
    solutions = worked_solutions(tokenizer(), problems, [], warm)
    assert [tokenizer().decode(answer) for _, answer in solutions] == ["<think>7</think><answer>7</answer><|end|>"] * 20
    losses = []
    for steps in (1, 12):
        model = load_model(warm.model_name, CPU, torch.float32)
        learner = Learner(model, AdamOptions(1.0), Processes(CPU, PRECISION), PRECISION)
        losses.append(warm_up(learner, solutions, replace(warm, sft_steps=steps)))
    assert losses[1] < losses[0] / 4


@pytest.mark.e2e
def test_the_tags_are_used_and_the_warmed_up_model_is_saved(warm, tmp_path):
    warm = replace(warm, sft_steps=20, sft_batch=16, num_completions_eval=8)
    without = replace(warm, sft_steps=0, output_dir=tmp_path / "without")
    train(without)
    train(warm)
    assert (saved_steps(without.output_dir), saved_steps(warm.output_dir)) == ([1], [0, 1])
    before, after = (read(c.output_dir / "eval_summary.json")["0"]["format_rate"] for c in (without, warm))
    assert before + 10 < after
    start = load_model(str(checkpoint_path(warm.output_dir, 0)), CPU, torch.float32)
    assert not torch.equal(start.lm_head.weight, trained("base").lm_head.weight)
    # It is the model alone: GRPO starts with an optimizer of its own.
    assert not (checkpoint_path(warm.output_dir, 0) / "training_state.safetensors").exists()


def test_grpo_starts_with_an_optimizer_of_its_own(warm):
    short = replace(warm, sft_steps=3, num_train_iters=2, sft_learning_rate=1e-4)
    train(short)
    assert all(line["grad_norm"] > 0 for line in metrics(short.output_dir))
    state = load_training_state(short.output_dir, 2)
    assert {int(value) for name, value in state.items() if name.endswith("|step")} == {2}


def test_the_kl_is_that_to_the_warmed_up_model(warm):
    train(replace(warm, sft_steps=3, sft_learning_rate=1e-3, num_train_iters=3, beta=0.5))
    kl = [line["kl"] for line in metrics(warm.output_dir)]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert min(kl[1:]) > 1e-4
    moved = [weights(warm.output_dir, step)["model.norm.weight"] for step in (0, 3)]
    assert not torch.equal(*moved)


@pytest.mark.e2e
def test_a_warm_up_whose_model_draws_itself_is_repeated_exactly(warm, prepared, tmp_path):
    changes = {"model_name": str(prepared / "dropout"), "sft_steps": 2}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        train(replace(warm, **changes, output_dir=tmp_path / name))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    train(replace(warm, sft_steps=2, output_dir=tmp_path / "none"))
    assert not torch.equal(*(weights(tmp_path / name, 0)["model.norm.weight"] for name in ("one", "none")))


@pytest.mark.e2e
def test_the_size_of_its_micro_batches_changes_nothing(warm, tmp_path):
    for name, rows in (("one", 1), ("two", 8)):
        train(replace(warm, sft_steps=2, micro_batch_size=rows, output_dir=tmp_path / name))
    assert_close_tensors(weights(tmp_path / "one", 0), weights(tmp_path / "two", 0), 1e-5)


def test_a_solution_that_is_too_long_is_left_out(warm):
    problems = load_problems(warm.problems, "train", 20, 3)
    assert len(worked_solutions(tokenizer(), problems, [], replace(warm, max_completion_length=7))) == 20
    with pytest.raises(InputError, match="--sft_steps 12: 0 of 20 problems have a worked solution of at most 6 tokens"):
        train(replace(warm, max_completion_length=6))


def test_worked_examples_stand_before_every_problem_and_are_no_training_problem(warm):
    train(replace(warm, sft_steps=0, few_shot=2))
    shown = load_worked_examples(warm.problems, 2, warm.seed)
    turns = "".join(f"<|user|>{p.problem}<|assistant|><think>7</think><answer>7</answer><|end|>" for p in shown)
    rows = [*completions(warm.output_dir), *Journal(warm.output_dir / "eval_completions.jsonl").read()]
    assert len(rows) == 3 + 2 * 4
    for row in rows:
        assert row["prompt"] == f"{turns}<|user|>{row['problem']['problem']}<|assistant|>"
        assert row["prompt"] == render_prompt(tokenizer(), row["problem"]["problem"], few_shot=shown)
        assert row["problem"]["problem"] not in {p.problem for p in shown}
    everything = {p.problem for p in load_problems(warm.problems, "train", None, warm.seed, held_out=shown)}
    assert everything.isdisjoint(p.problem for p in shown)


def test_worked_examples_stand_in_the_warm_up_too(warm):
    shown = load_worked_examples(warm.problems, 1, warm.seed)
    problems = load_problems(warm.problems, "train", 4, warm.seed, held_out=shown)
    solutions = worked_solutions(tokenizer(), problems, shown, warm)
    assert [tokenizer().decode(prompt) for prompt, _ in solutions] == [
        render_prompt(tokenizer(), p.problem, few_shot=shown) for p in problems
    ]
