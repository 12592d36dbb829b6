"""Several processes, as `accelerate launch` and torchrun start them: the run of one process, and one that writes it."""

import sys
from dataclasses import replace

import children
import pytest
import torch
from launched import MAIN, ROOT, flags, launch
from training_runs import assert_close_runs, assert_close_tensors, files_of, read
from transformers import AutoModelForCausalLM

from steerlift.commands.main import run_verb
from steerlift.records.runs import Journal
from steerlift.steering.models import load_model
from steerlift.training.checkpoints import adapter_path, checkpoint_path, load_training_state
from steerlift.training.train import train

ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2")
# Port 0 is any free one: another test may launch at the same time.
FSDP2 = (*ACCELERATE, "--config_file", str(ROOT / "recipes" / "fsdp2.yaml"), "--main_process_port", "0")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# One problem more on the first process than on the second; of the evaluation the second has none.
UNEVEN = {"gradient_accumulation_steps": 3, "eval_size": 1}


def assert_launched_as_one(config, *command: str) -> None:
    """`command` trains with the config's options as this process does, says so once and writes once."""
    done = launch(*command, MAIN, *flags(config))
    assert done.returncode == 0, done.stderr
    assert f"2 processes on cpu{', FSDP2' if command == FSDP2 else ''})" in done.stderr
    assert done.stderr.count("training: 3/3") == 1
    assert done.stdout.count("wrote") == 4
    assert_trained_as_one(config)


def assert_trained_as_one(config) -> None:
    """The run is that of one process."""
    alone = replace(config, output_dir=config.output_dir.with_name("alone"))
    train(alone)
    assert set(files_of(config.output_dir)) == set(files_of(alone.output_dir))
    assert_close_runs(config.output_dir, alone.output_dir)
    states = [load_training_state(run.output_dir, 3) for run in (config, alone)]
    assert_close_tensors(*states, 1e-5)


def logits(folder) -> torch.Tensor:
    model = load_model(str(folder), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        return model(torch.arange(2, 42).view(4, 10)).logits


@pytest.mark.e2e
def test_accelerate_launch_trains_adapters_as_one_process_does(config):
    config = replace(config, **UNEVEN, lora_r=4, beta=0.05, num_iterations=2)
    assert_launched_as_one(config, *ACCELERATE)
    folder = checkpoint_path(config.output_dir, 3)
    torch.testing.assert_close(logits(folder), logits(adapter_path(folder)), rtol=0, atol=1e-5)


@pytest.mark.e2e
def test_fsdp2_trains_as_one_process_does(config, prepared):
    solved = {"problems": str(prepared / "solved.jsonl"), "sft_steps": 2, "sft_batch": 3}
    # AdamW makes a step of the learning rate's size out of the rounding of a gradient near 0.
    config = replace(config, **UNEVEN, **solved, beta=0.05, device="cpu", learning_rate=2e-4)
    assert_launched_as_one(config, *FSDP2)
    AutoModelForCausalLM.from_pretrained(checkpoint_path(config.output_dir, 3))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("command", "changes"),
    [(TORCHRUN, {}), (FSDP2, {"lora_r": 4, "device": "cpu"})],
    ids=["torchrun", "fsdp2-lora"],
)
def test_two_processes_go_on_with_the_run_of_one(config, tmp_path, command, changes):
    # The rate does not depend on the number of steps, so that a longer run is the same run.
    config = replace(config, **UNEVEN, **changes, warmup_percent=0.0, final_lr_percent=1.0, num_train_iters=2)
    whole = replace(config, num_train_iters=4, output_dir=tmp_path / "whole")
    train(config)
    train(whole)
    done = launch(*command, MAIN, *flags(replace(config, num_train_iters=4, resume=True)))
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2 of 4" in done.stderr
    assert_close_runs(config.output_dir, whole.output_dir)
    (resumed,) = Journal(config.output_dir / "resumed.jsonl").read()
    assert resumed["step"] == 2
    assert resumed["provenance"]["device"] == f"2 processes on cpu{', FSDP2' if command == FSDP2 else ''}"
    assert read(config.output_dir / "config.json")["provenance"]["device"] == "cpu"


@pytest.fixture
def together(monkeypatch, tmp_path):
    """The command line on two processes, which have everything imported: the lines that both have said."""

    def run(config, code: int = 2) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["main.py", *flags(config)])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        said = [tmp_path / "said0", tmp_path / "said1"]
        codes = [children.wait(child) for child in children.start_two(lambda: run_verb("train"), said)]
        assert codes == [code] * 2, [path.read_text() for path in said]
        return [path.read_text().splitlines() for path in said]

    return run


@pytest.mark.e2e
@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "bnpo", "mask_truncated": True, "max_completion_length": 5, "num_chains": 8},
        {"loss_type": "grpo", "scale_rewards": True, "gradient_checkpointing": True, "micro_batch_size": 3},
        {"problems": "solved.jsonl", "sft_steps": 3, "sft_batch": 5, "micro_batch_size": 2},
    ],
    ids=["masked", "scaled", "warm"],
)
def test_two_processes_train_as_one_does(config, prepared, together, changes):
    if "problems" in changes:
        changes = {**changes, "problems": str(prepared / changes["problems"])}
    config = replace(config, **UNEVEN, **changes)
    together(config, code=0)
    assert_trained_as_one(config)


def test_more_processes_than_problems_are_refused_in_one_line(config, together):
    line = (
        "error: --gradient_accumulation_steps 1 on 2 processes: expected at least one problem for each, as a group stays on "
        "one; raise it"
    )
    assert together(replace(config, gradient_accumulation_steps=1)) == [[line], []]
    assert not config.output_dir.exists()


def test_what_stands_in_the_folder_stops_all_processes_in_one_line(config, finished, together):
    line = (
        f"error: {finished.output_dir} holds another run; name another --output_dir, pass --resume to go on with it, or "
        "--overwrite to start over"
    )
    assert together(finished) == [[line], []]


def test_a_number_of_a_device_is_refused_in_one_line(config, together):
    line = "error: --device cpu:0 names one device for several processes; leave the number out"
    assert together(replace(config, device="cpu:0")) == [[line], []]
