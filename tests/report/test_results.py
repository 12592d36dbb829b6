"""Reading a results file: the original's shape, our additions, and one line for everything that cannot be used."""

import json
from pathlib import Path

import pytest

from steerlift.records.errors import InputError, MissingInputError
from steerlift.report.results import Arm, load_results

HEADLINE = Path(__file__).parent / "original_headline.json"


@pytest.fixture
def written(tmp_path):
    """Writes a results file of the parts given over a small valid one; a part that is None is left out."""

    def write(**parts):
        content = {
            "base_model": {"pass_at_1": 30.0},
            "finetuned_model": {"pass_at_1": 60.0},
            "base_with_steering": {"0.5": {"pass_at_1": 45.0}},
        }
        content = {name: part for name, part in {**content, **parts}.items() if part is not None}
        path = tmp_path / "results.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_the_originals_shape_is_read_whole():
    results = load_results(HEADLINE)
    assert results.k == 1
    assert (results.base, results.finetuned) == (Arm(33.75, None, 20), Arm(56.0, None, 20))
    scores = {weight: arm.score for weight, arm in results.steered.items()}
    assert scores == {0.1: 41.5, 0.15: 47.5, 0.2: 50.0, 0.25: 47.5, 0.3: 47.75, 0.35: 52.75}
    assert (results.control, results.chosen, results.problem_counts()) == ({}, None, [20])


def test_additions_are_read(written):
    arm = {"pass_at_4": 45, "pass_at_8": 70, "ci95": [40, 50.5], "num_eval_problems": 400}
    path = written(
        base_model=arm,
        finetuned_model=arm,
        base_with_steering={"1.5": arm, "-0.5": {"pass_at_4": 1.5, "num_eval_problems": 399}},
        random_control={"1.0": {"pass_at_4": 2.5}},
        chosen={"weight": 1.5, "split": "dev"},
    )
    results = load_results(path)
    assert results.k == 4
    assert results.base == Arm(45.0, (40.0, 50.5), 400)
    assert list(results.steered) == [-0.5, 1.5]
    assert results.control == {1.0: Arm(2.5)}
    assert results.chosen == 1.5
    assert results.problem_counts() == [399, 400]
    assert results.arms()[0] is results.base
    assert len(results.arms()) == 5


def test_an_evaluation_without_a_fine_tuned_model_has_null_there(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(
        '{"base_model": {"pass_at_1": 30}, "finetuned_model": null, "base_with_steering": {"1": {"pass_at_1": 45}}}'
    )
    results = load_results(path)
    assert results.finetuned is None
    assert results.arms() == [Arm(30.0), Arm(45.0)]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (
            {"finetuned_model": None},
            "no 'finetuned_model' in it (found: base_model, base_with_steering); give a results file of `steerlift evaluate`",
        ),
        ({"base_model": []}, "base_model: expected an object, got a list; evaluate again"),
        ({"base_model": {}}, "base_model: no score in it (found: nothing); expected pass_at_1 in percent"),
        ({"base_with_steering": {}}, "base_with_steering holds no weight, expected at least one; evaluate some weights"),
        (
            {"base_with_steering": {"early=1": {"pass_at_1": 1}}},
            "base_with_steering: expected a number as steering weight, got 'early=1'; only single weights can be drawn",
        ),
        (
            {"base_with_steering": {"nan": {"pass_at_1": 1}}},
            "base_with_steering: expected a number as steering weight, got 'nan'; only single weights can be drawn",
        ),
        (
            {"base_with_steering": {"0.1": {"pass_at_1": 1}, "0.10": {"pass_at_1": 2}}},
            "base_with_steering: weight 0.1 is there twice; keep one of them",
        ),
        (
            {"base_with_steering": {"1": {"pass_at_5": 1}}},
            "base_with_steering['1']: no pass_at_1 in it (found: pass_at_5); evaluate every arm with the same --pass_at_k",
        ),
        (
            {"base_with_steering": {"1": 45.0}},
            "base_with_steering['1']: expected an object with pass_at_1, got a number; evaluate again",
        ),
        (
            {"finetuned_model": {"pass_at_1": 101}},
            "finetuned_model.pass_at_1: expected percent from 0 to 100, got 101; evaluate again",
        ),
        ({"base_model": {"pass_at_1": "30"}}, "base_model.pass_at_1: expected percent from 0 to 100, got '30'; evaluate again"),
        (
            {"base_model": {"pass_at_1": float("nan")}},
            "base_model.pass_at_1: expected percent from 0 to 100, got nan; evaluate again",
        ),
        ({"base_model": {"pass_at_1": True}}, "base_model.pass_at_1: expected percent from 0 to 100, got True; evaluate again"),
        (
            {"base_model": {"pass_at_1": 3, "ci95": [1]}},
            "base_model.ci95: expected [low, high] in percent, got [1]; evaluate again",
        ),
        (
            {"base_model": {"pass_at_1": 3, "ci95": [4, 2]}},
            "base_model.ci95: expected [low, high] in percent, got [4, 2] with low above high; evaluate again",
        ),
        (
            {"base_model": {"pass_at_1": 3, "num_eval_problems": 0}},
            "base_model.num_eval_problems: expected a whole number above 0, got 0; evaluate again",
        ),
        ({"chosen": {"weight": "0.75"}}, "chosen.weight 0.75 is not in base_with_steering (0.5); choose one of these"),
        ({"chosen": {"layers": 3}}, "chosen: no 'weight' in it (found: layers); name a steering weight"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(written, parts, line):
    path = written(**parts)
    with pytest.raises(InputError) as caught:
        load_results(path)
    assert str(caught.value) == f"{path}: {line}"


def test_what_is_no_results_file_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        load_results(tmp_path / "absent.json")
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_results(path)
    path.write_text("[1]")
    with pytest.raises(InputError) as caught:
        load_results(path)
    assert str(caught.value) == f"{path}: expected a JSON object with base_model, got a list; give a file of `evaluate`"
