import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from small_pipeline import Silent, problem_file, saved, tokenizer, trained, untrained

from steerlift.problems.load import load_problems
from steerlift.records.errors import (
    InputError,
    MissingDependencyError,
    MissingInputError,
    NotFiniteError,
    TrainingDivergedError,
)
from steerlift.records.runs import Journal
from steerlift.records.types import GradedProblem
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.models import load_model, load_tokenizer
from steerlift.training.config import TrainConfig
from steerlift.training.run_log import RunLog
from steerlift.training.trainer import Trainer, learning_rate_factor, problems_of_step, train

STEPS = 3
TIMES = ("sampling_seconds", "update_seconds", "sampled_tokens_per_second")
GENERATION = {"text", "extracted_answer", "correct", "format_reward", "total_reward"}
EXAMPLE = {
    "prompt", "question", "target_answer", "problem_type", "completions", "num_correct", "pass_at_2", "avg_format_reward",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    saved(root / "base", trained("base"))
    saved(root / "untrained", untrained())
    problem_file(root)
    return root


@pytest.fixture
def config(prepared, tmp_path) -> TrainConfig:
    return TrainConfig(
        model_name=str(prepared / "base"),
        output_dir=tmp_path / "run",
        problems=str(prepared / "problems.jsonl"),
        train_size=20,
        eval_size=4,
        seed=3,
        num_train_iters=STEPS,
        gradient_accumulation_steps=3,
        num_chains=4,
        learning_rate=2e-3,
        max_grad_norm=1.0,
        temperature=1.0,
        max_completion_length=12,
        eval_every=2,
        save_every=2,
        num_completions_eval=3,
        pass_at_k=2,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Journal(folder / "metrics.jsonl").read()]


def read(path: Path):
    return json.loads(path.read_text())


def test_a_run_leaves_its_files_in_the_originals_shapes(config):
    last = train(config)
    folder = config.output_dir
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint_step_2", "checkpoint_step_3", "completions.jsonl", "config.json", "eval_summary.json", "metrics.jsonl",
        "run_log.json",
    ]  # fmt: skip
    assert last == folder / "checkpoint_step_3"

    log = read(folder / "run_log.json")
    assert set(log) == {"args", "steps"}
    assert set(log["args"]) == {field.name for field in fields(TrainConfig)}
    assert list(log["steps"]) == ["0", "1", "2", "3"]
    assert [sorted(step) for step in log["steps"].values()] == [["eval"], ["train"], ["eval", "train"], ["eval", "train"]]
    entry = log["steps"]["1"]["train"]
    assert set(entry) == {"prompt", "question", "target_answer", "problem_type", "generations", "loss", "lr"}
    assert entry["problem_type"] == "Sums_level_1"
    assert len(entry["generations"]) == 4
    assert all(set(generation) == GENERATION for generation in entry["generations"])
    for generation in entry["generations"]:
        assert generation["total_reward"] == pytest.approx(generation["correct"] + generation["format_reward"])
    evaluation = log["steps"]["0"]["eval"]
    assert set(evaluation) == {"examples", "metrics"}
    assert len(evaluation["examples"]) == 4
    assert all(set(example) == EXAMPLE for example in evaluation["examples"])
    assert {"pass_at_2", "avg_format_reward", "num_eval_problems"} <= set(evaluation["metrics"])

    summary = read(folder / "eval_summary.json")
    assert list(summary) == ["0", "2", "3"]
    assert all(summary[step] == log["steps"][step]["eval"]["metrics"] for step in summary)
    written = read(folder / "config.json")
    assert {name: written[name] for name in log["args"]} == log["args"]
    assert written["provenance"]["seed"] == 3


def test_metrics_are_those_of_the_completions(config):
    train(config)
    rows = Journal(config.output_dir / "completions.jsonl").read()
    lines = Journal(config.output_dir / "metrics.jsonl").read()
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        graded = [GradedProblem.from_row(row) for row in rows if row["step"] == line["step"]]
        assert len(graded) == 3
        grades = [grade for g in graded for grade in g.grades]
        assert len(grades) == 12
        rewards = [[grade.correct + (0.2 if grade.format_ok else -0.5) for grade in g.grades] for g in graded]
        assert line["reward"] == pytest.approx(sum(map(sum, rewards)) / 12, abs=1e-6)
        assert line["accuracy"] == sum(grade.correct for grade in grades) / 12
        assert line["lenient_accuracy"] == sum(grade.lenient_correct for grade in grades) / 12
        assert line["format_rate"] == sum(grade.format_ok for grade in grades) / 12
        assert line["mean_length"] == sum(len(c.token_ids) for g in graded for c in g.completions) / 12
        assert line["no_signal_rate"] == pytest.approx(sum(len(set(group)) == 1 for group in rewards) / 3)
        assert line["grad_norm"] > 0
        assert 0 < line["entropy"] < math.log(len(tokenizer()))
        assert line["lr"] == pytest.approx(2e-3 * learning_rate_factor(line["step"] - 1, config))


def test_checkpoints_are_ordinary_models_and_the_weights_have_moved(config, prepared):
    train(config)
    start = load_model(str(prepared / "base"), torch.device("cpu"), torch.float32)
    weights = []
    for step in (2, 3):
        folder = str(config.output_dir / f"checkpoint_step_{step}")
        model, loaded = load_model(folder, torch.device("cpu"), torch.float32), load_tokenizer(folder)
        assert loaded.encode("<think>12+7</think> Ann has") == tokenizer().encode("<think>12+7</think> Ann has")
        assert LocalSampler(model, loaded).sample([Request((5, 6), (1,))], SamplingOptions(1.0, 4))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    assert float((weights[0] - before).norm()) > 0.01
    assert float((weights[1] - weights[0]).norm()) > 0.01


def test_the_tokenizer_of_a_saved_model_knows_no_token_that_the_model_does_not(prepared):
    # transformers adds its family's own unknown token where the saved tokenizer names none.
    loaded = load_tokenizer(str(prepared / "base"))
    assert max(loaded.get_vocab().values()) < trained("base").config.vocab_size


def test_training_makes_right_answers_likelier(config):
    longer = {
        "num_train_iters": 12,
        "eval_every": 12,
        "save_every": 12,
        "eval_size": 8,
        "num_completions_eval": 8,
        "pass_at_k": 1,
    }
    train(replace(config, learning_rate=1e-2, gradient_accumulation_steps=6, **longer))
    before, after = (read(config.output_dir / "eval_summary.json")[step]["pass_at_1"] for step in ("0", "12"))
    assert after > before + 40, (before, after)


def test_the_same_seed_gives_the_same_run_and_another_does_not(config, tmp_path):
    other = replace(config, output_dir=tmp_path / "other")
    train(config)
    train(other)
    assert metrics(config.output_dir) == metrics(other.output_dir)
    for name in ("completions.jsonl", "eval_summary.json", "checkpoint_step_3/model.safetensors"):
        assert (config.output_dir / name).read_bytes() == (other.output_dir / name).read_bytes()
    train(replace(config, output_dir=tmp_path / "third", seed=4, num_train_iters=1))
    assert metrics(tmp_path / "third")[0] != metrics(config.output_dir)[0]


def test_the_size_of_the_micro_batches_changes_no_result(config, tmp_path):
    train(replace(config, micro_batch_size=12))
    train(replace(config, output_dir=tmp_path / "other", micro_batch_size=1))
    for one, other in zip(metrics(config.output_dir), metrics(tmp_path / "other"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_another_runs_folder_is_refused_and_overwrite_starts_over(config):
    train(replace(config, seed=4, num_train_iters=4))
    (config.output_dir / "notes.txt").write_text("my own")
    before = {path: path.read_bytes() for path in config.output_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as raised:
        train(config)
    assert str(raised.value) == f"{config.output_dir} holds another run; name another --output_dir or pass --overwrite"
    assert {path: path.read_bytes() for path in config.output_dir.rglob("*") if path.is_file()} == before
    train(replace(config, overwrite=True))
    assert len(metrics(config.output_dir)) == STEPS
    assert {path.name for path in config.output_dir.glob("checkpoint*")} == {"checkpoint_step_2", "checkpoint_step_3"}
    assert (config.output_dir / "notes.txt").read_text() == "my own"


def test_overwrite_does_not_destroy_a_model_that_is_no_run(config, tmp_path):
    folder = tmp_path / "model"
    saved(folder, untrained())
    before = (folder / "config.json").read_bytes()
    with pytest.raises(InputError):
        train(replace(config, model_name=str(folder), output_dir=folder, overwrite=True))
    assert (folder / "config.json").read_bytes() == before


def test_a_run_without_signal_moves_no_weight(config, prepared):
    # An untrained model's answers are all without the format: every group has equal rewards.
    train(replace(config, model_name=str(prepared / "untrained"), num_train_iters=1))
    (line,) = metrics(config.output_dir)
    assert (line["loss"], line["grad_norm"], line["no_signal_rate"]) == (0.0, 0.0, 1.0)
    assert line["entropy"] is None
    one, other = (
        load_model(str(folder), torch.device("cpu"), torch.float32)
        for folder in (prepared / "untrained", config.output_dir / "checkpoint_step_1")
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_kl_to_the_start_counts_from_the_second_step_on(config, tmp_path):
    train(config)
    train(replace(config, output_dir=tmp_path / "kl", beta=5.0))
    plain, held = metrics(config.output_dir), metrics(tmp_path / "kl")
    # At the first step policy and reference are one, and so is the update; then the KL pulls back.
    assert held[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-6)
    assert held[1]["loss"] > plain[1]["loss"] + 1e-3


def test_evaluations_are_written_when_they_are_made(config):
    """A run killed between two checkpoints keeps its evaluations."""
    seen: list[list[str]] = []

    class Watch(Silent):
        def advance(self, *_: object) -> None:
            path = config.output_dir / "eval_summary.json"
            seen.append(list(read(path)) if path.exists() else [])

    config = replace(config, eval_every=1, save_every=3)
    model, problems = load_model(config.model_name, torch.device("cpu"), torch.float32), load_problems(config.problems)
    Trainer(config, model, load_tokenizer(config.model_name), RunLog(config, "cpu")).run(problems, problems[:2], Watch())
    assert seen == [["0", "1"], ["0", "1", "2"], ["0", "1", "2", "3"]]


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_last_good_weights(config, monkeypatch):
    original = Trainer._update

    def poisoned(self, step, graded):
        if step == 2:
            loss = self.loss

            def not_a_number(batch):
                value, entropies = loss(batch)
                return value * float("nan"), entropies

            self.loss = not_a_number
        return original(self, step, graded)

    monkeypatch.setattr(Trainer, "_update", poisoned)
    with pytest.raises(TrainingDivergedError, match="step 2: loss nan") as raised:
        train(replace(config, save_every=50))
    assert "\n" not in str(raised.value)
    saved_model = load_model(str(config.output_dir / "checkpoint_step_1"), torch.device("cpu"), torch.float32)
    assert all(bool(torch.isfinite(p).all()) for p in saved_model.parameters())
    assert list(read(config.output_dir / "run_log.json")["steps"]) == ["0", "1"]


def test_so_large_a_step_that_the_next_logits_overflow_is_said_with_its_step(config):
    with pytest.raises(TrainingDivergedError, match="step 2") as raised:
        train(replace(config, learning_rate=1e30))
    assert "\n" not in str(raised.value)


def test_a_model_that_is_not_finite_is_refused(config, tmp_path):
    model = untrained()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    name = saved(tmp_path / "nan", model)
    with pytest.raises((NotFiniteError, InputError), match="finite") as raised:
        train(replace(config, model_name=name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_name": "./absent"}, MissingInputError, "model ./absent: no such folder"),
        ({"use_vllm": True}, InputError, "--use_vllm"),
        ({"max_prompt_length": 2}, InputError, "--max_prompt_length 2 leaves 0 of 20 problems, a step needs 3; raise it"),
        ({"use_liger": True}, MissingDependencyError, "--use_liger needs liger-kernel"),
        ({"use_wandb": True}, MissingDependencyError, "--use_wandb needs wandb"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_run_behind(config, monkeypatch, changes, error, message):
    for extra in ("liger_kernel", "liger_kernel.chunked_loss", "wandb"):
        monkeypatch.setitem(sys.modules, extra, None)  # as if it were not installed
    with pytest.raises(error, match=message) as raised:
        train(replace(config, **changes))
    assert "\n" not in str(raised.value)
    assert not (config.output_dir / "config.json").exists()


def test_a_place_that_cannot_be_written_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write") as raised:
        train(replace(config, output_dir=tmp_path / "file" / "run"))
    assert "\n" not in str(raised.value)


def test_a_problem_that_comes_twice_in_a_step_is_answered_anew(config):
    # The last problem of one epoch may be the first of the next. The same random numbers would count one group double.
    problems = load_problems(config.problems, "train", 3, 3)
    seed = next(seed for seed in range(99) if len(set(problems_of_step(problems, 2, 2, seed))) == 1)
    shared = {"seed": seed, "train_size": 3, "gradient_accumulation_steps": 2, "num_train_iters": 2, "num_chains": 8}
    train(replace(config, **shared))
    rows = [row for row in Journal(config.output_dir / "completions.jsonl").read() if row["step"] == 2]
    answers = [(row["problem"]["problem"], [c["token_ids"] for c in row["completions"]]) for row in rows]
    assert len(answers) == 2
    assert answers[0] != answers[1]
