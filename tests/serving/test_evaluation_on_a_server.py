"""`steerlift evaluate --engine vllm` on the real server: what it samples, and what it leaves there."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lent_server import LentServer, local_model
from small_pipeline import TEXTS, saved, tokenizer, untrained

from steerlift.commands.main import run_verb
from steerlift.problems.prompt import encode_prompt
from steerlift.records.runs import Journal, completions_path
from steerlift.sampling.hand_over import weight_version
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.vectors import SteeringVectors

NO_VLLM = "vLLM is not installed: make test-serving"
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]

ARMS = {"base", "finetuned", "steered:0.5", "steered:2.0", "random:0.5", "random:2.0"}


def arguments(served: LentServer, output: Path, *more: str) -> list[str]:
    there = {
        "base_model_name": served.models / "base",
        "finetuned_checkpoint": served.models / "finetuned",
        "steering_vectors_path": served.models / "v.safetensors",
        "output_path": output,
        "problems": served.models / "problems.jsonl",
        "eval-size": 6,
        "num_completions_eval": 2,
        "max_completion_length": 12,
        "temperature": 0,
        "seed": 5,
    }
    parts = [part for name, value in there.items() for part in (f"--{name}", str(value))]
    return [*parts, "--weights", "0.5", "2.0", "--random_control", *more]


def evaluate(monkeypatch, *command: str) -> int:
    """`python eval_with_steering.py ...` in this process."""
    monkeypatch.setattr(sys, "argv", ["eval_with_steering.py", *command])
    return run_verb("evaluate")


def completions(output: Path) -> dict[tuple[str, str, int], list[list[int]]]:
    rows = Journal(completions_path(output)).read()[1:]
    answers = {(r["split"], r["arm"], r["index"]): [c["token_ids"] for c in r["completions"]] for r in rows}
    assert len(answers) == len(rows)
    return answers


def scores(output: Path) -> dict:
    results = json.loads(output.read_text())
    for name in ("settings", "provenance", "completions_file"):
        del results[name]
    return results


def assert_has_its_own_weights(served: LentServer) -> None:
    request = Request(tuple(encode_prompt(tokenizer(), TEXTS[0])), (0,))
    options = SamplingOptions(0.0, 12)
    name = served.client.info()["model"]
    [[there]] = RemoteSampler([served.client], name, tokenizer(), [tokenizer().eos_token_id]).sample([request], options)
    own, other = (
        LocalSampler(local_model(str(served.models / kind)), tokenizer()).sample([request], options)[0][0]
        for kind in ("base", "finetuned")
    )
    assert there.logprobs == pytest.approx(own.logprobs, abs=1e-5)
    assert there.logprobs != pytest.approx(other.logprobs, abs=1e-2)


@pytest.fixture
def local(served, tmp_path, monkeypatch) -> Path:
    """What the same evaluation says with everything sampled here."""
    output = tmp_path / "local.json"
    assert evaluate(monkeypatch, *arguments(served, output, "--dev_size", "3")) == 0
    return output


def test_greedy_results_are_those_of_the_local_engine(served, local, tmp_path, monkeypatch):
    """Two names of the one server stand for two servers: each gets vectors, weights, and half of the requests."""
    output = tmp_path / "there.json"
    servers = f"http://127.0.0.1:{served.port},http://localhost:{served.port}/"
    command = arguments(served, output, "--dev_size", "3", "--engine", "vllm", "--servers", servers)
    assert evaluate(monkeypatch, *command) == 0
    here, there = completions(local), completions(output)
    assert there == here
    chosen = json.loads(output.read_text())["chosen"]["weight"]
    assert {arm for split, arm, _ in there if split == "test"} == ARMS - {f"random:{w}" for w in (0.5, 2.0) if str(w) != chosen}
    assert scores(output) == scores(local)
    # The arms do differ, so each was sampled as what it is.
    arms = {arm: json.dumps([there["test", arm, index] for index in range(6)]) for _, arm, _ in there}
    assert len({arms[arm] for arm in ("base", "finetuned", "steered:2.0")}) == 3
    assert_has_its_own_weights(served)


def test_sampled_completions_depend_on_the_seed_alone(served, tmp_path, monkeypatch):
    runs = []
    for name in ("one", "two"):
        output = tmp_path / f"{name}.json"
        command = arguments(served, output, "--engine", "vllm", "--servers", f"http://127.0.0.1:{served.port}")
        assert evaluate(monkeypatch, *command, "--temperature", "1.0") == 0
        runs.append(completions(output))
    assert runs[0] == runs[1]
    assert len({json.dumps(ids) for answers in runs[0].values() for ids in answers}) > len(ARMS)


def test_a_killed_evaluation_goes_on_and_the_server_gets_its_own_weights_back(served, local, tmp_path, monkeypatch, capsys):
    output = tmp_path / "there.json"
    command = arguments(served, output, "--dev_size", "3", "--engine", "vllm")
    command += ["--servers", f"http://127.0.0.1:{served.port}"]
    with subprocess.Popen([sys.executable, "-m", "steerlift", "evaluate", *command], stderr=subprocess.PIPE) as process:
        while "finetuned" not in weight_version(served.client):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.kill()
    before = completions_path(output).read_bytes()
    assert b'"base"' in before
    assert not output.exists()
    assert "finetuned" in weight_version(served.client)

    # Another weight has to be sampled from the base again.
    again = [*command, "--weights", "0.5", "2.0", "1.0"]
    assert evaluate(monkeypatch, *again) == 0
    assert completions_path(output).read_bytes().startswith(before)
    assert "weights of" in capsys.readouterr().err
    more = tmp_path / "more.json"
    assert evaluate(monkeypatch, *arguments(served, more, "--dev_size", "3"), "--weights", "0.5", "2.0", "1.0") == 0
    assert completions(output) == completions(more)
    assert_has_its_own_weights(served)


def test_a_model_trained_anew_in_its_folder_is_lent_anew(served, tmp_path, monkeypatch):
    """Its base is another than the server has started with: it is lent that too, and keeps it until somebody wants its own."""
    base = saved(tmp_path / "model", local_model(str(served.models / "finetuned")))
    there = ("--engine", "vllm", "--servers", f"http://127.0.0.1:{served.port}", "--base_model_name", base)
    assert evaluate(monkeypatch, *arguments(served, tmp_path / "one.json", *there)) == 0
    saved(tmp_path / "model", local_model(str(served.models / "random")))
    assert evaluate(monkeypatch, *arguments(served, tmp_path / "two.json", *there)) == 0
    assert evaluate(monkeypatch, *arguments(served, tmp_path / "here.json", "--base_model_name", base)) == 0
    one, two, here = (completions(tmp_path / f"{name}.json") for name in ("one", "two", "here"))
    assert two == here != one


def test_the_finetuned_model_may_have_servers_of_its_own(served, local, tmp_path, monkeypatch):
    output = tmp_path / "there.json"
    servers = ("--servers", f"http://127.0.0.1:{served.port}", "--finetuned_servers", f"http://localhost:{served.port}")
    assert evaluate(monkeypatch, *arguments(served, output, "--dev_size", "3", "--engine", "vllm", *servers)) == 0
    assert completions(output) == completions(local)
    assert_has_its_own_weights(served)


def test_a_server_of_another_model_is_refused_in_one_line(served, tmp_path, monkeypatch, capsys):
    other = saved(tmp_path / "other", untrained(hidden_size=128, layers=1))
    renamed = saved(tmp_path / "renamed", local_model(str(served.models / "base")))
    tokens = tokenizer().__class__.from_pretrained(renamed)
    tokens.add_tokens(["zzz"])
    tokens.save_pretrained(renamed)
    one_layer = str(SteeringVectors({0: torch.ones(128)}).save(tmp_path / "one_layer.safetensors"))
    others = ("--base_model_name", other, "--finetuned_checkpoint", other, "--steering_vectors_path", one_layer)
    for changes, reason in [
        (others, "has architecture qwen2, 2 layers"),
        (("--base_model_name", renamed), "has tokenizer_digest"),
        (("--dtype", "bfloat16"), "has dtype float32"),
    ]:
        output = tmp_path / "refused.json"
        command = arguments(served, output, "--engine", "vllm", "--servers", f"http://127.0.0.1:{served.port}", *changes)
        assert evaluate(monkeypatch, *command, "--overwrite") == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: http://127.0.0.1:{served.port} {reason}")
        assert "; start the server with that model" in line
        assert not output.exists()
