"""The search: what a trial is, what of it is kept, that a kill changes nothing, and that test problems stay out of it."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluated import some_vectors
from launched import ROOT, environment
from small_pipeline import ANSWER, TEXTS

from steerlift.evaluation.evaluate import evaluate
from steerlift.evaluation.search import best_trial, check_start, final_evaluation, search
from steerlift.evaluation.search_config import SearchConfig, rung_sizes
from steerlift.evaluation.search_space import SearchSpace, make_space
from steerlift.evaluation.search_study import ask, check_optuna, new_study, tell
from steerlift.problems.load import load_problems
from steerlift.problems.separation import fingerprints
from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.runs import Journal, completions_path
from steerlift.records.seen import SEEN
from steerlift.records.types import GradedProblem
from steerlift.steering.vectors import SteeringVectors

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")

SEEN_BEFORE = "00000aaaaa 00000bbbbb"


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("candidates")
    # The strong ones break the model at high weights, so that scores differ.
    some_vectors(0.05).save(root / "weak.safetensors")
    strong = some_vectors(3.0)
    SteeringVectors(strong.layers, {**strong.metadata, SEEN: SEEN_BEFORE}).save(root / "strong.safetensors")
    return [root / "weak.safetensors", root / "strong.safetensors"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("problems")
    for split, texts in {"train": TEXTS[:8], "dev": TEXTS[8:24], "test": TEXTS[24:]}.items():
        rows = [json.dumps({"problem": text, "answer": ANSWER}) for text in texts]
        (root / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def made(prepared, candidates, problems, tmp_path_factory) -> SearchConfig:
    return SearchConfig(
        base_model_name=str(prepared / "base"),
        finetuned_checkpoint=str(prepared / "finetuned"),
        vectors=tuple(candidates),
        output_dir=tmp_path_factory.mktemp("made") / "search",
        groups=2,
        trials=12,
        dev_size=16,
        eval_size=8,
        num_completions_eval=2,
        max_completion_length=12,
        temperature=1.0,
        seed=5,
        problems=str(problems),
    )


@pytest.fixture(scope="module")
def whole(made) -> dict[str, SearchConfig]:
    """A search that nobody killed, by each sampler; to be read only."""
    configs = {name: replace(made, sampler=name, output_dir=made.output_dir / name) for name in ("tpe", "gp")}
    for config in configs.values():
        run(config)
    return configs


@pytest.fixture
def small(made, tmp_path) -> SearchConfig:
    """The same options for a search of one's own."""
    return replace(made, output_dir=tmp_path / "search")


def run(config: SearchConfig) -> dict:
    check_start(config)
    return search(config, config.vectors)


def kept(config: SearchConfig) -> list[dict]:
    return Journal(completions_path(config.trials_path)).read()[1:]


def stored(config: SearchConfig) -> list[dict]:
    return json.loads(config.search_path.read_text())["trials"]


# --- a search ---


def test_every_trial_is_kept_with_the_completions_behind_its_score(whole):
    config = whole["tpe"]
    found = json.loads(config.search_path.read_text())
    assert [trial["number"] for trial in found["trials"]] == list(range(12))
    assert {trial["state"] for trial in found["trials"]} == {"complete", "pruned"}
    rows = kept(config)
    for trial in found["trials"]:
        assert trial["problems"] == 16 if trial["state"] == "complete" else trial["problems"] in (4, 8)
        mine = [
            row for row in rows if row["arm"].startswith(f"trial {trial['number']}: vectors = {trial['params']['vectors']}, ")
        ]
        assert [row["index"] for row in mine] == list(range(trial["problems"]))
        grades = [grade.correct for row in mine for grade in GradedProblem.from_row(row).grades]
        assert len(grades) == 2 * trial["problems"]
        assert trial["score"] == round(100 * sum(grades) / len(grades), 4)
    assert found["best"] == best_trial(found["trials"])
    assert found["best"]["score"] == max(trial["score"] for trial in found["trials"] if trial["state"] == "complete")
    assert found["settings"]["searched_groups"] == [[0], [1]]
    assert found["provenance"]["command"]


def test_the_winner_scores_alone_what_it_scored_in_the_search(whole, tmp_path):
    small = whole["gp"]
    found = json.loads(small.search_path.read_text())
    winner = SteeringVectors.load(small.best_path)
    params = found["best"]["params"]
    source = SteeringVectors.load(next(path for path in small.vectors if path.stem == params["vectors"]))
    for layer in (0, 1):
        assert torch.equal(winner.layers[layer], params[f"weight {layer}"] * source.layers[layer])
    # Its problems forgotten, it may be evaluated on them: by another way to the same numbers.
    SteeringVectors(winner.layers).save(tmp_path / "forgetful.safetensors")
    alone = evaluate(
        replace(
            final_evaluation(small),
            steering_vectors_path=tmp_path / "forgetful.safetensors",
            output_path=tmp_path / "r.json",
            split="dev",
            eval_size=16,
        )
    )
    assert alone["base_with_steering"]["1.0"]["pass_at_1"] == found["best"]["score"]
    assert alone["base_model"]["pass_at_1"] == found["baseline"]["score"]


def test_the_winner_knows_what_it_was_chosen_from_and_on(whole):
    small = whole["tpe"]
    metadata = SteeringVectors.load(small.best_path).metadata
    dev = load_problems(small.problems, "dev", 16, small.seed)
    assert set(metadata[SEEN].split()) == {*fingerprints(dev).split(), *SEEN_BEFORE.split()}
    assert metadata["method"] == "search over mean_difference"
    assert metadata["tokens"] == "completion"
    assert metadata["weights"].startswith("0: ")
    assert metadata["base_model"] == small.base_model_name
    assert metadata["architecture"].startswith("qwen2, 2 layers")
    with pytest.raises(InputError, match="were used to make or choose it"):
        evaluate(replace(final_evaluation(small), split="dev", eval_size=16))


def test_another_seed_makes_other_trials_and_one_rung_judges_all_on_all(small, whole):
    other = run(replace(small, seed=6, trials=2, rungs=1))
    assert [trial["params"] for trial in other["trials"]] != [trial["params"] for trial in stored(whole["tpe"])[:2]]
    assert {(trial["state"], trial["problems"]) for trial in other["trials"]} == {("complete", 16)}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_trials_gather_where_the_score_is_high(sampler):
    study = new_study()
    chosen = []
    for _ in range(16):
        trial = ask(study, sampler, 3, None)
        chosen.append(trial.suggest_float("weight", 0, 2))
        tell(trial, sampler, -((chosen[-1] - 1.3) ** 2), stopped=False)
    late = sorted(abs(weight - 1.3) for weight in chosen[-6:])
    early = sorted(abs(weight - 1.3) for weight in chosen[:6])
    assert late[2] < 0.5 * early[2]
    assert late[0] < 0.1


def test_the_lower_half_is_stopped_at_every_rung():
    study = new_study()

    def climbs(score: float) -> int:
        trial = ask(study, "tpe", 0, None)
        for rung in range(3):
            trial.report(score, 2**rung)
            if rung < 2 and trial.should_prune():
                tell(trial, "tpe", score, stopped=True)
                return rung
        tell(trial, "tpe", score, stopped=False)
        return 3

    assert [climbs(score) for score in (50.0, 40.0, 60.0, 55.0, 20.0, 70.0)] == [3, 0, 3, 1, 0, 3]


# --- kills and second thoughts ---


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_killed_search_goes_on_to_the_same_trials(small, whole, sampler, share):
    expected = stored(whole[sampler])
    complete = completions_path(whole[sampler].trials_path).read_bytes()
    lines = complete.splitlines(keepends=True)
    cut = 1 + int(share * (len(lines) - 1))
    # As a kill leaves them: a journal cut in the middle of a line, and the trials that were through by then.
    killed = replace(small, sampler=sampler, resume=True)
    killed.output_dir.mkdir()
    completions_path(killed.trials_path).write_bytes(b"".join(lines[:cut]) + lines[cut][:-20])
    arms = [json.loads(line)["arm"] for line in lines[1:cut]]
    through = [trial for trial in expected if sum(a.startswith(f"trial {trial['number']}:") for a in arms) == trial["problems"]]
    if through:
        content = json.loads(whole[sampler].search_path.read_text())
        killed.search_path.write_text(json.dumps({**content, "trials": through}))
    assert run(killed)["trials"] == stored(killed) == expected
    assert completions_path(killed.trials_path).read_bytes() == complete
    best, uninterrupted = (SteeringVectors.load(config.best_path) for config in (killed, whole[sampler]))
    assert all(torch.equal(best.layers[layer], uninterrupted.layers[layer]) for layer in (0, 1))


def test_a_finished_search_is_neither_sampled_nor_chosen_again(whole, no_sampling):
    before = whole["gp"].search_path.read_bytes()
    run(replace(whole["gp"], resume=True))
    assert whole["gp"].search_path.read_bytes() == before


def test_a_longer_search_begins_with_the_shorter_one(small, whole):
    run(replace(small, trials=5))
    assert run(replace(small, resume=True))["trials"] == stored(whole["tpe"])


def test_no_trial_is_added_once_test_problems_were_seen(small):
    config = replace(small, trials=3)
    run(config)
    evaluate(final_evaluation(config))
    run(replace(config, resume=True))
    with pytest.raises(InputError, match="--trials 4: the winner of 3 trials was evaluated on test problems already"):
        run(replace(config, trials=4, resume=True))


def test_a_folder_with_a_search_is_not_touched_unasked(small):
    config = replace(small, trials=2)
    first = run(config)
    with pytest.raises(InputError, match="holds another search; name another --output_dir, pass --resume"):
        run(config)
    with pytest.raises(InputError, match=r"other settings \(dev_problems, groups, seed\)"):
        run(replace(config, resume=True, groups=1, seed=6))
    assert stored(config) == first["trials"]
    other = run(replace(config, overwrite=True, seed=6))
    assert stored(config) == other["trials"] != first["trials"]
    with pytest.raises(InputError, match="--overwrite would delete --vectors"):
        run(replace(config, overwrite=True, vectors=(config.best_path,)))
    config.search_path.write_text("[]")
    with pytest.raises(InputError, match="is no file of a search"):
        run(replace(config, resume=True, seed=6))


def test_vectors_made_on_test_problems_are_refused_before_anything_is_sampled(small, tmp_path):
    test = load_problems(small.problems, "test", 8, small.seed)
    SteeringVectors(some_vectors().layers, {SEEN: fingerprints(test[:1])}).save(tmp_path / "cheat.safetensors")
    with pytest.raises(InputError, match="vectors cheat: 1 of the problems to report on"):
        run(replace(small, vectors=(tmp_path / "cheat.safetensors",)))
    assert list(small.output_dir.iterdir()) == []


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'steerlift\[search\]'"):
        check_optuna()


# --- the space and the options ---


def vectors_of(*layers: int) -> SteeringVectors:
    return SteeringVectors({layer: torch.full((4,), float(layer + 1)) for layer in layers})


def test_weights_belong_to_groups_and_layers_to_a_range():
    space = make_space(SearchConfig(groups=3, choose_layers=True), {"a": vectors_of(*range(7))}, 7)
    assert space.groups == ((0, 1), (2, 3, 4), (5, 6))
    params = {"weight 0-1": 0.5, "weight 2-4": 2.0, "weight 5-6": 0.0, "layer_from": 5, "layer_to": 1}
    assert space.weights(params) == {1: 0.5, 2: 2.0, 3: 2.0, 4: 2.0, 5: 0.0}
    assert {layer: v[0].item() for layer, v in space.vectors(params).layers.items()} == {1: 1, 2: 6, 3: 8, 4: 10, 5: 0}


def test_layers_in_no_group_and_layers_without_a_vector_are_left_out():
    candidates = {"all": vectors_of(*range(6)), "few": vectors_of(0, 5)}
    space = make_space(SearchConfig(layer_groups="0-2, 4"), candidates, 6)
    params = {"vectors": "few", "weight 0-2": 1.5, "weight 4": 1.0}
    assert list(space.vectors(params).layers) == [0]
    assert list(space.vectors({**params, "vectors": "all"}).layers) == [0, 1, 2, 4]
    one_weight = make_space(SearchConfig(), {"few": candidates["few"]}, 6)
    assert one_weight.weight_names() == ["weight"]
    assert one_weight.weights({"weight": 2.0}) == {0: 2.0, 5: 2.0}


@pytest.mark.parametrize(
    ("options", "layers", "message"),
    [
        ({"groups": 3}, (0, 1), "--groups 3: the vectors have 2 layers"),
        ({"layer_groups": "0-9"}, (0, 1), "--layer_groups 0-9: got layer 6, the model has 0 to 5"),
        ({"layer_groups": "2-3"}, (0, 1), "vectors a have layers 0-1, none of --layer_groups 2-3"),
        ({"choose_layers": True}, (0, 2), "expected vectors for every layer from 0 to 2"),
        ({"choose_layers": True, "layer_groups": "0,2"}, (0, 1, 2), "expected vectors for every layer from 0 to 2"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(options, layers, message):
    with pytest.raises(InputError, match=message):
        make_space(SearchConfig(**options), {"a": vectors_of(*layers)}, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_groups": "3-1"}, "--layer_groups 3-1: got '3-1'"),
        ({"layer_groups": "0-2,x"}, "got 'x'; expected runs of layers"),
        ({"layer_groups": "0-2,2-4"}, "a layer is named twice"),
        ({"layer_groups": "0-2", "groups": 2}, "give one of them"),
        ({"weight_range": (1.0, 1.0)}, "--weight_range 1.0 1.0"),
        ({"rungs": 4, "dev_size": 7}, "--rungs 4 with 7 development problems: expected at least 8"),
        ({"pass_at_k": 5}, "--pass_at_k 5 with 4 completions"),
        ({"trials": 0}, "--trials 0: expected at least 1"),
        ({"methods": ()}, "nothing to choose among"),
        ({"vectors": (Path("v"), Path("v"))}, "expected each file once"),
        ({"resume": True, "overwrite": True}, "give one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SearchConfig(**options)


def test_groups_and_rungs():
    assert rung_sizes(3, 100) == [25, 50, 100]
    assert rung_sizes(1, 7) == [7]
    space = SearchSpace({"a": vectors_of(0)}, ((0,),), (0.0, 2.0), choose_layers=False)
    assert space.candidate({"weight": 1.0}) == "a"


# --- the command ---


@pytest.mark.e2e
def test_the_command_survives_a_kill_and_ends_with_one_test_evaluation(prepared, problems, tmp_path):
    options = {
        "base_model_name": prepared / "base", "finetuned_checkpoint": prepared / "finetuned", "problems": problems,
        "train_size": 8, "trials": 10, "dev_size": 16, "eval_size": 8, "num_completions_eval": 2, "temperature": 1.0,
        "max_completion_length": 12, "seed": 5, "sampler": "gp", "groups": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "steerlift", "search", "--tokens", "completion", "last"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]

    def start(folder: str, *flags: str) -> subprocess.Popen[str]:
        parts = [*command, "--output_dir", folder, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(parts, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, **pipes)

    whole = start("whole")
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    assert all(word in out for word in ("dev pass@1 %", "10 trials:", "gap recovered", "search_parallel.png"))
    killed = start("killed")
    journal = completions_path(tmp_path / "killed" / "trials.json")
    while killed.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 50):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    resumed = start("killed", "--resume")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert "extracting" not in err
    first, second = (json.loads((tmp_path / name / "search.json").read_text()) for name in ("whole", "killed"))
    assert second["trials"] == first["trials"]
    assert (
        journal.read_text().splitlines()[1:]
        == (completions_path(tmp_path / "whole" / "trials.json").read_text().splitlines()[1:])
    )
    assert (tmp_path / "killed" / "search_slices.png").read_bytes() == (tmp_path / "whole" / "search_slices.png").read_bytes()
    results = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert list(results["base_with_steering"]) == ["1.0"]
    assert results["base_model"]["num_eval_problems"] == 8
    again = start("killed")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 2
    assert err.startswith("error: killed holds another search;")
    unknown = start("new", "--methods", "magic")
    _, err = unknown.communicate(timeout=60)
    assert unknown.returncode == 2
    assert err.startswith("error: --methods magic is unknown; expected mean_difference, increments")
