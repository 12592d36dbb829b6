"""Answers of an earlier evaluation: taken over where they would be the same, and only there."""

import json
from dataclasses import replace

import pytest
from evaluated import some_vectors

from steerlift.evaluation import samplers as samplers_module
from steerlift.evaluation.evaluate import evaluate
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import completions_path


def arms_asked(monkeypatch) -> list[str]:
    """The models that an evaluation loads from now on."""
    loaded: list[str] = []
    load = samplers_module.load_model

    def noted(name, *arguments):
        loaded.append(name)
        return load(name, *arguments)

    monkeypatch.setattr(samplers_module, "load_model", noted)
    return loaded


def test_a_fine_tuned_model_that_comes_later_is_all_that_is_left_to_ask(config, tmp_path, monkeypatch):
    expected = evaluate(config)
    alone = replace(config, finetuned_checkpoint=None, output_path=tmp_path / "alone" / "r.json")
    evaluate(alone)
    loaded = arms_asked(monkeypatch)
    later = evaluate(replace(config, output_path=tmp_path / "later" / "r.json", reuse=(alone.output_path,)))
    assert loaded == [config.finetuned_checkpoint]
    for arm in ("base_model", "finetuned_model", "base_with_steering"):
        assert later[arm] == expected[arm]


def test_vectors_that_come_later_are_compared_with_models_that_have_answered(config, tmp_path, monkeypatch):
    expected = evaluate(config)
    models = replace(config, steering_vectors_path=None, output_path=tmp_path / "models" / "r.json")
    evaluate(models)
    loaded = arms_asked(monkeypatch)
    later = evaluate(replace(config, output_path=tmp_path / "later" / "r.json", reuse=(models.output_path,)))
    assert loaded == [config.base_model_name], "for the steered arms"
    for arm in ("base_model", "finetuned_model", "base_with_steering"):
        assert later[arm] == expected[arm]


def test_other_vectors_are_compared_with_the_same_base_without_asking_it_again(config, tmp_path, monkeypatch, capsys):
    earlier = evaluate(config)
    path = tmp_path / "other.safetensors"
    some_vectors(scale=0.4).save(path)
    fresh = replace(config, steering_vectors_path=path, output_path=tmp_path / "fresh" / "r.json")
    expected = evaluate(fresh)
    loaded = arms_asked(monkeypatch)
    again = replace(fresh, output_path=tmp_path / "again" / "r.json", reuse=(config.output_path,))
    results = evaluate(again)
    for arm in ("base_model", "finetuned_model", "base_with_steering"):
        assert results[arm] == expected[arm]
    assert results["base_model"] == earlier["base_model"]
    assert loaded == [config.base_model_name], "the fine-tuned model has answered everything before"
    count = config.eval_size
    assert f"{2 * count} answered problems are those of {config.output_path}" in capsys.readouterr().err
    asked = [json.loads(line) for line in completions_path(again.output_path).read_text().splitlines()[1:]]
    assert len(asked) == len(completions_path(fresh.output_path).read_text().splitlines()) - 1


def test_fewer_problems_and_more_weights_take_over_the_steered_answers_too(config, tmp_path, monkeypatch):
    evaluate(replace(config, weights=(1.0,)))
    less = replace(
        config, eval_size=config.eval_size - 1, output_path=tmp_path / "less" / "r.json", reuse=(config.output_path,)
    )
    loaded = arms_asked(monkeypatch)
    evaluate(replace(less, weights=(1.0,)))
    assert loaded == []
    evaluate(replace(less, weights=(1.0, 0.25)))
    assert loaded == [config.base_model_name]


def test_what_was_sampled_in_another_way_is_refused(config, tmp_path):
    evaluate(config)
    other = replace(config, output_path=tmp_path / "other" / "r.json", reuse=(config.output_path,))
    with pytest.raises(InputError, match=r"other settings \(temperature, seed\)"):
        evaluate(replace(other, temperature=config.temperature + 0.1, seed=config.seed + 1))
    with pytest.raises(MissingInputError, match=r"no .*nowhere.completions.jsonl beside it"):
        evaluate(replace(other, reuse=(tmp_path / "nowhere.json",)))
    assert not other.output_path.parent.exists()
