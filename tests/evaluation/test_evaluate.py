import json
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluated import METADATA, graded, some_vectors
from small_pipeline import saved, tokenizer, trained, untrained

from steerlift.evaluation import samplers as samplers_module
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.evaluate import evaluate
from steerlift.evaluation.results import arm_result, scores
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import render_prompt
from steerlift.records.errors import InputError, MissingInputError
from steerlift.report.results import load_results
from steerlift.report.tables import print_results
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.scoring.statistics import paired_p_value
from steerlift.steering.vectors import SteeringVectors


def test_results_have_the_originals_shape_and_can_be_plotted(config):
    results = evaluate(config)
    assert json.loads(config.output_path.read_text()) == json.loads(json.dumps(results))
    assert set(results) == {
        "base_model", "finetuned_model", "base_with_steering", "settings", "vectors", "completions_file", "provenance",
        "groups", "separation",
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


def test_without_a_fine_tuned_model_the_base_is_all_that_is_compared_with(config, tmp_path, capsys):
    whole = evaluate(config)
    alone = replace(config, finetuned_checkpoint=None, output_path=tmp_path / "alone" / "r.json")
    capsys.readouterr()
    results = evaluate(alone)
    assert config.finetuned_checkpoint not in capsys.readouterr().err
    assert results["finetuned_model"] is None
    assert results["base_model"] == whole["base_model"]
    for weight, arm in results["base_with_steering"].items():
        of_the_gap = {"gap_recovered", "gap_recovered_ci95", "lenient_gap_recovered"}
        assert arm == {key: value for key, value in whole["base_with_steering"][weight].items() if key not in of_the_gap}
    print_results(results, [])
    printed = capsys.readouterr().out
    assert "base + 0.5 x vectors" in printed
    assert "fine-tuned" not in printed
    assert load_results(alone.output_path).finetuned is None


@pytest.mark.parametrize("finetuned", [True, False])
def test_models_can_be_evaluated_before_there_are_vectors(config, tmp_path, capsys, finetuned):
    whole = evaluate(config)
    model = config.finetuned_checkpoint if finetuned else None
    results = evaluate(
        replace(config, steering_vectors_path=None, finetuned_checkpoint=model, output_path=tmp_path / "models" / "r.json")
    )
    assert results["base_with_steering"] == {}
    assert results["settings"]["steering_vectors_path"] is None
    assert results["base_model"] == whole["base_model"]
    assert results["finetuned_model"] == (whole["finetuned_model"] if finetuned else None)
    capsys.readouterr()
    print_results(results, [])
    assert [line.split("│")[1].split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("│")] == (
        ["base", "fine-tuned"] if finetuned else ["base"]
    )
    with pytest.raises(InputError, match="base_with_steering holds no weight"):
        load_results(tmp_path / "models" / "r.json")


@pytest.mark.parametrize(
    "steered",
    [{"random_control": True}, {"dev_size": 4}, {"weights": (1.0,), "controls": ("cooler",)}],
    ids=lambda s: next(iter(s)),
)
def test_what_is_about_steered_arms_needs_vectors(config, steered):
    with pytest.raises(InputError, match="is about steered arms: name vectors with --steering_vectors_path, or leave it out"):
        replace(config, steering_vectors_path=None, **steered)


def test_servers_of_a_model_that_is_not_named_are_refused(config):
    with pytest.raises(InputError, match=r"--finetuned_servers http://there: name their model with --finetuned_checkpoint"):
        replace(config, finetuned_checkpoint=None, finetuned_servers="http://there")


def test_settings_can_be_run_again(config):
    settings = evaluate(config)["settings"]
    paths = {name: Path(settings[name]) for name in ("output_path", "steering_vectors_path")}
    again = EvaluateConfig(**{**settings, **paths, "weights": tuple(settings["weights"]), "other_vectors": (), "reuse": ()})
    assert again == config


def test_every_number_comes_from_the_completions_file(config):
    results = evaluate(config)
    base, finetuned = (graded(config.output_path, "test", arm) for arm in ("base", "finetuned"))
    assert results["base_model"] == arm_result(base, (1,), config.seed)
    assert results["finetuned_model"] == arm_result(finetuned, (1,), config.seed, base)
    for weight in (0.5, 1.0):
        steered = graded(config.output_path, "test", f"steered:{weight}")
        arm = dict(results["base_with_steering"][str(weight)])
        alone = arm.pop("difference_p")
        assert alone == paired_p_value(scores(steered, 1), scores(base, 1), config.seed)
        assert arm.pop("difference_p_holm") in (alone, min(1.0, 2 * alone))
        assert arm == arm_result(steered, (1,), config.seed, base, finetuned)


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


def test_of_several_ks_the_first_is_the_headline_everywhere(config, capsys):
    results = evaluate(replace(config, pass_at_k=(2, 1, 3), dev_size=4))
    base, finetuned = (graded(config.output_path, "test", arm) for arm in ("base", "finetuned"))
    assert results["finetuned_model"] == arm_result(finetuned, (2, 1, 3), config.seed, base)
    arms = [results["base_model"], *results["base_with_steering"].values(), *results["chosen"]["dev"].values()]
    for arm in arms:
        assert [key for key in arm if key.startswith("pass_at_")] == [
            "pass_at_2", "pass_at_1", "pass_at_3", "pass_at_1_ci95", "pass_at_3_ci95",
        ]  # fmt: skip
        assert arm["pass_at_1"] <= arm["pass_at_2"] <= arm["pass_at_3"]
    assert all("pass_at_2" in example and "pass_at_1" not in example for example in results["base_model"]["examples"])
    dev = results["chosen"]["dev"]
    assert dev[results["chosen"]["weight"]]["pass_at_2"] == max(scores["pass_at_2"] for scores in dev.values())
    drawn = load_results(config.output_path)
    assert drawn.k == 2
    assert drawn.base.score == results["base_model"]["pass_at_2"]
    assert list(drawn.base.interval) == results["base_model"]["ci95"]
    capsys.readouterr()
    print_results(results, [])
    printed = capsys.readouterr().out.splitlines()
    assert re.findall(r"pass@\d %|95 % interval|lenient %", printed[1]) == [
        "pass@2 %", "95 % interval", "pass@1 %", "pass@3 %", "lenient %",
    ]  # fmt: skip
    cells = [cell.strip() for cell in next(line for line in printed if "fine-tuned" in line).split("│")]
    assert [cells[2], cells[4], cells[5]] == [f"{results['finetuned_model'][f'pass_at_{k}']:.1f}" for k in (2, 1, 3)]


def test_worked_examples_stand_before_every_problem(config, capsys):
    config = replace(config, problems="embedded", eval_size=4, dev_size=2, few_shot=2, weights=(1.0,))
    results = evaluate(config)
    assert "evaluating on 4 test problems of embedded with 2 worked examples before each problem; " in capsys.readouterr().err
    assert results["settings"]["few_shot"] == 2
    few_shot = load_worked_examples("embedded", 2, config.seed)
    problems = load_problems("embedded", "test", 4, config.seed)
    prompts = [render_prompt(tokenizer(), problem.problem, few_shot=few_shot) for problem in problems]
    for arm in ("base", "finetuned", "steered:1.0"):
        assert [g.prompt for g in graded(config.output_path, "test", arm)] == prompts
    assert all(example.solution in g.prompt for example in few_shot for g in graded(config.output_path, "dev", "steered:1.0"))


@pytest.mark.usefixtures("no_sampling")
def test_worked_examples_that_are_not_there_are_said_before_anything_is_loaded(config):
    with pytest.raises(InputError, match="few_shot: got 0 training problem") as raised:
        evaluate(replace(config, few_shot=1))
    assert "\n" not in str(raised.value)
    assert not config.output_path.parent.exists()


def test_a_zero_vector_is_the_base_completion_by_completion(config, tmp_path):
    some_vectors(scale=0.0).save(tmp_path / "zero.safetensors")
    results = evaluate(replace(config, steering_vectors_path=tmp_path / "zero.safetensors", random_control=True))
    base = [g.to_row() for g in graded(config.output_path, "test", "base")]
    for arm in ("steered:0.5", "steered:1.0", "random:0.5", "random:1.0"):
        assert [g.to_row() for g in graded(config.output_path, "test", arm)] == base
    assert results["base_with_steering"]["1.0"]["difference_from_base"] == 0.0
    assert results["base_with_steering"]["1.0"]["examples"] == results["base_model"]["examples"]


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
    with pytest.raises(InputError, match=r"have hidden size 48, .*base has 32"):
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
        ({"pass_at_k": (4,)}, "--pass_at_k 4 with 3 completions"),
        ({"pass_at_k": (1, 3, 5)}, "--pass_at_k 5 with 3 completions"),
        ({"pass_at_k": (0,)}, "--pass_at_k 0"),
        ({"pass_at_k": ()}, "--pass_at_k : expected at least one k, each once"),
        ({"pass_at_k": (1, 3, 1)}, "--pass_at_k 1 3 1: expected at least one k, each once"),
        ({"few_shot": -1}, "--few_shot -1"),
        ({"weights": ()}, "--weights"),
        ({"weights": (0.5, 0.5)}, "--weights 0.5 0.5: expected at least one weight, each once"),
        ({"weights": (float("nan"),)}, "--weights nan"),
        ({"weights": (float("inf"), 1.0)}, "--weights inf"),
        ({"dev_size": -1}, "--dev_size -1"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"max_completion_length": 0}, "--max_completion_length 0"),
        ({"dev_size": 4, "split": "dev"}, "choose and report on the same problems"),
        ({"batch_rows": 0}, "--batch_rows 0"),
        ({"batch_rows": -1}, "--batch_rows -1"),
    ],
)
def test_impossible_options_are_refused_at_once(config, changes, message):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


def test_one_model_is_in_memory_at_a_time(config, monkeypatch):
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load_model = samplers_module.load_model

    def load(*arguments):
        assert not [model for model in loaded if model() is not None]
        model = load_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(samplers_module, "load_model", load)
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
