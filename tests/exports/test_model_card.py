"""The card against the files it is made of: real results, the hub's own parser, and its Python block run as written."""

import json
import re

import pytest
import torch
from exported import model_with_biases, random_vectors, saved_model
from huggingface_hub import ModelCard

from steerlift.evaluation.results import arm_result
from steerlift.exports.model_card import Card, read_evaluation
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.seen import SEEN
from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.steering.apply import steer
from steerlift.steering.vectors import SteeringVectors

METADATA = {
    "base_model": "tiny/base",
    "finetuned_model": "tiny/tuned",
    "architecture": "qwen2, 3 layers, hidden size 64, vocabulary 97",
    "method": "increments",
    "problems": "64 of math, train",
    "seed": "5",
    SEEN: "00aa 11bb",
}


def graded(right):
    """Twenty problems, two completions each; every completion of the first `right` problems is correct."""
    return [
        GradedProblem(
            Problem(f"1 + {number}", str(1 + number)),
            "prompt",
            (Completion((4, 5), (), "text", False),) * 2,
            (Grade("1", True, number < right, number < right),) * 2,
        )
        for number in range(20)
    ]


def results(**changes):
    """A results file as `evaluate` puts it together, of vectors with METADATA."""
    base, finetuned = graded(4), graded(16)

    def arm(right):
        return arm_result(graded(right), (1,), 0, base, finetuned)

    return {
        "base_model": arm_result(base, (1,), 0),
        "finetuned_model": arm_result(finetuned, (1,), 0, base),
        "base_with_steering": {"0.5": arm(10), "1.0": arm(13)},
        "random_control": {"1.0": arm(5)},
        "controls": {
            "negated": {"about": "turned", "weight": -1.0, **arm(1)},
            "base at temperature 0": {"about": "", "weight": 0.0, **arm(6)},
        },
        "chosen": {"weight": "1.0", "num_dev_problems": 12},
        "settings": {"problems": "math", "split": "test", "temperature": 0.9, "max_completion_length": 48, "seed": 5},
        "vectors": {key: value for key, value in METADATA.items() if key != SEEN},
        **changes,
    }


def evaluation(tmp_path, weight=None, **changes):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(**changes)))
    return read_evaluation(path, METADATA, weight)


def card(**parts):
    vectors = SteeringVectors({0: torch.ones(64), 2: torch.ones(64)}, METADATA)
    return Card(**{"repo_id": "me/tiny-vectors", "base_model": "tiny/base", "vectors": vectors, "weight": 1.0, **parts})


def table(text):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if set(row[0]) != {"-"}]


def test_front_matter_is_what_the_hub_reads():
    data = ModelCard(card(license="mit").text()).data.to_dict()
    assert data == {
        "base_model": "tiny/base",
        "base_model_relation": "adapter",
        "library_name": "steerlift",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["steering-vector", "steerlift"],
    }


def test_every_number_of_the_table_is_the_files(tmp_path):
    content = results()
    steered, random = content["base_with_steering"]["1.0"], content["random_control"]["1.0"]

    text = card(evaluation=evaluation(tmp_path)).text()

    heads, *rows = table(text)
    assert heads == ["arm", "pass@1 %", "95 % interval", "against base", "gap recovered %", "format %"]
    by_arm = {name: cells for name, *cells in rows}
    assert list(by_arm) == [
        "base", "base + 1.0 x vectors", "fine-tuned", "random vectors x 1.0", "negated", "base at temperature 0",
    ]  # fmt: skip
    low, high = steered["ci95"]
    less, more = steered["gap_recovered_ci95"]
    points = "{:+.1f} to {:+.1f}".format(*steered["difference_ci95"])
    assert by_arm["base + 1.0 x vectors"] == [
        "65.0", f"{low:.1f} to {high:.1f}", f"+45.0 ({points})", f"75 ({less:.0f} to {more:.0f})", "100.0",
    ]  # fmt: skip
    assert by_arm["random vectors x 1.0"][0] == f"{random['pass_at_1']:.1f}" == "25.0"
    assert by_arm["base"][2:4] == ["", ""]
    assert "20 problems of math (test), 2 completions each, temperature 0.9, at most 48 tokens, seed 5." in text
    assert "chosen on 12 development problems, which are not among those reported on" in text


def test_a_part_without_data_is_left_out():
    vectors = SteeringVectors({1: torch.ones(64)}, {"method": "increments", SEEN: "00aa"})
    text = card(base_model="", vectors=vectors).text()
    assert "base_model" not in ModelCard(text).data.to_dict()
    for absent in ("|", "figure.png", "llama", "baked", "Gap recovered", "00aa", "None", "fine-tuned model"):
        assert absent not in text
    assert "come without an evaluation" in text
    whole = card(with_figure=True, with_gguf=True, bakeable=True).text()
    for there in ("](figure.png)", "vectors.gguf:1.0", "layer 0 is not in the file", "--format baked"):
        assert there in whole


def test_a_file_without_intervals_has_no_column_for_them(tmp_path):
    plain = {"base_model": {"pass_at_1": 20.0}, "finetuned_model": {"pass_at_1": 80.0}}
    found = evaluation(tmp_path, base_with_steering={"1": {"pass_at_1": 50.0}}, random_control={}, controls={}, **plain)
    assert found.heads == ["arm", "pass@1 %"]
    assert found.rows == [["base", "20.0"], ["base + 1.0 x vectors", "50.0"], ["fine-tuned", "80.0"]]


def test_without_a_fine_tuned_model_there_is_no_row_of_it(tmp_path):
    plain = {"base_model": {"pass_at_1": 20.0}, "finetuned_model": None}
    found = evaluation(tmp_path, base_with_steering={"1": {"pass_at_1": 50.0}}, random_control={}, controls={}, **plain)
    assert found.rows == [["base", "20.0"], ["base + 1.0 x vectors", "50.0"]]
    assert list(found.arms) == ["base", "steered"]


@pytest.mark.parametrize(
    ("asked", "changes", "on_dev", "sentence"),
    [
        (None, {}, True, "was chosen on 12 development problems"),
        (1.0, {}, True, "was chosen on 12 development problems"),
        (0.5, {}, False, "one of 2 evaluated on these very problems, was not chosen on development problems"),
        (None, {"chosen": None, "base_with_steering": {"0.5": {"pass_at_1": 1.0}}}, False, "is the only one evaluated"),
    ],
)
def test_how_the_weight_was_chosen_is_said(asked, changes, on_dev, sentence, tmp_path):
    found = evaluation(tmp_path, asked, **changes)
    assert found.on_dev == on_dev
    assert found.weight == (1.0 if on_dev else 0.5)
    assert sentence in found.choice
    assert [row[0] for row in found.rows if row[0].startswith("random")] == (["random vectors x 1.0"] if on_dev else [])


def test_a_search_is_named_as_what_chose(tmp_path):
    path = tmp_path / "results.json"
    metadata = {"method": "search", "searched_on": "100 of math, dev"}
    arm = {"1.0": results()["base_with_steering"]["1.0"]}
    path.write_text(json.dumps(results(chosen=None, vectors=metadata, base_with_steering=arm)))
    assert "chosen by a search on 100 of math, dev" in read_evaluation(path, metadata, None).choice


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"weight 0\.7 is not in it; name one with --weight: 0\.5, 1\.0"):
        evaluation(tmp_path, 0.7)
    with pytest.raises(InputError, match="no weight was chosen on dev problems; name one with --weight"):
        evaluation(tmp_path, chosen=None)
    with pytest.raises(InputError, match="it is of other vectors"):
        evaluation(tmp_path, vectors={**METADATA, "seed": "6"})
    with pytest.raises(InputError, match="not a results file of `steerlift evaluate`"):
        evaluation(tmp_path, base_model={})
    with pytest.raises(InputError, match="not a results file of `steerlift evaluate`"):
        evaluation(tmp_path, base_with_steering={"heavy": {}})
    other = tmp_path / "other.json"
    for content in ("[]", "{}", '{"trials": []}'):
        other.write_text(content)
        with pytest.raises(InputError, match="not a results file"):
            read_evaluation(other, METADATA, None)
    with pytest.raises(MissingInputError, match="no such file"):
        read_evaluation(tmp_path / "absent.json", METADATA, None)


def test_the_python_of_the_card_runs_as_written(tmp_path, monkeypatch, capsys):
    model = model_with_biases("qwen2")
    saved_model(tmp_path / "tiny/base", model)
    vectors = random_vectors(model)
    vectors.save(tmp_path / "vectors.safetensors")
    (block,) = re.findall(r"```python\n(.*?)```", card(vectors=vectors, weight=0.5).text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)

    names: dict = {}
    exec(block.replace("max_new_tokens=256", "max_new_tokens=12, do_sample=False"), names)  # noqa: S102 - our own card

    def said(weight):
        with steer(model, vectors, weight):
            output = model.generate(**names["ids"], max_new_tokens=12, do_sample=False)
        return names["tokenizer"].decode(output[0, names["ids"]["input_ids"].shape[1] :], skip_special_tokens=True)

    assert capsys.readouterr().out == f"{said(0.5)}\n"
    assert said(0.5) != said(0.0)
