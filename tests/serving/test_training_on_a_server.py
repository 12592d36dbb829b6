"""Training that samples on the real vLLM: its weights are there after every step, whatever happens to the server."""

import importlib.util
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch
from lent_server import FLAGS, LentServer, local_model, untied
from links import link_to
from server_processes import STOP_SECONDS, free_port, start_server, wait_until_ready
from small_pipeline import problem_file, saved, tokenizer, untrained

from steerlift.commands.main import run_verb
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.records.runs import Journal
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids, sample_tasks
from steerlift.sampling.sampler import SamplingOptions
from steerlift.sampling.server import Server
from steerlift.serving.private import private_folder, read_key
from steerlift.training.checkpoints import checkpoint_path, saved_steps
from steerlift.training.config import TrainConfig
from steerlift.training.train import train

NO_VLLM = "vLLM is not installed: make test-serving"
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]

SMALL_GAP = 1e-5
EVERY_STEP = {"eval_every": 1, "eval_temperature": 0.0, "num_completions_eval": 1, "save_every": 1}
# The prompts begin alike, for longer than a block of vLLM's cache.
LONG_PROMPTS = {"few_shot": 8, "max_prompt_length": 400}


@pytest.fixture
def config(served, tmp_path) -> TrainConfig:
    return small_run(served.models, served.port, tmp_path / "run")


def small_run(models: Path, port: int, output_dir: Path) -> TrainConfig:
    """A random model, whose greedy answers change with every step."""
    return TrainConfig(
        model_name=str(models / "random"),
        output_dir=output_dir,
        problems=str(models / "solved.jsonl"),
        train_size=20,
        eval_size=4,
        seed=3,
        num_train_iters=5,
        gradient_accumulation_steps=3,
        num_chains=4,
        learning_rate=2e-3,
        max_grad_norm=1.0,
        temperature=0.8,
        max_completion_length=12,
        rewards=("lent_server:reward_by_token",),
        eval_every=2,
        num_completions_eval=2,
        save_every=50,
        use_vllm=True,
        vllm_port=port,
        vllm_patience=120,
        dtype="float32",
    )


def undisturbed(served: LentServer) -> TrainConfig:
    """A run of the same options that nothing happened to, made once."""
    config = small_run(served.models, served.port, served.models / "undisturbed")
    if not config.output_dir.exists():
        train(config)
    return config


def rows(config: TrainConfig, name: str) -> list[dict]:
    return list(Journal(config.output_dir / f"{name}.jsonl").read())


def run_command(config: TrainConfig, monkeypatch) -> int:
    """`python main.py ...` in this process."""
    parts = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            parts += [f"--{field.name}", *map(str, values)]
    monkeypatch.setattr(sys, "argv", ["main.py", *parts])
    return run_verb("train")


def assert_every_step_once(config: TrainConfig) -> None:
    steps = list(range(1, config.num_train_iters + 1))
    assert [row["step"] for row in rows(config, "metrics")] == steps
    count = config.gradient_accumulation_steps
    assert [row["step"] for row in rows(config, "completions")] == [step for step in steps for _ in range(count)]
    evaluated = [step for step in [0, *steps] if step % config.eval_every == 0 or step == steps[-1]]
    assert [row["step"] for row in rows(config, "eval_completions")] == [s for s in evaluated for _ in range(config.eval_size)]


def assert_small_gaps(config: TrainConfig) -> None:
    for row in rows(config, "metrics"):
        assert 0 < row["logprob_gap"] < SMALL_GAP, row["step"]
        assert row["importance_capped_rate"] == 0.0


def gap_to(model, config: TrainConfig) -> float:
    """The mean |difference| between a model's logprobs and those that the last step would have here, with that model."""
    last = local_model(str(checkpoint_path(config.output_dir, config.num_train_iters)))
    differences = []
    for row in rows(config, "completions")[-config.gradient_accumulation_steps :]:
        prompt = prompt_ids(tokenizer(), row["prompt"])
        for completion in row["completions"]:
            ids = torch.tensor([[*prompt, *completion["token_ids"]]])
            with torch.no_grad():
                one, other = ((m(ids).logits[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1) for m in (model, last))
            chosen = ids[0, len(prompt) :, None]
            differences.append((one.gather(1, chosen) - other.gather(1, chosen)).abs().mean())
    return float(torch.stack(differences).mean())


@pytest.mark.parametrize(
    "changes",
    [{}, {**LONG_PROMPTS, "beta": 0.05}, {"num_iterations": 2}, {"lora_r": 8, "learning_rate": 2e-2}],
    ids=["plain", "long prompts", "two updates", "lora"],
)
def test_the_server_has_the_trainers_weights_at_every_step(config, changes):
    config = replace(config, **EVERY_STEP, **changes)
    train(config)
    assert_every_step_once(config)
    assert_small_gaps(config)
    # Weights of a step before would have shown.
    assert gap_to(local_model(str(checkpoint_path(config.output_dir, config.num_train_iters - 1))), config) > 100 * SMALL_GAP

    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed)
    problems = load_problems(config.problems, "test", config.eval_size, config.seed)
    options = SamplingOptions(0.0, config.max_completion_length)
    texts = set()
    for step in range(config.num_train_iters + 1):
        name = config.model_name if step == 0 else str(checkpoint_path(config.output_dir, step))
        sampler = LocalSampler(local_model(name), tokenizer())
        tasks = [Task(problem, 1, config.seed) for problem in problems]
        expected = sample_tasks(sampler, tokenizer(), tasks, options, few_shot=few_shot)
        got = [row for row in rows(config, "eval_completions") if row["step"] == step]
        assert [row["prompt"] for row in got] == [problem.prompt for problem in expected]
        ids = [row["completions"][0]["token_ids"] for row in got]
        assert ids == [list(problem.completions[0].token_ids) for problem in expected], step
        texts.add(json.dumps(ids))
        if few_shot:
            assert all(len(prompt_ids(tokenizer(), row["prompt"])) > 128 for row in got)
    assert len(texts) > 1


def test_a_run_is_the_same_again_and_leaves_nothing_in_memory(config, served):
    config = replace(config, num_train_iters=2)
    train(config)
    again = replace(config, output_dir=config.output_dir.parent / "again")
    train(again)
    ids = [
        [completion["token_ids"] for row in rows(run, name) for completion in row["completions"]]
        for run in (config, again)
        for name in ("completions", "eval_completions")
    ]
    assert ids[:2] == ids[2:]
    assert list(served.folder.parent.glob(f"steerlift-weights-{os.getpid()}-*")) == []
    assert list((served.folder / "weights").iterdir()) == []  # nor what a killed evaluation was handing over


# Of a run with 12 completions a step and 8 an evaluation: in the middle of the first step, of step 4, of the evaluation after
# step 2 and of that at the end; while a step's weights are on their way nothing is asked for.
@pytest.mark.parametrize(
    ("cut_at", "done", "saved"),
    [(13, 0, []), (8 + 24 + 8 + 12 + 7, 3, [3]), (8 + 24 + 3, 2, [2]), (8 + 24 + 8 + 24 + 8 + 12 + 1, 5, [5])],
    ids=["first step", "step 4", "evaluation of step 2", "last evaluation"],
)
def test_a_server_that_is_gone_stops_the_run_and_no_step_is_lost(config, served, cut_at, done, saved, monkeypatch, capsys):
    whole = undisturbed(served)
    with link_to(served.port) as link:
        config = replace(config, vllm_port=link.port, vllm_patience=1)
        link.cut_at = cut_at
        assert run_command(config, monkeypatch) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith(f"error: after step {done}: http://127.0.0.1:{link.port}/")
        assert said[-1].endswith("waited 1 s for it to come back; --resume goes on from the last checkpoint")
        assert sum("trying again in" in line for line in said) >= 1
        assert saved_steps(config.output_dir) == saved
        assert [row["step"] for row in rows(config, "metrics")] == list(range(1, done + 1))
        link.mend()
        assert run_command(replace(config, resume=True), monkeypatch) == 0
    assert_every_step_once(config)
    assert_small_gaps(config)
    for name in ("completions", "eval_completions"):
        ids = [[c["token_ids"] for row in rows(run, name) for c in row["completions"]] for run in (config, whole)]
        assert ids[0] == ids[1]


def test_a_link_that_breaks_for_a_moment_changes_nothing(config, served, capsys):
    whole = undisturbed(served)
    with link_to(served.port) as link, ThreadPoolExecutor(1) as pool:
        config = replace(config, vllm_port=link.port)
        link.cut_at = 8 + 24 + 8 + 5  # step 3
        run = pool.submit(train, config)
        while link.cut_at is not None:
            assert not run.done() or run.result()
            time.sleep(0.01)
        link.mend()
        run.result()
    assert "trying again in 1 s" in capsys.readouterr().err
    assert_every_step_once(config)
    ids = [[c["token_ids"] for row in rows(run, "completions") for c in row["completions"]] for run in (config, whole)]
    assert ids[0] == ids[1]


def test_a_server_that_is_killed_and_comes_back_gets_the_weights_anew(tmp_path, capsys):
    """On a server of its own, with an untied model: the head is handed over too."""
    folder = tmp_path / "server"
    folder.mkdir()
    model = saved(folder / "model", untied())
    port = free_port()
    process = start_server(folder, port, *FLAGS, model=model)
    try:
        wait_until_ready(port, process, folder)
        changes = {"num_train_iters": 8, "num_chains": 8, "max_completion_length": 60, "learning_rate": 1e-3}
        problem_file(tmp_path, solution="7")
        config = replace(small_run(tmp_path, port, tmp_path / "run"), model_name=model, vllm_patience=600, **changes)
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(train, config)
            wait_until_sampling(run, port, config, after=3)
            kill(process)
            assert not run.done()
            process = start_server(folder, port, *FLAGS, model=model)
            run.result()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    said = capsys.readouterr().err
    assert f"http://127.0.0.1:{port}" in said
    assert "trying again in 1 s" in said
    assert_every_step_once(config)
    assert_small_gaps(config)
    assert gap_to(local_model(model), config) > 100 * SMALL_GAP
    assert not private_folder(port).exists()


def wait_until_sampling(run, port: int, config: TrainConfig, after: int) -> None:
    """Until the server answers requests of a step later than `after`."""
    server = Server(f"http://127.0.0.1:{port}", read_key(private_folder(port)))
    try:
        while True:
            assert not run.done() or run.result()
            metrics = config.output_dir / "metrics.jsonl"
            if metrics.exists() and len(metrics.read_text().splitlines()) >= after:
                lines = server.request("GET", "/metrics").text.splitlines()
                if any(line.startswith("vllm:num_requests_running{") and float(line.split()[-1]) > 0 for line in lines):
                    return
            time.sleep(0.01)
    finally:
        server.close()


def kill(process) -> None:
    """kill -9, all of it at once, as a machine that runs out of memory does."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family[1:], timeout=10)


def test_another_model_tokenizer_or_number_format_is_refused(config, tmp_path, monkeypatch, capsys):
    other_tokens = tokenizer().__class__.from_pretrained(config.model_name)
    other_tokens.add_tokens(["zzz"])
    shorter = saved(tmp_path / "shorter", untrained(hidden_size=128, layers=1))
    renamed = saved(tmp_path / "renamed", local_model(config.model_name))
    other_tokens.save_pretrained(renamed)
    for number, (changes, reason) in enumerate(
        [
            ({"model_name": shorter}, "has architecture qwen2, 2 layers, hidden size 128, "),
            ({"model_name": renamed}, "has tokenizer_digest "),
            ({"dtype": "bfloat16"}, "has dtype float32, training has bfloat16; "),
        ]
    ):
        refused = replace(config, output_dir=tmp_path / str(number), **changes)
        assert run_command(refused, monkeypatch) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --use_vllm: http://127.0.0.1:{config.vllm_port} {reason}")
        assert line.endswith("; start the server with the model that is trained and the same --dtype")
