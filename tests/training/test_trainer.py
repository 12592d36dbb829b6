import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_pipeline import tokenizer, trained
from training_runs import assert_close_runs, assert_same_run, completions, metrics, read

from steerlift.problems.load import load_problems
from steerlift.records.runs import Journal
from steerlift.records.types import GradedProblem
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.models import load_model, load_tokenizer
from steerlift.training.checkpoints import checkpoint_path
from steerlift.training.schedule import learning_rate_factor, problems_of_step
from steerlift.training.train import train


def test_metrics_are_those_of_the_completions(finished):
    lines = metrics(finished.output_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        graded = [GradedProblem.from_row(row) for row in completions(finished.output_dir, line["step"])]
        assert len(graded) == 3
        grades = [grade for g in graded for grade in g.grades]
        answers = [completion for g in graded for completion in g.completions]
        assert len(grades) == len(answers) == 12
        rewards = [[grade.correct + (0.2 if grade.format_ok else -0.5) for grade in g.grades] for g in graded]
        assert [row["rewards"] for row in completions(finished.output_dir, line["step"])] == rewards
        assert line["reward"] == pytest.approx(sum(map(sum, rewards)) / 12, abs=1e-6)
        assert line["accuracy"] == sum(grade.correct for grade in grades) / 12
        assert line["lenient_accuracy"] == sum(grade.lenient_correct for grade in grades) / 12
        assert line["format_rate"] == sum(grade.format_ok for grade in grades) / 12
        assert line["mean_length"] == sum(len(c.token_ids) for c in answers) / 12
        assert line["truncated_rate"] == sum(c.truncated for c in answers) / 12
        assert line["no_signal_rate"] == pytest.approx(sum(len(set(group)) == 1 for group in rewards) / 3)
        assert line["grad_norm"] > 0
        assert 0 < line["entropy"] < math.log(len(tokenizer()))
        assert (line["clip_rate"], line["kl"]) == (0.0, None)
        assert line["lr"] == pytest.approx(2e-3 * learning_rate_factor(line["step"] - 1, finished))


def test_the_machines_numbers_are_positive(finished):
    for row in Journal(finished.output_dir / "metrics.jsonl").read():
        seconds = [row[f"{phase}_seconds"] for phase in ("sampling", "grading", "update")]
        assert all(0 < value < 60 for value in seconds)
        sampled = sum(len(c["token_ids"]) for r in completions(finished.output_dir, row["step"]) for c in r["completions"])
        assert row["tokens_per_second"] == pytest.approx(sampled / row["sampling_seconds"])
        assert 0.05 < row["peak_memory_gib"] < 64


def test_checkpoints_are_ordinary_models_and_the_weights_have_moved(finished):
    moved = [torch.cat([p.detach().flatten() for p in trained("base").parameters()])]
    for step in (2, 3):
        folder = str(checkpoint_path(finished.output_dir, step))
        model, loaded = load_model(folder, torch.device("cpu"), torch.float32), load_tokenizer(folder)
        assert loaded.encode("<think>12+7</think> Ann has") == tokenizer().encode("<think>12+7</think> Ann has")
        assert LocalSampler(model, loaded).sample([Request((5, 6), (1,))], SamplingOptions(1.0, 4))
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert all(float((after - before).norm()) > 0.01 for before, after in pairwise(moved))


def test_the_tokenizer_of_a_saved_model_knows_no_token_that_the_model_does_not(prepared):
    # transformers adds its family's own unknown token where the saved tokenizer names none.
    loaded = load_tokenizer(str(prepared / "base"))
    assert max(loaded.get_vocab().values()) < trained("base").config.vocab_size


@pytest.mark.e2e
def test_training_makes_right_answers_likelier(config):
    longer = {"num_train_iters": 12, "eval_every": 12, "save_every": 12, "eval_size": 8, "num_completions_eval": 8}
    train(replace(config, learning_rate=1e-2, gradient_accumulation_steps=6, **longer))
    before, after = (read(config.output_dir / "eval_summary.json")[step]["pass_at_1"] for step in ("0", "12"))
    assert after > before + 40, (before, after)


def test_the_same_seed_gives_the_same_run_and_another_does_not(config, finished, tmp_path):
    torch.manual_seed(99)  # whatever came before a run in its process is nothing to it
    train(config)
    assert_same_run(config.output_dir, finished.output_dir)
    train(replace(config, output_dir=tmp_path / "third", seed=4, num_train_iters=1))
    assert metrics(tmp_path / "third")[0] != metrics(config.output_dir)[0]


def test_the_size_of_the_micro_batches_changes_no_result(config, finished):
    train(replace(config, micro_batch_size=1))
    assert_close_runs(config.output_dir, finished.output_dir)


def test_a_run_without_signal_moves_no_weight(config, prepared):
    # An untrained model's answers are all without the format: every group has equal rewards.
    train(replace(config, model_name=str(prepared / "untrained"), num_train_iters=1))
    (line,) = metrics(config.output_dir)
    assert (line["loss"], line["grad_norm"], line["no_signal_rate"]) == (0.0, 0.0, 1.0)
    assert (line["entropy"], line["clip_rate"]) == (None, None)
    one, other = (
        load_model(str(folder), torch.device("cpu"), torch.float32)
        for folder in (prepared / "untrained", checkpoint_path(config.output_dir, 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_evaluations_have_a_temperature_and_a_length_of_their_own_and_several_k(config):
    changes = {"eval_temperature": 0.0, "eval_max_completion_length": 2, "pass_at_k": (3, 1, 2), "num_train_iters": 1}
    train(replace(config, **changes))
    summary = read(config.output_dir / "eval_summary.json")
    assert list(summary) == ["0", "1"]
    for numbers in summary.values():
        scores = [key for key in numbers if key.startswith("pass_at_") and not key.endswith("ci95")]
        assert scores == ["pass_at_3", "pass_at_1", "pass_at_2"]
        assert {"ci95", "pass_at_1_ci95", "pass_at_2_ci95", "lenient_pass_at_3"} <= set(numbers)
        assert numbers["truncated_rate"] == 100
    for row in Journal(config.output_dir / "eval_completions.jsonl").read():
        ids = [c["token_ids"] for c in row["completions"]]
        assert len(ids) == 3
        assert ids == [ids[0]] * 3  # greedy
        assert len(ids[0]) == 2
    # Training goes on at its own.
    trained_on = [c["token_ids"] for row in completions(config.output_dir) for c in row["completions"]]
    assert max(map(len, trained_on)) > 2
    assert len(set(map(tuple, trained_on))) > 1


def test_mask_truncated_leaves_long_completions_out_of_the_update(config):
    # So long are answers without <think></think>; all others are cut off.
    short = replace(config, max_completion_length=5, num_train_iters=1, num_chains=8)
    train(replace(short, mask_truncated=True))
    (masked,) = metrics(config.output_dir)
    train(replace(short, overwrite=True))
    (plain,) = metrics(config.output_dir)
    assert 0 < plain["truncated_rate"] < 1
    assert all(masked[name] == plain[name] for name in ("reward", "truncated_rate", "no_signal_rate"))
    assert masked["loss"] != plain["loss"]
    # All of them: nothing is left to learn from, although the rewards differ.
    train(replace(short, max_completion_length=1, mask_truncated=True, overwrite=True, rewards=("training_rewards:by_token",)))
    (nothing,) = metrics(config.output_dir)
    assert nothing["truncated_rate"] == 1
    assert nothing["no_signal_rate"] < 1
    assert (nothing["loss"], nothing["grad_norm"]) == (0.0, 0.0)


def test_a_problem_that_comes_twice_in_a_step_is_answered_anew(config):
    # The last problem of one epoch may be the first of the next. The same random numbers would count one group double.
    problems = load_problems(config.problems, "train", 3, 3)
    seed = next(seed for seed in range(99) if len(set(problems_of_step(problems, 2, 2, seed))) == 1)
    shared = {"seed": seed, "train_size": 3, "gradient_accumulation_steps": 2, "num_train_iters": 2, "num_chains": 8}
    train(replace(config, **shared))
    rows = completions(config.output_dir, 2)
    answers = [(row["problem"]["problem"], [c["token_ids"] for c in row["completions"]]) for row in rows]
    assert len(answers) == 2
    assert answers[0][0] == answers[1][0]
    assert answers[0] != answers[1]
