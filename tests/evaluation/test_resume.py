"""Runs that were killed, changed or put right: what is kept, what is refused, what starts over."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from evaluated import some_vectors, timeless

from steerlift.evaluation import samplers as samplers_module
from steerlift.evaluation.evaluate import evaluate
from steerlift.records.errors import InputError
from steerlift.records.runs import completions_path
from steerlift.steering.vectors import SteeringVectors


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
    monkeypatch.setattr(samplers_module, "load_model", None)
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
    further = evaluate(replace(config, weights=(0.5,), pass_at_k=(2, 1)))["base_model"]
    assert further["pass_at_2"] >= further["pass_at_1"] == first["base_model"]["pass_at_1"]
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


def test_other_worked_examples_make_other_completions(config):
    config = replace(config, problems="embedded", few_shot=1, num_completions_eval=1, weights=(0.5,))
    evaluate(config)
    for few_shot in (0, 2):
        with pytest.raises(InputError, match=r"other settings \(few_shot\)"):
            evaluate(replace(config, few_shot=few_shot))


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


def test_a_slip_put_right_does_not_need_another_output_path(config, tmp_path):
    SteeringVectors({0: torch.ones(48)}).save(tmp_path / "wider.json")
    with pytest.raises(InputError, match="hidden size 48"):
        evaluate(replace(config, steering_vectors_path=tmp_path / "wider.json"))
    assert evaluate(config)["base_model"]["num_eval_problems"] == 8
