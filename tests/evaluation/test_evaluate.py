import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_pipeline import RECIPE, problem_file, saved, tokenizer, trained, untrained

from steerlift.evaluation import evaluate as evaluate_module
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.evaluate import completions_path, evaluate
from steerlift.evaluation.results import arm_result
from steerlift.problems.load import load_problems
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import Journal
from steerlift.records.types import GradedProblem
from steerlift.report.results import load_results
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.vectors import SteeringVectors

# More entries than one, in an order of their own: a results file must not depend on how safetensors orders them.
METADATA = {"tokens": "completion", "method": "mean_difference", "seed": "3", "base_model": "b", "problems": "p", "a": "a"}


def some_vectors(scale: float = 0.2) -> SteeringVectors:
    torch.manual_seed(1)
    layers = {layer: scale * torch.randn(RECIPE.hidden_size) for layer in range(RECIPE.layers)}
    return SteeringVectors(layers, METADATA)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Models, vectors and problems; what a test changes of them it must copy."""
    root = tmp_path_factory.mktemp("prepared")
    for name in ("base", "finetuned"):
        saved(root / name, trained(name))
    some_vectors().save(root / "v.safetensors")
    problem_file(root)
    return root


@pytest.fixture
def config(prepared, tmp_path) -> EvaluateConfig:
    return EvaluateConfig(
        base_model_name=str(prepared / "base"),
        finetuned_checkpoint=str(prepared / "finetuned"),
        steering_vectors_path=prepared / "v.safetensors",
        output_path=tmp_path / "out" / "r.json",
        problems=str(prepared / "problems.jsonl"),
        eval_size=8,
        num_completions_eval=3,
        max_completion_length=12,
        temperature=1.0,
        seed=5,
        weights=(0.5, 1.0),
    )


@pytest.fixture
def no_sampling(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluate_module, "load_model", refuse)


def timeless(path: Path) -> str:
    """A results file without what differs between two runs: the date and the command line."""
    content = json.loads(path.read_text())
    del content["provenance"]["date"], content["provenance"]["command"]
    return json.dumps(content)


def graded(path: Path, split: str, arm: str) -> list[GradedProblem]:
    rows = [row for row in Journal(completions_path(path)).read()[1:] if (row["split"], row["arm"]) == (split, arm)]
    return [GradedProblem.from_row(row) for row in sorted(rows, key=lambda row: row["index"])]


def test_results_have_the_originals_shape_and_can_be_plotted(config):
    results = evaluate(config)
    assert json.loads(config.output_path.read_text()) == json.loads(json.dumps(results))
    assert set(results) == {
        "base_model", "finetuned_model", "base_with_steering", "settings", "vectors", "completions_file", "provenance",
    }  # fmt: skip
    assert list(results["base_with_steering"]) == ["0.5", "1.0"]
    for arm in (results["base_model"], results["finetuned_model"], *results["base_with_steering"].values()):
        assert {"pass_at_1", "avg_format_reward", "num_eval_problems", "examples"} <= set(arm)
        assert arm["num_eval_problems"] == len(arm["examples"]) == 8
    assert results["vectors"] == METADATA
    assert results["completions_file"] == "r.completions.jsonl"
    assert sorted(p.name for p in config.output_path.parent.iterdir()) == ["r.completions.jsonl", "r.json"]
    # The fine-tuned model nearly always knows the answer, the base half of the time at most.
    assert results["finetuned_model"]["pass_at_1"] > results["base_model"]["pass_at_1"] + 20
    assert load_results(config.output_path).problem_counts() == [8]


def test_settings_can_be_run_again(config):
    settings = evaluate(config)["settings"]
    paths = {name: Path(settings[name]) for name in ("output_path", "steering_vectors_path")}
    again = EvaluateConfig(**{**settings, **paths, "weights": tuple(settings["weights"])})
    assert again == config


def test_every_number_comes_from_the_completions_file(config):
    results = evaluate(config)
    base, finetuned = (graded(config.output_path, "test", arm) for arm in ("base", "finetuned"))
    assert results["base_model"] == arm_result(base, 1, config.seed)
    assert results["finetuned_model"] == arm_result(finetuned, 1, config.seed, base)
    for weight in (0.5, 1.0):
        steered = graded(config.output_path, "test", f"steered:{weight}")
        assert results["base_with_steering"][str(weight)] == arm_result(steered, 1, config.seed, base, finetuned)


def test_the_completions_are_those_of_each_model_at_each_weight(config):
    evaluate(config)
    problems = load_problems(config.problems, "test", config.eval_size, config.seed)
    options = SamplingOptions(config.temperature, config.max_completion_length)
    for arm, kind, weight in [("base", "base", 0.0), ("finetuned", "finetuned", 0.0), ("steered:1.0", "base", 1.0)]:
        sampler = LocalSampler(trained(kind), tokenizer(), some_vectors() if weight else None)
        expected = rollouts(sampler, tokenizer(), [Task(p, 3, config.seed, weight) for p in problems], options)
        assert [g.to_row() for g in graded(config.output_path, "test", arm)] == [g.to_row() for g in expected]


def test_the_weight_is_chosen_on_dev_and_the_control_runs_there_only(config):
    results = evaluate(replace(config, dev_size=4, random_control=True))
    chosen = results["chosen"]
    assert set(chosen) == {"weight", "num_dev_problems", "dev"}
    assert chosen["num_dev_problems"] == 4
    assert set(chosen["dev"]) == {"0.5", "1.0"}
    best = max(scores["pass_at_1"] for scores in chosen["dev"].values())
    assert chosen["dev"][chosen["weight"]]["pass_at_1"] == best
    assert list(results["random_control"]) == [chosen["weight"]]
    assert results["random_control"][chosen["weight"]]["num_eval_problems"] == 8
    dev = {g.problem.problem for g in graded(config.output_path, "dev", "steered:0.5")}
    test = {g.problem.problem for g in graded(config.output_path, "test", "base")}
    assert len(dev) == 4
    assert not dev & test


def test_a_zero_vector_is_the_base_completion_by_completion(config, tmp_path):
    some_vectors(scale=0.0).save(tmp_path / "zero.safetensors")
    results = evaluate(replace(config, steering_vectors_path=tmp_path / "zero.safetensors", random_control=True))
    base = [g.to_row() for g in graded(config.output_path, "test", "base")]
    for arm in ("steered:0.5", "steered:1.0", "random:0.5", "random:1.0"):
        assert [g.to_row() for g in graded(config.output_path, "test", arm)] == base
    assert results["base_with_steering"]["1.0"]["difference_from_base"] == 0.0
    assert results["base_with_steering"]["1.0"]["examples"] == results["base_model"]["examples"]


@pytest.mark.parametrize("lines", [0, 7, 30])
def test_a_killed_run_goes_on_to_the_same_bytes(config, tmp_path, lines):
    whole = replace(config, output_path=tmp_path / "whole" / "r.json")
    evaluate(whole)
    complete = completions_path(whole.output_path).read_bytes()
    config.output_path.parent.mkdir()
    kept = complete.splitlines(keepends=True)
    # Killed in the middle of a line.
    completions_path(config.output_path).write_bytes(b"".join(kept[:lines]) + kept[lines][:-20])
    evaluate(config)
    assert completions_path(config.output_path).read_bytes() == complete
    assert timeless(config.output_path) == timeless(whole.output_path).replace(str(tmp_path / "whole"), str(tmp_path / "out"))


def test_a_finished_run_is_only_summed_up_again(config, monkeypatch):
    evaluate(config)
    first = timeless(config.output_path)
    monkeypatch.setattr(evaluate_module, "load_model", None)
    config.output_path.unlink()
    evaluate(config)
    assert timeless(config.output_path) == first


def test_a_weight_added_later_reuses_the_completions(config):
    evaluate(replace(config, weights=(0.5,)))
    before = completions_path(config.output_path).read_bytes()
    first = json.loads(config.output_path.read_text())
    results = evaluate(replace(config, weights=(1.0, 0.5)))
    after = completions_path(config.output_path).read_bytes()
    assert after.startswith(before)
    assert {json.loads(line)["arm"] for line in after[len(before) :].splitlines()} == {"steered:1.0"}
    assert results["base_model"] == first["base_model"]
    assert list(results["base_with_steering"]) == ["1.0", "0.5"]
    assert results["base_with_steering"]["0.5"] == first["base_with_steering"]["0.5"]
    # Another k needs no new completions either.
    assert evaluate(replace(config, weights=(0.5,), pass_at_k=2))["base_model"]["pass_at_2"] >= first["base_model"]["pass_at_1"]
    assert completions_path(config.output_path).read_bytes() == after


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "problems, seed"),
        ({"temperature": 0.5, "max_completion_length": 9}, "max_completion_length, temperature"),
        ({"num_completions_eval": 4}, "completions"),
        ({"eval_size": 7}, "problems"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_other_settings_are_refused_by_name(config, changes, named):
    evaluate(config)
    before = {path.name: path.read_bytes() for path in config.output_path.parent.iterdir()}
    with pytest.raises(InputError) as raised:
        evaluate(replace(config, **changes))
    assert str(raised.value) == (
        f"{completions_path(config.output_path)} holds completions of a run with other settings ({named}); "
        "name another --output_path or pass --overwrite"
    )
    assert {path.name: path.read_bytes() for path in config.output_path.parent.iterdir()} == before


def test_overwrite_starts_over(config, tmp_path):
    evaluate(replace(config, seed=6))
    fresh = replace(config, output_path=tmp_path / "fresh" / "r.json")
    evaluate(fresh)
    evaluate(replace(config, overwrite=True))
    assert completions_path(config.output_path).read_bytes() == completions_path(fresh.output_path).read_bytes()
    assert timeless(config.output_path) == timeless(fresh.output_path).replace(str(tmp_path / "fresh"), str(tmp_path / "out"))


def test_a_retrained_model_is_another_model(config, prepared, tmp_path):
    shutil.copytree(prepared / "base", tmp_path / "base")
    config = replace(config, base_model_name=str(tmp_path / "base"))
    evaluate(config)
    weights = tmp_path / "base" / "model.safetensors"
    os.utime(weights, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns + 10**9))
    with pytest.raises(InputError, match=r"other settings \(base_model\)"):
        evaluate(config)


def test_another_chat_template_makes_other_completions(config, prepared, tmp_path):
    shutil.copytree(prepared / "base", tmp_path / "base")
    config = replace(config, base_model_name=str(tmp_path / "base"))
    evaluate(config)
    template = tmp_path / "base" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|user|>Please: "))
    with pytest.raises(InputError, match=r"other settings \(base_model\)"):
        evaluate(config)


def test_a_corrected_answer_is_not_graded_by_the_old_one(config, prepared, tmp_path):
    problems = tmp_path / "problems.jsonl"
    shutil.copy(prepared / "problems.jsonl", problems)
    config = replace(config, problems=str(problems))
    evaluate(config)
    problems.write_text(problems.read_text().replace('"answer": "7"', '"answer": "3"'))
    with pytest.raises(InputError, match=r"other settings \(problems\)"):
        evaluate(config)


def test_the_same_vectors_written_again_are_the_same_settings(config, tmp_path):
    # safetensors writes its metadata in an order of its own, so the bytes differ.
    path = tmp_path / "v.safetensors"
    some_vectors().save(path)
    config = replace(config, steering_vectors_path=path)
    evaluate(config)
    before, first = completions_path(config.output_path).read_bytes(), path.read_bytes()
    while path.read_bytes() == first:
        some_vectors().save(path)
    evaluate(config)
    assert completions_path(config.output_path).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base_model_name": "./absent"}, MissingInputError, "model ./absent: no such folder"),
        ({"finetuned_checkpoint": "./absent"}, MissingInputError, "model ./absent: no such folder"),
        ({"steering_vectors_path": Path("absent.json")}, MissingInputError, "steering vectors absent.json: no such file"),
        ({"problems": "./absent.jsonl"}, MissingInputError, "absent.jsonl"),
    ],
)
@pytest.mark.usefixtures("no_sampling")
def test_what_is_missing_is_said_before_anything_is_loaded(config, changes, error, message):
    with pytest.raises(error, match=message) as raised:
        evaluate(replace(config, **changes))
    assert "\n" not in str(raised.value)


def test_vectors_of_another_size_are_refused_with_both_named(config, tmp_path):
    SteeringVectors({0: torch.ones(48)}).save(tmp_path / "v.json")
    with pytest.raises(InputError, match="have hidden size 48, Qwen2ForCausalLM has 32"):
        evaluate(replace(config, steering_vectors_path=tmp_path / "v.json"))


@pytest.mark.usefixtures("no_sampling")
def test_a_place_that_cannot_be_written_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write") as raised:
        evaluate(replace(config, output_path=tmp_path / "file" / "r.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_size": 0}, "--eval-size 0"),
        ({"num_completions_eval": 0}, "--num_completions_eval 0"),
        ({"pass_at_k": 4}, "--pass_at_k 4 with 3 completions"),
        ({"pass_at_k": 0}, "--pass_at_k 0"),
        ({"weights": ()}, "--weights"),
        ({"weights": (0.5, 0.5)}, "--weights 0.5 0.5: expected at least one weight, each once"),
        ({"weights": (float("nan"),)}, "--weights nan"),
        ({"weights": (float("inf"), 1.0)}, "--weights inf"),
        ({"dev_size": -1}, "--dev_size -1"),
        ({"dev_size": 4, "split": "dev"}, "choose and report on the same problems"),
        ({"batch_rows": 0}, "--batch_rows 0"),
        ({"batch_rows": -1}, "--batch_rows -1"),
    ],
)
def test_impossible_options_are_refused_at_once(config, changes, message):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, expected 0"),
        ({"max_completion_length": 0}, "max_completion_length is 0, expected at least 1"),
        ({"steering_vectors_path": "wider.json"}, "hidden size 48"),
    ],
)
def test_a_slip_put_right_does_not_need_another_output_path(config, tmp_path, wrong, message):
    SteeringVectors({0: torch.ones(48)}).save(tmp_path / "wider.json")
    with pytest.raises(InputError, match=message):
        evaluate(replace(config, **{name: tmp_path / value if "path" in name else value for name, value in wrong.items()}))
    assert evaluate(config)["base_model"]["num_eval_problems"] == 8


def test_one_model_is_in_memory_at_a_time(config, monkeypatch):
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load_model = evaluate_module.load_model

    def load(*arguments):
        assert not [model for model in loaded if model() is not None]
        model = load_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(evaluate_module, "load_model", load)
    evaluate(replace(config, dev_size=4, random_control=True))
    assert len(loaded) == 2


def test_models_that_know_nothing_are_evaluated_and_said_to(config, tmp_path):
    name = saved(tmp_path / "nothing", untrained())
    results = evaluate(replace(config, base_model_name=name, finetuned_checkpoint=name, weights=(0.5,)))
    assert results["base_model"]["pass_at_1"] == results["finetuned_model"]["pass_at_1"] == 0.0
    assert results["base_model"]["note"] == "Wilson interval: all 8 scores are the same (0)"
    steered = results["base_with_steering"]["0.5"]
    assert steered["gap_recovered"] is None
    assert steered["gap_note"] == "no gap: the base and the fine-tuned model score the same"
