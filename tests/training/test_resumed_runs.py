"""What --resume goes on with, what it refuses, and what may change on the way. Kills at any moment: test_killed_runs."""

import json
import shutil
from dataclasses import replace

import pytest
import training_rewards
from small_pipeline import saved, untrained
from training_runs import assert_same_run, files_of, metrics, read, weights

from steerlift.records.errors import InputError
from steerlift.records.runs import Journal
from steerlift.report.tables import print_training
from steerlift.training.checkpoints import checkpoint_path, resumable_step, saved_steps
from steerlift.training.train import train

INTERRUPTED = ("training_rewards:interrupted",)


@pytest.fixture(autouse=True)
def _no_calls_yet(monkeypatch):
    monkeypatch.setattr(training_rewards, "calls", [])


@pytest.fixture
def copied(finished, tmp_path):
    """A run that is done, to be changed."""
    shutil.copytree(finished.output_dir, tmp_path / "copied")
    return replace(finished, output_dir=tmp_path / "copied", resume=True)


def interrupt(config) -> None:
    """Stops the run within its third step."""
    with pytest.raises(KeyboardInterrupt):
        train(config)
    training_rewards.calls.extend([None] * 7)


def test_an_interrupted_run_goes_on_to_the_same_end(config, tmp_path):
    config = replace(config, rewards=INTERRUPTED)
    interrupt(config)
    assert saved_steps(config.output_dir) == [2]
    # As a kill would: in the middle of a line, of a file and of a checkpoint, and after the next step's completions.
    with (config.output_dir / "completions.jsonl").open("a") as file:
        file.write('{"step": 3, "rewards": []}\n{"step": 3, "rew')
    (config.output_dir / ".eval_summary.json.half.json").write_text("{")
    shutil.copytree(checkpoint_path(config.output_dir, 2), config.output_dir / ".checkpoint_step_3.half")
    train(replace(config, resume=True))
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    assert_same_run(config.output_dir, whole.output_dir)
    assert set(files_of(config.output_dir)) == {*files_of(whole.output_dir), "resumed.jsonl"}
    (line,) = Journal(config.output_dir / "resumed.jsonl").read()
    assert line["step"] == 2
    assert line["provenance"]["seed"] == 3


def test_without_a_run_it_starts_one(config, finished, capsys):
    train(replace(config, resume=True))
    assert f"no checkpoint in {config.output_dir} yet: starting from the beginning" in capsys.readouterr().err
    assert_same_run(config.output_dir, finished.output_dir)
    assert not (config.output_dir / "resumed.jsonl").exists()


@pytest.mark.e2e
def test_a_run_killed_before_its_first_checkpoint_starts_over(config, finished):
    interrupt(replace(config, rewards=INTERRUPTED, save_every=50))
    assert saved_steps(config.output_dir) == []
    assert len(metrics(config.output_dir)) == 2
    settings = config.output_dir / "config.json"
    settings.write_text(settings.read_text().replace(INTERRUPTED[0], config.rewards[0]))
    train(replace(config, resume=True))
    assert_same_run(config.output_dir, finished.output_dir)


@pytest.mark.e2e
def test_a_warm_up_without_a_later_checkpoint_is_gone_on_from(config, prepared, tmp_path, capsys):
    warm = {"problems": str(prepared / "solved.jsonl"), "sft_steps": 2, "sft_batch": 4, "num_train_iters": 3}
    config = replace(config, rewards=INTERRUPTED, save_every=50, **warm)
    interrupt(config)
    assert saved_steps(config.output_dir) == [0]
    capsys.readouterr()
    train(replace(config, resume=True))
    said = capsys.readouterr().err
    assert "resuming after step 0 of 3" in said
    assert "warm-up" not in said
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole)
    assert_same_run(config.output_dir, whole.output_dir)


@pytest.mark.parametrize("changes", [{}, {"lora_r": 2, "beta": 0.1, "num_iterations": 2}], ids=["weights", "lora"])
def test_a_warm_up_alone_can_be_gone_on_from(config, prepared, tmp_path, capsys, changes):
    warm = {"problems": str(prepared / "solved.jsonl"), "sft_steps": 2, "sft_batch": 4, **changes}
    alone = replace(config, num_train_iters=0, **warm)
    assert train(alone) == checkpoint_path(config.output_dir, 0)
    assert saved_steps(config.output_dir) == [0]
    assert list(read(config.output_dir / "eval_summary.json")) == ["0"]
    assert list(read(config.output_dir / "run_log.json")["steps"]) == ["0"]
    print_training(config.output_dir, checkpoint_path(config.output_dir, 0))
    names = ("checkpoint_step_0", "run_log.json", "eval_summary.json")
    assert capsys.readouterr().out.splitlines()[-3:] == [f"wrote {config.output_dir / name}" for name in names]
    # Nothing is left to do, so nothing is done again.
    before = files_of(config.output_dir)
    assert train(replace(alone, resume=True)) == checkpoint_path(config.output_dir, 0)
    after = files_of(config.output_dir)
    assert len(after.pop("resumed.jsonl").splitlines()) == 1
    assert after == before
    train(replace(alone, resume=True, num_train_iters=3))
    said = capsys.readouterr().err
    assert "going on with --num_train_iters 3 instead of 0" in said
    assert "resuming after step 0 of 3" in said
    assert not any(line.startswith(("warm-up", "evaluating step 0")) for line in said.splitlines())
    whole = replace(config, output_dir=tmp_path / "whole", **warm)
    train(whole)
    assert_same_run(config.output_dir, whole.output_dir)


def test_a_warm_up_that_was_killed_before_its_evaluation_is_made_again(config, prepared, tmp_path, capsys):
    warm = {"problems": str(prepared / "solved.jsonl"), "sft_steps": 2, "sft_batch": 4}
    alone = replace(config, num_train_iters=0, **warm)
    train(alone)
    (config.output_dir / "eval_summary.json").unlink()  # the last that an evaluation writes
    capsys.readouterr()
    train(replace(alone, resume=True, num_train_iters=3))
    assert f"no checkpoint in {config.output_dir} yet: starting from the beginning" in capsys.readouterr().err
    whole = replace(config, output_dir=tmp_path / "whole", **warm)
    train(whole)
    assert_same_run(config.output_dir, whole.output_dir)


def test_a_finished_run_ends_at_once_and_is_left_as_it_was(copied, capsys):
    before = files_of(copied.output_dir)
    assert train(copied) == checkpoint_path(copied.output_dir, 3)
    after = files_of(copied.output_dir)
    assert len(after.pop("resumed.jsonl").splitlines()) == 1
    # The folder's name is one of the options.
    old, new = (json.loads(files.pop("run_log.json")) for files in (before, after))
    assert new == {**old, "args": {**old["args"], "output_dir": str(copied.output_dir)}}
    assert after == before
    assert "evaluating step" not in capsys.readouterr().err


def test_a_finished_run_can_be_made_longer_at_another_rate(copied, capsys):
    train(replace(copied, num_train_iters=5, learning_rate=1e-3))
    said = capsys.readouterr().err
    assert "going on with --learning_rate 0.001 instead of 0.002" in said
    assert "going on with --num_train_iters 5 instead of 3" in said
    assert "resuming after step 3 of 5" in said
    lines = metrics(copied.output_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[3]["lr"] == pytest.approx(1e-3 * (1 - 0.9 * 3 / 5))
    assert list(read(copied.output_dir / "eval_summary.json")) == ["0", "2", "3", "4", "5"]
    assert saved_steps(copied.output_dir) == [2, 3, 4, 5]
    assert resumable_step(copied.output_dir) == 5
    assert weights(copied.output_dir, 5)["model.norm.weight"].ne(weights(copied.output_dir, 3)["model.norm.weight"]).any()
    args = read(copied.output_dir / "run_log.json")["args"]
    assert (args["num_train_iters"], args["learning_rate"]) == (5, 1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"temperature": 0.5, "num_chains": 5}, {"pass_at_k": (1,)}, {"lora_r": 2}, {"beta": 0.1}, {"dtype": "mixed"}],
)
def test_other_options_are_refused_by_name(copied, changes):
    before = files_of(copied.output_dir)
    with pytest.raises(InputError) as raised:
        train(replace(copied, **changes))
    there = read(copied.output_dir / "config.json")
    named = {name: f"{name}: {there[name]} there, {list(v) if isinstance(v, tuple) else v} here" for name, v in changes.items()}
    text = ", ".join(named[name] for name in there if name in changes)
    assert str(raised.value) == (
        f"--resume: {copied.output_dir} is a run with other options ({text}); give the same, or --overwrite"
    )
    assert files_of(copied.output_dir) == before


@pytest.mark.parametrize("iterations", [2, 1])
def test_fewer_steps_than_are_done_are_refused(copied, iterations):
    before = files_of(copied.output_dir)
    with pytest.raises(InputError) as raised:
        train(replace(copied, num_train_iters=iterations))
    assert str(raised.value) == f"--num_train_iters {iterations}: {copied.output_dir} is at step 3 already; raise it"
    assert files_of(copied.output_dir) == before


def test_checkpoints_without_the_optimizers_state_are_not_thrown_away(copied):
    (checkpoint_path(copied.output_dir, 3) / "training_state.safetensors").unlink()
    before = files_of(copied.output_dir)
    with pytest.raises(InputError, match=f"--resume: no checkpoint in {copied.output_dir} holds the optimizer's state"):
        train(copied)
    assert files_of(copied.output_dir) == before


@pytest.mark.e2e
def test_only_as_many_checkpoints_as_asked_stay(config, prepared):
    warm = {"problems": str(prepared / "solved.jsonl"), "sft_steps": 1, "sft_batch": 4}
    train(replace(config, save_every=1, keep_checkpoints=1, **warm))
    assert saved_steps(config.output_dir) == [0, 3]
    # Of a run that was long with many, a shorter tail may be kept from here on.
    train(replace(config, save_every=1, keep_checkpoints=2, num_train_iters=5, resume=True, **warm))
    assert saved_steps(config.output_dir) == [0, 4, 5]


def test_a_model_in_the_folder_is_no_checkpoint(config):
    saved(config.output_dir / "checkpoint_step_final", untrained())
    assert saved_steps(config.output_dir) == []
