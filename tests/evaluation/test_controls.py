"""Controls, corrections and the separation of problems: what stands beside a result so that it can be believed."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from evaluated import graded, some_vectors

from steerlift.evaluation.controls import FORMAT_REMINDER, shuffled
from steerlift.evaluation.evaluate import evaluate
from steerlift.evaluation.results import scores
from steerlift.problems.load import load_problems
from steerlift.problems.separation import fingerprints
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.seen import SEEN
from steerlift.report.tables import print_results
from steerlift.scoring.statistics import holm, paired_p_value
from steerlift.steering.vectors import SteeringVectors

ALL = ("random", "negated", "shuffled", "cooler", "format")


@pytest.fixture
def controlled(config):
    return replace(config, weights=(0.5,), controls=ALL, other_vectors=(config.steering_vectors_path,))


def test_every_control_is_an_arm_of_its_own_beside_the_result(controlled, capsys):
    results = evaluate(controlled)
    names = list(results["controls"])
    assert names[:7] == [
        "random 1",
        "random 2",
        "random 3",
        "negated",
        "layers shuffled",
        "base at temperature 0.5",
        "base at temperature 0",
    ]
    assert names[7] == "base told the format"
    assert names[8].startswith("vectors of ")
    for name, arm in results["controls"].items():
        answered = graded(controlled.output_path, "test", name)
        assert arm["pass_at_1"] == pytest.approx(100 * sum(scores(answered, 1)) / len(answered), abs=1e-3)
        assert arm["about"]
    print_results(results, [])
    assert "layers shuffled" in capsys.readouterr().out


def test_controls_answer_as_what_they_are_called(controlled):
    results = evaluate(controlled)
    arms = {name: graded(controlled.output_path, "test", name) for name in results["controls"]}
    texts = {name: [[c.text for c in g.completions] for g in answered] for name, answered in arms.items()}
    # The vectors of "another" run are these very vectors, and greedy completions are all alike.
    assert texts[list(texts)[-1]] == [
        [c.text for c in g.completions] for g in graded(controlled.output_path, "test", "steered:0.5")
    ]
    assert all(len(set(completions)) == 1 for completions in texts["base at temperature 0"])
    assert all(
        g.problem.problem.endswith(FORMAT_REMINDER) and FORMAT_REMINDER in g.prompt for g in arms["base told the format"]
    )
    assert texts["negated"] != texts["random 1"] != texts["random 2"]


def test_a_control_can_be_added_to_an_evaluation_that_is_done(controlled):
    before = evaluate(replace(controlled, controls=(), other_vectors=()))
    after = evaluate(controlled)
    assert before["base_with_steering"]["0.5"]["examples"] == after["base_with_steering"]["0.5"]["examples"]
    assert len(after["controls"]) == 9


def test_shuffled_layers_get_another_layers_direction_and_keep_their_norm():
    torch.manual_seed(0)
    vectors = SteeringVectors({layer: (layer + 1) * torch.randn(16) for layer in range(5)})
    moved = shuffled(vectors, 3)
    for layer, vector in moved.layers.items():
        cosines = {i: float(torch.cosine_similarity(vector, v, dim=0)) for i, v in vectors.layers.items()}
        source = max(cosines, key=cosines.__getitem__)
        assert cosines[source] == pytest.approx(1)
        assert source != layer
        assert float(vector.norm()) == pytest.approx(float(vectors.layers[layer].norm()), rel=1e-5)
    alone = SteeringVectors({2: torch.ones(4)})
    assert torch.equal(shuffled(alone, 0).layers[2], alone.layers[2])


def test_controls_need_one_weight(config):
    with pytest.raises(InputError, match="controls are run at one weight"):
        replace(config, controls=("random",))
    with pytest.raises(InputError, match="expected each once"):
        replace(config, weights=(1.0,), controls=("random", "random"))


def test_vectors_that_saw_a_reported_problem_are_refused(config, tmp_path):
    test = load_problems(config.problems, "test", config.eval_size, config.seed)
    for seen, refused in ((test[:1], True), (load_problems(config.problems, "train"), False)):
        path = tmp_path / f"{refused}.safetensors"
        SteeringVectors(some_vectors().layers, {SEEN: fingerprints(seen)}).save(path)
        run = replace(config, steering_vectors_path=path, output_path=tmp_path / f"{refused}.json")
        if refused:
            with pytest.raises(InputError, match="1 of the problems to report on were used to make or choose it"):
                evaluate(run)
            assert not run.output_path.exists()
        else:
            assert evaluate(run)["separation"]["vectors_made_or_chosen_on"] == fingerprints(seen)


def test_a_result_says_which_problems_it_stands_on(config):
    results = evaluate(replace(config, dev_size=3))
    separation = results["separation"]
    assert separation["reported_on"] == fingerprints(load_problems(config.problems, "test", 8, config.seed))
    assert separation["weight_chosen_on"] == fingerprints(load_problems(config.problems, "dev", 3, config.seed))
    assert separation["known"] is False  # vectors from elsewhere do not say what they were made on
    assert SEEN not in results["vectors"]


def test_scores_by_level_add_up_to_the_score(config, prepared, tmp_path):
    rows = [json.loads(line) for line in (prepared / "problems.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row["level"] = index % 2 + 1
    (tmp_path / "levels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(replace(config, problems=str(tmp_path / "levels.jsonl"), weights=(1.0,)))
    assert set(results["groups"]) == {"level"}  # one subject only
    levels = results["groups"]["level"].values()
    assert sum(level["problems"] for level in levels) == 8
    for arm, key in (("base", "base_model"), ("finetuned", "finetuned_model")):
        mean = sum(level["problems"] * level[arm] for level in levels) / 8
        assert mean == pytest.approx(results[key]["pass_at_1"], abs=1e-3)
    assert all("steered" in level for level in levels)


def test_the_p_value_is_the_share_of_sign_patterns_at_least_as_extreme():
    a, b = [1.0, 0.5, 1.0, 0.75, 0.5, 1.0], [0.5, 0.5, 0.25, 0.5, 0.75, 0.0]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    means = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=6)]
    expected = sum(mean >= abs(sum(differences)) - 1e-12 for mean in means) / len(means)
    assert paired_p_value(a, b) == pytest.approx(expected)
    assert paired_p_value(a, a) == 1.0
    assert paired_p_value([1.0] * 40, [0.0] * 40) < 0.001


def test_holm_is_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_several_weights_are_corrected_for(config):
    arms = evaluate(replace(config, weights=(0.25, 0.5, 1.0)))["base_with_steering"].values()
    alone, corrected = ([arm[key] for arm in arms] for key in ("difference_p", "difference_p_holm"))
    assert corrected == pytest.approx(holm(alone))


def test_vectors_of_another_run_are_looked_at_before_any_work(controlled, no_sampling, tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        evaluate(replace(controlled, other_vectors=(tmp_path / "absent.safetensors",)))
    assert not controlled.output_path.exists()
