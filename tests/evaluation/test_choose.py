"""Choosing training problems: which are asked, which are chosen, what the folder holds, and what is never asked twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated import timeless
from launched import launch
from small_pipeline import ANSWER, TEXTS, tokenizer

from steerlift.evaluation import samplers as samplers_module
from steerlift.evaluation.choose import choose
from steerlift.evaluation.choose_config import ChooseConfig
from steerlift.problems.files import read_problems
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import render_prompt
from steerlift.records.errors import InputError
from steerlift.records.runs import Journal
from steerlift.records.types import GradedProblem
from steerlift.report.tables import print_chosen

FILES = {"train.jsonl", "dev.jsonl", "test.jsonl", "choose.json", "choose.completions.jsonl"}
SPLITS = {"train": TEXTS[:24], "dev": TEXTS[24:32], "test": TEXTS[32:]}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Problems of levels 1 and 2 in turn, of two subjects in turn of two, all with a solution."""
    root = tmp_path_factory.mktemp("source")
    for split, texts in SPLITS.items():
        rows = [
            {"problem": text, "answer": ANSWER, "solution": "7", "level": 1 + place % 2, "subject": "ABBA"[place % 4]}
            for place, text in enumerate(texts)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def config(prepared, source, tmp_path) -> ChooseConfig:
    return ChooseConfig(
        model_name=str(prepared / "base"),
        problems=str(source),
        output_dir=tmp_path / "chosen",
        success=(0.0, 1.0),
        num_completions=4,
        temperature=1.0,
        max_completion_length=12,
        seed=5,
    )


def texts(problems):
    return [problem.problem for problem in problems]


def record(config: ChooseConfig):
    return json.loads((config.output_dir / "choose.json").read_text())


def asked(config: ChooseConfig) -> list[GradedProblem]:
    return [GradedProblem.from_row(row) for row in Journal(config.output_dir / "choose.completions.jsonl").read()[1:]]


def test_without_completions_problems_are_chosen_by_level_alone_and_no_model_is_needed(config, capsys):
    config = replace(config, model_name="nowhere", num_completions=0, levels=(2,), train_size=7, success=(0.5, 0.6))
    chosen = choose(config)
    every = [p for p in load_problems(config.problems, "train", seed=5) if p.level == 2]
    assert read_problems(config.output_dir / "train.jsonl") == every[:7]
    assert chosen.counts == {"answered": 0, "train": 7, "dev": 4, "test": 4, "examples": 0}
    assert {path.name for path in config.output_dir.iterdir()} == FILES - {"choose.completions.jsonl"}
    assert {path.name for path in chosen.paths} == FILES - {"choose.completions.jsonl"}
    print_chosen(chosen.histogram, chosen.chosen, chosen.counts, chosen.paths)
    assert "7 training problems chosen; 4 dev and 4 test" in capsys.readouterr().out


def test_the_folder_is_one_of_problems_that_other_commands_take(config, capsys):
    config = replace(config, success=(0.25, 0.5))
    chosen = choose(config)
    assert f"answering 24 of 24 training problems of {config.problems} 4 times; " in capsys.readouterr().err
    answered = asked(config)
    right = [sum(grade.correct for grade in g.grades) for g in answered]
    # The order is that of the seed; the rate is that of strictly right completions.
    assert texts(g.problem for g in answered) == texts(load_problems(config.problems, "train", seed=5))
    assert any(grade.lenient_correct and not grade.correct for g in answered for grade in g.grades)
    expected = [g.problem for g, count in zip(answered, right, strict=True) if count in (1, 2)]
    assert 0 < len(expected) < 24
    assert read_problems(config.output_dir / "train.jsonl") == expected
    folder = str(config.output_dir)
    assert sorted(texts(load_problems(folder, "train"))) == sorted(texts(expected))
    for split in ("dev", "test"):
        assert load_problems(folder, split, seed=2) == load_problems(config.problems, split, seed=2)
    assert {path.name for path in config.output_dir.iterdir()} == FILES == {path.name for path in chosen.paths}
    assert chosen.histogram == {count: right.count(count) for count in range(5)}
    assert chosen.chosen == {count: right.count(count) if count in (1, 2) else 0 for count in range(5)}
    assert chosen.counts == {"answered": 24, "train": len(expected), "dev": 8, "test": 8, "examples": 0}
    written = record(config)
    assert written["counts"] == chosen.counts
    assert written["histogram"] == {str(count): problems for count, problems in chosen.histogram.items()}
    assert written["success_rates"] == {g.problem.unique_id: count / 4 for g, count in zip(answered, right, strict=True)}
    assert written["settings"]["success"] == [0.25, 0.5]
    assert written["provenance"]["model"] == config.model_name


def test_both_ends_of_success_are_included_and_asking_again_is_free(config, monkeypatch):
    choose(config)
    rates = record(config)["success_rates"]
    assert len(set(rates.values())) >= 3
    monkeypatch.setattr(samplers_module, "load_model", None)
    before = (config.output_dir / "choose.completions.jsonl").read_bytes()
    for low, high in [(0.25, 0.25), (0.25, 0.5), (0.0, 0.0), (0.26, 1.0), (0.0, 0.49)]:
        choose(replace(config, success=(low, high)))
        kept = {problem.unique_id for problem in read_problems(config.output_dir / "train.jsonl")}
        assert kept == {name for name, rate in rates.items() if low <= rate <= high}
        assert record(config)["success_rates"] == rates
    assert (config.output_dir / "choose.completions.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"levels": (2,)}, lambda p: p.level == 2),
        ({"subjects": ("B",)}, lambda p: p.subject == "B"),
        ({"levels": (1, 7), "subjects": ("A", "C")}, lambda p: p.level == 1 and p.subject == "A"),
    ],
)
def test_levels_and_subjects_are_those_of_all_three_splits(config, changes, kept):
    chosen = choose(replace(config, num_completions=1, train_size=5, **changes))
    source = {split: [p for p in load_problems(config.problems, split, seed=5) if kept(p)] for split in SPLITS}
    assert 5 < len(source["train"]) < 24
    assert texts(g.problem for g in asked(config)) == texts(source["train"][:5])
    for split in ("dev", "test"):
        assert read_problems(config.output_dir / f"{split}.jsonl") == source[split]
    assert chosen.counts["answered"] == 5


def test_training_problems_join_a_test_split_that_is_too_small_the_same_for_every_seed(config):
    config = replace(config, num_completions=0)
    source = {split: set(texts(load_problems(config.problems, split))) for split in SPLITS}

    def splits(**changes):
        choose(replace(config, **changes))
        return {split: texts(read_problems(config.output_dir / f"{split}.jsonl")) for split in SPLITS}

    assert set(splits(test_size=8)["test"]) == source["test"]
    enlarged = splits(test_size=13)
    joined = set(enlarged["test"]) - source["test"]
    assert len(enlarged["test"]) == 13
    assert joined < source["train"]
    assert set(enlarged["train"]) == source["train"] - joined
    assert set(enlarged["dev"]) == source["dev"]
    other_seed = splits(test_size=13, seed=6)
    assert set(other_seed["test"]) == set(enlarged["test"])
    assert other_seed["train"] != enlarged["train"]
    assert sorted(other_seed["train"]) == sorted(enlarged["train"])


@pytest.mark.usefixtures("no_sampling")
def test_a_test_split_that_would_leave_nothing_to_train_on_is_refused(config):
    with pytest.raises(InputError, match=r"--test_size 32: got 8 test and 24 training problems .* ask for fewer"):
        choose(replace(config, test_size=32))
    assert not config.output_dir.exists()


@pytest.mark.usefixtures("no_sampling")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"levels": (3, 4)}, "--levels 3 4: no train problem of "),
        ({"subjects": ("C d",)}, "--subjects 'C d': no train problem of "),
        ({"levels": (3,), "subjects": ("A",)}, "--levels 3 --subjects 'A': no train problem of "),
    ],
)
def test_a_level_that_nothing_has_is_told_which_there_are(config, changes, named):
    with pytest.raises(InputError) as raised:
        choose(replace(config, **changes))
    assert str(raised.value).startswith(named)
    assert str(raised.value).endswith("; there are levels 1, 2 and subjects A, B; ask for some of these")
    assert not config.output_dir.exists()


@pytest.mark.usefixtures("no_sampling")
def test_a_split_that_a_level_leaves_empty_is_named(config, source, tmp_path):
    folder = tmp_path / "uneven"
    folder.mkdir()
    for split in SPLITS:
        lines = (source / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[0::2] if split == "dev" else lines))
    with pytest.raises(InputError, match=r"--levels 2: no dev problem of .* is left; there are levels 1 and"):
        choose(replace(config, problems=str(folder), levels=(2,)))


def test_nothing_chosen_says_what_was_seen_and_leaves_what_was_there(config):
    choose(config)
    rates = record(config)["success_rates"].values()
    before = {path.name: path.read_bytes() for path in config.output_dir.iterdir()}
    with pytest.raises(InputError) as raised:
        choose(replace(config, success=(0.3, 0.4)))
    assert str(raised.value) == (
        "--success 0.3 0.4: none of the 24 answered problems is solved as often, success rates go from "
        f"{min(rates):g} to {max(rates):g}; widen --success, take other --levels, or warm the model up "
        "(steerlift train --sft_steps)"
    )
    assert {path.name: path.read_bytes() for path in config.output_dir.iterdir()} == before


@pytest.mark.parametrize("lines", [0, 3])
def test_a_killed_run_goes_on_to_the_same_folder(config, tmp_path, lines):
    whole = replace(config, output_dir=tmp_path / "whole")
    choose(whole)
    kept = (whole.output_dir / "choose.completions.jsonl").read_bytes().splitlines(keepends=True)
    config.output_dir.mkdir()
    (config.output_dir / "choose.completions.jsonl").write_bytes(b"".join(kept[:lines]) + kept[lines][:-20])
    choose(config)
    for name in FILES - {"choose.json"}:
        assert (config.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes(), name
    there = timeless(whole.output_dir / "choose.json").replace(str(whole.output_dir), str(config.output_dir))
    assert timeless(config.output_dir / "choose.json") == there


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "problems, seed"),
        ({"num_completions": 3}, "completions"),
        ({"temperature": 0.5}, "temperature"),
        ({"max_completion_length": 5}, "max_completion_length"),
        ({"levels": (1,)}, "problems"),
        ({"few_shot": 1}, "few_shot, problems"),
    ],
)
def test_other_settings_are_refused_by_name(config, changes, named):
    config = replace(config, num_completions=2)
    choose(config)
    before = {path.name: path.read_bytes() for path in config.output_dir.iterdir()}
    with pytest.raises(InputError, match=rf"other settings \({named}\); name another --output_path or pass --overwrite"):
        choose(replace(config, **changes))
    assert {path.name: path.read_bytes() for path in config.output_dir.iterdir()} == before


def test_more_problems_can_be_asked_later_and_fewer_taken(config, tmp_path, monkeypatch):
    whole = replace(config, output_dir=tmp_path / "whole")
    choose(whole)
    choose(replace(config, train_size=9))
    assert len(asked(config)) == 9
    choose(config)
    for name in FILES - {"choose.json"}:
        assert (config.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes(), name
    monkeypatch.setattr(samplers_module, "load_model", None)
    assert choose(replace(config, train_size=5)).counts["answered"] == 5


def test_overwrite_starts_over_and_leaves_no_worked_examples_behind(config, tmp_path):
    choose(replace(config, few_shot=2))
    assert (config.output_dir / "examples.jsonl").exists()
    choose(replace(config, overwrite=True))
    choose(replace(config, output_dir=tmp_path / "fresh"))
    assert {path.name for path in config.output_dir.iterdir()} == FILES
    for name in FILES - {"choose.json"}:
        assert (config.output_dir / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


def test_worked_examples_are_kept_for_every_seed_and_are_no_other_problem(config):
    config = replace(config, few_shot=2, num_completions=1)
    chosen = choose(config)
    shown = load_worked_examples(config.problems, 2, 5)
    assert [g.prompt for g in asked(config)] == [
        render_prompt(tokenizer(), g.problem.problem, few_shot=shown) for g in asked(config)
    ]
    folder = str(config.output_dir)
    assert read_problems(config.output_dir / "examples.jsonl") == shown
    assert chosen.counts["examples"] == 2
    assert [load_worked_examples(folder, 2, seed) for seed in (0, 1, 5)] == [shown] * 3
    for split in SPLITS:
        assert not set(texts(shown)) & set(texts(load_problems(folder, split))), split


def test_worked_examples_of_a_file_are_held_out_of_dev_as_well(config, source, tmp_path):
    # The dev split is carved out of train, and this example would be in it.
    folder = tmp_path / "carved"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_bytes((source / f"{split}.jsonl").read_bytes())
    (in_dev, *_) = load_problems(str(folder), "dev")
    line = next(line for line in (folder / "train.jsonl").read_text().splitlines() if in_dev.problem in line)
    (folder / "examples.jsonl").write_text(line + "\n")
    choose(replace(config, problems=str(folder), few_shot=1, num_completions=1))
    assert texts(read_problems(config.output_dir / "examples.jsonl")) == [in_dev.problem]
    assert in_dev.problem not in texts(read_problems(config.output_dir / "dev.jsonl"))
    assert in_dev.problem not in texts(g.problem for g in asked(config))


def test_greedy_is_one_completion_of_each_problem(config):
    chosen = choose(replace(config, temperature=0.0))
    assert {len(g.completions) for g in asked(config)} == {1}
    assert list(chosen.histogram) == [0, 1]
    assert record(config)["completions_per_problem"] == 1


@pytest.mark.usefixtures("no_sampling")
def test_problems_of_others_are_never_overwritten(config, source, tmp_path):
    mine = tmp_path / "chosen"
    mine.mkdir()
    (mine / "test.jsonl.gz").write_bytes(b"mine")
    with pytest.raises(
        InputError, match=r"holds test\.jsonl\.gz, which `steerlift choose` has not written; name another folder"
    ):
        choose(replace(config, overwrite=True))
    for problems in (source, source / "train.jsonl"):
        with pytest.raises(InputError, match=r"is where --problems .* are read; name another folder"):
            choose(replace(config, problems=str(problems), output_dir=source, overwrite=True))
    assert [path.name for path in mine.iterdir()] == ["test.jsonl.gz"]
    assert {path.name for path in source.iterdir()} == {f"{split}.jsonl" for split in SPLITS}


@pytest.mark.usefixtures("no_sampling")
def test_a_model_that_is_not_there_leaves_no_folder(config):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        choose(replace(config, model_name="./absent"))
    assert not config.output_dir.exists()


def test_problems_without_an_id_of_their_own_go_by_their_text(config, tmp_path):
    folder = tmp_path / "ids"
    folder.mkdir()
    for split, some in SPLITS.items():
        names = ["", "one", "same", "same", *(f"n{place}" for place in range(4, len(some)))]
        rows = [{"problem": text, "answer": ANSWER, "unique_id": name} for text, name in zip(some, names, strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choose(replace(config, problems=str(folder), num_completions=1))
    train = SPLITS["train"]
    assert set(record(config)["success_rates"]) == {train[0], "one", train[2], train[3], *(f"n{n}" for n in range(4, 24))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"success": (0.5, 0.4)}, "--success 0.5 0.4: expected the lowest share first, then the highest"),
        ({"success": (-0.1, 0.4)}, "--success -0.1: expected at least 0 and at most 1"),
        ({"success": (0.1, 1.4)}, "--success 1.4: expected at least 0 and at most 1"),
        ({"success": (0.1, float("nan"))}, "--success nan"),
        ({"num_completions": -1}, "--num_completions -1: expected at least 0"),
        ({"train_size": 0}, "--train_size 0: expected at least 1"),
        ({"test_size": 0}, "--test_size 0: expected at least 1"),
        ({"temperature": -0.5}, "--temperature -0.5: expected at least 0"),
        ({"few_shot": -1}, "--few_shot -1: expected at least 0"),
        ({"batch_rows": 0}, "--batch_rows 0: expected at least 1"),
    ],
)
def test_values_out_of_bounds(changes, message):
    with pytest.raises(InputError) as raised:
        ChooseConfig(**changes)
    assert str(raised.value).startswith(message)


def test_the_table_has_a_row_for_every_number_of_right_completions(capsys):
    counts = {"answered": 12, "train": 4, "dev": 3, "test": 6, "examples": 0}
    print_chosen({0: 7, 1: 4, 2: 1}, {0: 0, 1: 4, 2: 0}, counts, [Path("a/train.jsonl")])
    out = capsys.readouterr().out.splitlines()
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in out if line[:1] in "┃│"]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["right of 2", "problems", "chosen"],
        ["0", "7", "0"],
        ["1", "4", "4"],
        ["2", "1", "0"],
    ]
    assert out[-2:] == [
        "4 of 12 answered training problems chosen; 3 dev and 6 test problems are kept, however often they are solved",
        "wrote a/train.jsonl",
    ]


@pytest.mark.e2e
def test_the_command_writes_a_folder_that_training_takes(config, tmp_path):
    options = (
        "--model_name", config.model_name, "--problems", config.problems, "--levels", "1", "2", "--success", "0.1", "0.9",
        "--num-completions", "4", "--temperature", "1", "--max_completion_length", "12", "--few_shot", "1", "--seed", "5",
    )  # fmt: skip
    end = launch("-m", "steerlift", "choose", *options, "--output_dir", "mine", cwd=tmp_path)
    assert end.returncode == 0, end.stderr
    assert "right of 4" in end.stdout
    assert end.stdout.splitlines()[-6:] == [
        f"wrote mine/{name}"
        for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "examples.jsonl", "choose.json", "choose.completions.jsonl")
    ]
    small = ("--model_name", config.model_name, "--problems", "mine", "--few_shot", "1", "--max_completion_length", "12")
    one_step = ("--num_train_iters", "1", "--gradient_accumulation_steps", "1", "--num_chains", "2", "--eval_size", "2",
                "--num_completions_eval", "1", "--output_dir", "run")  # fmt: skip
    end = launch("-m", "steerlift", "train", *small, *one_step, cwd=tmp_path)
    assert end.returncode == 0, end.stderr
    refused = launch("-m", "steerlift", "choose", *options, "--success", "0.99", "1", "--output_dir", "mine", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --success 0.99 1.0: none of the ")
