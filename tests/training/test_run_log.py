"""The files of a run directory: their shapes, what they cost, and whose folder is whose."""

from dataclasses import fields, replace

import pytest
from small_pipeline import graded_problem, saved, untrained
from training_runs import completions, files_of, metrics, read

from steerlift.records.errors import InputError
from steerlift.records.runs import Journal
from steerlift.training.checkpoints import saved_steps
from steerlift.training.config import TrainConfig
from steerlift.training.run_log import RunLog
from steerlift.training.train import train

GENERATION = {"text", "extracted_answer", "correct", "format_reward", "total_reward"}
EXAMPLE = {
    "prompt", "question", "target_answer", "problem_type", "completions", "num_correct", "pass_at_2", "avg_format_reward",
}  # fmt: skip
FILES = [
    "checkpoint_step_2", "checkpoint_step_3", "completions.jsonl", "config.json", "eval_completions.jsonl",
    "eval_summary.json", "metrics.jsonl", "run_log.json",
]  # fmt: skip
MODEL = {
    "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def test_a_run_leaves_its_files_in_the_originals_shapes(finished):
    folder = finished.output_dir
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert {path.name for path in (folder / "checkpoint_step_2").iterdir()} == MODEL
    # Only the last is gone on from.
    assert {path.name for path in (folder / "checkpoint_step_3").iterdir()} == MODEL | {"training_state.safetensors"}

    log = read(folder / "run_log.json")
    assert set(log) == {"args", "steps"}
    assert set(log["args"]) == {field.name for field in fields(TrainConfig)} - {"resume", "overwrite"}
    assert log["args"]["output_dir"] == str(folder)
    assert log["args"]["pass_at_k"] == [2, 1]
    assert list(log["steps"]) == ["0", "1", "2", "3"]
    assert [sorted(step) for step in log["steps"].values()] == [["eval"], ["train"], ["eval", "train"], ["eval", "train"]]
    for step, line in zip(("1", "2", "3"), metrics(folder), strict=True):
        entry, first = log["steps"][step]["train"], completions(folder, int(step))[0]
        assert set(entry) == {"prompt", "question", "target_answer", "problem_type", "generations", "loss", "lr"}
        assert (entry["loss"], entry["lr"]) == (line["loss"], line["lr"])
        assert (entry["question"], entry["problem_type"]) == (first["problem"]["problem"], "Sums_level_1")
        assert [g["text"] for g in entry["generations"]] == [c["text"] for c in first["completions"]]
        assert [g["total_reward"] for g in entry["generations"]] == first["rewards"]
        assert all(set(generation) == GENERATION for generation in entry["generations"])
    summary = read(folder / "eval_summary.json")
    assert list(summary) == ["0", "2", "3"]
    for step, numbers in summary.items():
        evaluation = log["steps"][step]["eval"]
        assert set(evaluation) == {"examples", "metrics"}
        assert evaluation["metrics"] == numbers
        assert {"pass_at_2", "avg_format_reward", "num_eval_problems"} <= set(numbers)
        rows = [row for row in Journal(folder / "eval_completions.jsonl").read() if row["step"] == int(step)]
        assert [e["question"] for e in evaluation["examples"]] == [row["problem"]["problem"] for row in rows]
        assert all(set(example) == EXAMPLE and len(example["completions"]) == 3 for example in evaluation["examples"])
    written = read(folder / "config.json")
    assert {name: written[name] for name in log["args"]} == log["args"]
    assert written["provenance"]["seed"] == 3


def test_evaluations_and_steps_are_written_when_they_are_made(config):
    """A run that is killed between two checkpoints keeps them."""
    log = RunLog(config, "cpu")
    for step in (0, 1, 2):
        log.evaluation(step, [graded_problem(right=step, count=4)])
        assert list(read(config.output_dir / "eval_summary.json")) == [str(done) for done in range(step + 1)]
        assert len(Journal(config.output_dir / "eval_completions.jsonl").read()) == step + 1
        log.train_step(step + 1, [graded_problem(1, 2)] * 3, [[1.2, 0.2]] * 3, {"loss": 0.5, "lr": 0.1})
        assert len(metrics(config.output_dir)) == step + 1
        assert len(completions(config.output_dir, step + 1)) == 3


def test_a_save_costs_no_more_the_longer_a_run_is(config):
    log, path = RunLog(config, "cpu"), config.output_dir / "run_log.json"
    graded = [graded_problem(right=2, count=8)] * 4
    written: dict[int, int] = {}
    seen = 0
    for step in range(1, 65):
        log.train_step(step, graded, [[1.2, 0.2] * 4] * 4, {"loss": 0.5, "lr": 0.1})
        if step % 16 == 0:
            log.evaluation(step, graded)
        log.checkpoint(step)
        if path.stat().st_mtime_ns != seen:
            seen = path.stat().st_mtime_ns
            written[step] = path.stat().st_size
            # What is there is whole: everything up to here.
            assert list(read(path)["steps"]) == [str(done) for done in range(1, step + 1)]
    assert list(written) == [1, 2, 4, 8, 16, 32, 64]
    assert sum(written.values()) < 2.5 * path.stat().st_size
    log.close()
    assert len(read(path)["steps"]["64"]["train"]["generations"]) == 8
    assert set(read(path)["steps"]["64"]) == {"train", "eval"}


def test_the_sum_of_rewards_is_in_the_log_and_beside_the_completions(config):
    rewards = ("steerlift.scoring.rewards:math_reward", "training_rewards:by_token")
    train(replace(config, num_train_iters=1, rewards=rewards))
    first, *others = completions(config.output_dir)
    assert len(others) == 2
    sums = [
        completion["correct"] + (0.2 if completion["format_ok"] else -0.5) + completion["token_ids"][0] / 100
        for completion in first["completions"]
    ]
    assert first["rewards"] == pytest.approx(sums)
    generations = read(config.output_dir / "run_log.json")["steps"]["1"]["train"]["generations"]
    assert [generation["total_reward"] for generation in generations] == first["rewards"]
    (line,) = metrics(config.output_dir)
    everything = [value for row in completions(config.output_dir) for value in row["rewards"]]
    assert line["reward"] == pytest.approx(sum(everything) / 12, abs=1e-6)


def test_another_runs_folder_is_refused_and_overwrite_starts_over(config):
    train(replace(config, num_train_iters=1))
    folder = config.output_dir
    (folder / "notes.txt").write_text("my own")
    (folder / ".metrics.jsonl.half").write_text("left by a kill")
    (folder / ".checkpoint_step_9.half").mkdir()
    before = files_of(folder)
    with pytest.raises(InputError) as raised:
        train(config)
    assert str(raised.value) == (
        f"{folder} holds another run; name another --output_dir, pass --resume to go on with it, or --overwrite to start over"
    )
    assert files_of(folder) == before
    train(replace(config, overwrite=True))
    assert len(metrics(folder)) == 3
    assert (folder / "notes.txt").read_text() == "my own"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("mode", ["", "resume"])
def test_a_run_of_the_original_is_not_deleted_unasked(config, mode):
    # It has no config.json of its own; its default output folder is ours.
    saved(config.output_dir / "checkpoint_step_50", untrained())
    (config.output_dir / "run_log.json").write_text("{}")
    before = files_of(config.output_dir)
    with pytest.raises(InputError, match="holds another run; name another --output_dir, or --overwrite to start over"):
        train(replace(config, resume=mode == "resume"))
    assert files_of(config.output_dir) == before
    RunLog(replace(config, overwrite=True), "cpu")
    assert saved_steps(config.output_dir) == []


def test_overwrite_does_not_destroy_a_model_that_is_no_run(config, tmp_path):
    folder = tmp_path / "model"
    saved(folder, untrained())
    before = files_of(folder)
    with pytest.raises(InputError, match=f"{folder} holds a model, not a run; name another --output_dir"):
        train(replace(config, model_name=str(folder), output_dir=folder, overwrite=True))
    assert files_of(folder) == before


def test_overwrite_does_not_delete_the_model_that_it_is_to_train(config):
    log = RunLog(config, "cpu")
    model = saved(config.output_dir / "checkpoint_step_3", untrained())
    before = files_of(log.folder)
    with pytest.raises(InputError, match=f"--overwrite would delete --model_name {model}; name another --output_dir"):
        train(replace(config, model_name=model, overwrite=True))
    assert files_of(log.folder) == before


def test_a_place_that_cannot_be_written_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write") as raised:
        train(replace(config, output_dir=tmp_path / "file" / "run"))
    assert "\n" not in str(raised.value)
