"""`steerlift train` as people type it: rewards of their own, runs that are killed, and mistakes that show only when it runs."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import psutil
import pytest
import torch
import transformers
from launched import environment, launch
from limits import limit_file_size
from small_pipeline import problem_file, saved, tokenizer, trained, untrained

from steerlift.commands.main import main
from steerlift.records.runs import Journal
from steerlift.training.checkpoints import checkpoint_path, resumable_step, saved_steps

SMALL = {
    "train_size": 20, "eval_size": 4, "seed": 3, "num_train_iters": 3, "gradient_accumulation_steps": 3, "num_chains": 4,
    "learning_rate": 2e-3, "max_grad_norm": 1.0, "temperature": 1.0, "max_completion_length": 12, "eval_every": 2,
    "save_every": 2, "num_completions_eval": 3, "dtype": "float32", "output_dir": "run", "problems": "problems.jsonl",
}  # fmt: skip
REWARDS = """
import resource
import psutil

calls = 0
taken = []

def length(graded):
    return [len(c.token_ids) / 10 for c in graded.completions]

def half(graded):
    return [0.5 * g.correct for g in graded.grades]

def overflowing(graded):
    global calls
    calls += 1
    return [1e39 if calls > 3 and place == 0 else g.correct for place, g in enumerate(graded.grades)]

def taking_all_memory(graded):
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, resource.RLIM_INFINITY))
    # What was freed before is kept for the next tensor, and would do for a small update.
    try:
        while True:
            taken.append(bytearray(2**24))
    except MemoryError:
        return [place for place, _ in enumerate(graded.grades)]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    saved(root / "base", trained("base"))
    saved(root / "untrained", untrained())
    problem_file(root)
    (root / "my_rewards.py").write_text(REWARDS)
    return root


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch) -> Path:
    """The working directory of somebody with two models, problems and rewards."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(**changes: object) -> list[str]:
    options = {"model_name": "./base", **SMALL, **changes}
    parts = []
    for name, value in options.items():
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        parts += [f"--{name}", *map(str, values)]
    return parts


@pytest.fixture
def command(folder, monkeypatch):
    """Runs `steerlift train` in a child of this process: exit code and what it said."""

    def run(before=lambda: None, **changes: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["steerlift", "train", *arguments(**changes)])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        said = folder / "said"
        said.unlink(missing_ok=True)
        code = children.wait(children.start(lambda: before() or main(), said))
        return code, said.read_text().splitlines()

    return run


def read(path: Path):
    return json.loads(path.read_text())


def assert_refused(outcome: tuple[int, list[str]], *parts: str) -> None:
    """Exit code 2, and one line says why: the last."""
    code, lines = outcome
    assert code == 2, lines
    assert [line for line in lines if line.startswith(("error:", "Traceback"))] == lines[-1:], lines
    assert all(part in lines[-1] for part in parts), lines[-1]


def test_rewards_of_a_module_beside_the_run_are_added_up(command, folder):
    code, lines = command(rewards=("my_rewards:length", "my_rewards:half"), num_train_iters=1)
    assert code == 0, lines
    rows = Journal(folder / "run" / "completions.jsonl").read()
    assert len(rows) == 3
    for row in rows:
        expected = [len(c["token_ids"]) / 10 + 0.5 * c["correct"] for c in row["completions"]]
        assert row["rewards"] == pytest.approx(expected)
    generations = read(folder / "run" / "run_log.json")["steps"]["1"]["train"]["generations"]
    assert [generation["total_reward"] for generation in generations] == rows[0]["rewards"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_name": "./absent"}, ["model ./absent: no such folder"]),
        ({"model_name": "./empty"}, ["model ./empty: a folder without config.json"]),
        ({"model_name": "./nan"}, ["its logits are not finite; its weights are damaged"]),
        ({"num_chains": 1}, ["--num_chains 1: expected at least 2"]),
        ({"gradient_accumulation_steps": 30}, ["--gradient_accumulation_steps 30 with --train-size 20"]),
        (
            {"gradient_accumulation_steps": 30, "train_size": 40},
            ["--gradient_accumulation_steps 30: problems.jsonl has 28 training problems, a step cannot take more; lower it"],
        ),
        ({"output_dir": "problems.jsonl/run"}, ["cannot write problems.jsonl/run"]),
        ({"rewards": ("my_rewards:none",)}, ["reward my_rewards:none: module my_rewards has no none"]),
        ({"rewards": ("nowhere:none",)}, ["reward nowhere:none: there is no module nowhere"]),
        ({"resume": True, "overwrite": True}, ["--resume goes on with a run and --overwrite deletes it"]),
        ({"lora_r": 2}, ["--lora_r needs peft: pip install 'steerlift[lora]'"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(command, folder, changes, parts):
    name = str(changes.get("model_name", "")).removeprefix("./")
    if name == "empty":
        (folder / name).mkdir()
    if name == "nan":
        save_damaged(folder / name)
    without_peft = (lambda: sys.modules.update(peft=None)) if "lora_r" in changes else (lambda: None)  # type: ignore[call-overload]
    assert_refused(command(without_peft, **changes), *parts)
    assert not checkpoint_path(folder / "run", 2).exists()
    assert name == "nan" or not (folder / "run").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["T5", "CLIP"])
def test_a_model_that_writes_no_text_is_one_line(command, folder, kind):
    size = {
        "T5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        "CLIP": {},
    }[kind]
    model = {"T5": "T5ForConditionalGeneration", "CLIP": "CLIPModel"}[kind]
    config = getattr(transformers, f"{kind}Config")(**size)
    getattr(transformers, model)(config).save_pretrained(folder / kind)
    tokenizer().save_pretrained(folder / kind)
    assert_refused(command(model_name=f"./{kind}"), f"model {kind}")
    assert not (folder / "run").exists()


def save_damaged(folder: Path) -> None:
    model = untrained()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    saved(folder, model)


@pytest.mark.e2e
def test_a_loss_that_is_no_number_names_its_step_and_what_is_kept(command, folder):
    outcome = command(rewards=("my_rewards:overflowing",), save_every=50)
    assert_refused(outcome, "error: step 2: loss nan", "the state before it is in run/checkpoint_step_1")
    assert resumable_step(folder / "run") == 1


ROOM = {"num_chains": 20_000, "batch_rows": 20_000, "max_completion_length": 20_000, "eval_max_completion_length": 4}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**ROOM, "num_completions_eval": 1}, "step 1, sampling: out of memory; lower --batch_rows or"),
        (
            {**ROOM, "num_chains": 2, "num_completions_eval": 20_000, "eval_max_completion_length": 20_000},
            "step 0, evaluation: out of memory; lower --batch_rows or",
        ),
        (
            {"rewards": ("my_rewards:taking_all_memory",), "num_chains": 256, "micro_batch_size": 768,
             "max_completion_length": 64, "model_name": "./untrained", "num_completions_eval": 1},
            "step 1, update: out of memory; lower --micro_batch_size or",
        ),
    ],
    ids=["sampling", "evaluation", "update"],
)  # fmt: skip
def test_too_little_memory_is_one_line_that_says_what_to_lower(command, changes, message):
    def little_memory() -> None:
        limit = psutil.Process().memory_info().vms + 500 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    before = little_memory if "batch_rows" in changes else lambda: None
    assert_refused(command(before, **changes), message, "--max_completion_length", "--resume goes on from the last checkpoint")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("most", "named"), [(60_000, "checkpoint run/checkpoint_step_2 cannot be written"), (2000, "cannot write run/")]
)
def test_a_full_disk_is_one_line(command, folder, most, named):
    assert_refused(command(lambda: limit_file_size(most), pass_at_k=(1, 2)), named, "make room")
    code, lines = command(resume=True, pass_at_k=(1, 2))
    assert code == 0, lines
    assert saved_steps(folder / "run") == [2, 3]


@pytest.mark.e2e
def test_a_killed_command_goes_on_to_the_same_run(command, folder):
    longer = {"num_train_iters": 8, "save_every": 1}
    options = arguments(**longer)
    code, lines = command(**longer, output_dir="whole")
    assert code == 0, lines
    rng = random.Random(1)
    for step in (1, 4):
        process = subprocess.Popen(
            [sys.executable, "-m", "steerlift", "train", *options, "--resume"],
            cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
        while process.poll() is None and not checkpoint_path(folder / "run", step).exists():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[1].decode()
        assert process.returncode == -signal.SIGKILL, said
    end = launch("-m", "steerlift", "train", *options, "--resume", cwd=folder)
    assert end.returncode == 0, end.stderr
    assert "resuming after step" in end.stderr
    last = "checkpoint_step_8"
    same = ("completions.jsonl", "eval_completions.jsonl", "eval_summary.json", f"{last}/model.safetensors")
    for name in (*same, f"{last}/training_state.safetensors"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
