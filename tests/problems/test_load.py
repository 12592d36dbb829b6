import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from steerlift.problems.load import LONGEST_SOLUTION, load_problems, load_worked_examples
from steerlift.problems.prompt import clean_solution, worked_example
from steerlift.problems.splits import near_key, text_key
from steerlift.records.errors import InputError, MissingInputError

DATA = Path(__file__).parent.parent / "data"
SPLITS = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    monkeypatch.delenv("STEERLIFT_DATA", raising=False)


@pytest.fixture
def write(tmp_path):
    def write(name, texts):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in texts))
        return path

    return write


def texts(problems):
    return [problem.problem for problem in problems]


def ids(problems):
    return {problem.unique_id for problem in problems}


def splits_of(source, data_dir=None):
    return {split: load_problems(source, split, data_dir=data_dir) for split in SPLITS}


def assert_apart(splits):
    for one, other in combinations(SPLITS, 2):
        for key in (text_key, near_key):
            assert not {key(text) for text in texts(splits[one])} & {key(text) for text in texts(splits[other])}


def test_math_leaves_out_repeats_and_near_copies_of_test_and_says_so(capsys):
    train = load_problems("math", "train", data_dir=DATA)
    assert capsys.readouterr().err == (
        "math: 3 of 120 records left out (2 with another's text, 1 with the text, or nearly, of a held-out problem)\n"
    )
    splits = splits_of("math", DATA)
    assert {split: len(problems) for split, problems in splits.items()} == {"train": 106, "dev": 11, "test": 40}
    assert_apart(splits)
    pool = ids(train) | ids(splits["dev"])
    # Equal but for a space; only the first of the two stays.
    assert len(pool & {"train/algebra/24377.json", "train/algebra/2463.json"}) == 1
    # z^4 - z^2 + 1 against z^4 + z^2 + 1: other answers, but too close to be called unseen.
    assert "train/precalculus/474.json" not in pool
    assert "test/precalculus/285.json" in ids(splits["test"])


def test_math_keeps_its_null_levels_and_filled_in_answers():
    splits = splits_of("math", DATA)
    by_id = {problem.unique_id: problem for problem in splits["train"] + splits["dev"]}
    assert by_id["train/geometry/377.json"].level is None
    assert by_id["train/geometry/377.json"].problem_type == "Geometry_level_None"
    assert by_id["train/number_theory/7115.json"].answer == "0"


def test_gsm8k():
    splits = splits_of("gsm8k", DATA)
    assert {split: len(problems) for split, problems in splits.items()} == {"train": 27, "dev": 3, "test": 20}
    assert_apart(splits)
    assert {problem.subject for problem in splits["train"]} == {"gsm8k"}


def test_the_four_ways_to_name_local_data_agree(monkeypatch):
    expected = load_problems("math", "dev", data_dir=DATA)
    assert load_problems("math", "dev", data_dir=str(DATA / "math")) == expected
    assert load_problems(str(DATA / "math"), "dev") == expected
    monkeypatch.setenv("STEERLIFT_DATA", str(DATA))
    assert load_problems("math", "dev") == expected
    monkeypatch.setenv("STEERLIFT_DATA", "/nowhere")
    assert load_problems("math", "dev", data_dir=DATA) == expected


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("source", ["math", "gsm8k", "embedded"])
def test_a_seed_chooses_and_orders_but_never_moves_a_problem_to_another_split(source, split):
    data_dir = None if source == "embedded" else DATA
    whole = load_problems(source, split, data_dir=data_dir)
    other = load_problems(source, split, seed=1, data_dir=data_dir)
    assert texts(other) != texts(whole)
    assert sorted(texts(other)) == sorted(texts(whole))
    few = load_problems(source, split, size=3, seed=1, data_dir=data_dir)
    assert few == other[:3]
    assert load_problems(source, split, size=12_000, seed=1, data_dir=data_dir) == other


def test_another_process_gives_the_same_order():
    code = (
        "import sys; from steerlift.problems.load import load_problems\n"
        f"print([p.unique_id for s in ('math', 'gsm8k') for p in load_problems(s, 'train', 5, 7, {str(DATA)!r})])\n"
        "print([p.unique_id for p in load_problems('embedded', 'train', 5, 7)])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "99"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = [p.unique_id for source in ("math", "gsm8k") for p in load_problems(source, "train", 5, 7, DATA)]
    embedded = [p.unique_id for p in load_problems("embedded", "train", 5, 7)]
    assert run.stdout == f"{here}\n{embedded}\n[]\n"


def test_the_order_is_pinned():
    # Written down once: a change here makes every published number of a run incomparable.
    assert [p.unique_id for p in load_problems("math", "test", 3, 0, DATA)] == [
        "test/geometry/538.json",
        "test/precalculus/625.json",
        "test/algebra/668.json",
    ]
    assert [p.unique_id for p in load_problems("embedded", "test", 3, 0)] == [
        "embedded/Prealgebra 11 3 11",
        "embedded/Prealgebra 12 7 8",
        "embedded/Counting & Probability 10 7 8",
    ]


def test_text_of_test_never_trains_whatever_the_spaces(write, tmp_path, capsys):
    write("train.jsonl", [f"train {number}" for number in range(20)] + ["shared   text", "train 3 "])
    write("test.jsonl", ["shared text", "other", "shared\ntext"])
    splits = splits_of(str(tmp_path))
    assert texts(splits["test"]) in (["shared text", "other"], ["other", "shared text"])
    assert {split: len(problems) for split, problems in splits.items()} == {"train": 18, "dev": 2, "test": 2}
    assert_apart(splits)
    assert capsys.readouterr().err.splitlines()[0] == (
        f"{tmp_path}: 2 of 22 records left out (1 with another's text, 1 with the text, or nearly, of a held-out problem)"
    )


def test_a_dev_file_is_used_and_kept_apart(write, tmp_path):
    write("train.jsonl", [f"t{number}" for number in range(20)] + ["d1", "e1"])
    write("dev.jsonl", ["d1", "d2", "e1"])
    write("test.jsonl", ["e1", "e2"])
    splits = splits_of(str(tmp_path))
    assert {split: sorted(texts(problems)) for split, problems in splits.items()} == {
        "train": sorted(f"t{number}" for number in range(20)),
        "dev": ["d1", "d2"],
        "test": ["e1", "e2"],
    }


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
@pytest.mark.parametrize(("count", "shares"), [(3, (1, 1, 1)), (10, (7, 1, 2)), (100, (70, 10, 20))])
def test_a_single_file_is_divided(write, tmp_path, name, count, shares, capsys):
    path = write("mine.jsonl", [f"problem {number}" for number in range(count)] * 2)
    if name.endswith(".gz"):
        zipped = tmp_path / name
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        path = zipped
    splits = splits_of(str(path))
    assert tuple(len(splits[split]) for split in SPLITS) == shares
    assert_apart(splits)
    assert capsys.readouterr().err == 3 * (
        f"{path}: {count} of {2 * count} records left out"
        f" ({count} with another's text, 0 with the text, or nearly, of a held-out problem)\n"
    )


def test_a_source_is_found_in_the_data_folder(write, tmp_path, monkeypatch):
    write("aime/train.jsonl", "abc")
    write("aime/test.jsonl", "xy")
    monkeypatch.setenv("STEERLIFT_DATA", str(tmp_path))
    assert sorted(texts(load_problems("aime", "test"))) == ["x", "y"]
    monkeypatch.delenv("STEERLIFT_DATA")
    assert load_problems("aime", "train", data_dir=tmp_path) == load_problems(str(tmp_path / "aime"), "train")
    assert len(load_problems("aime/train.jsonl", "dev", data_dir=tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: got 0; expected at least 1, or none for every problem of the split"),
        ({"size": -4, "source": "embedded"}, "size: got -4; expected at least 1, or none for every problem of the split"),
        ({"split": "validation"}, "split: got 'validation'; expected one of train, dev, test"),
        (
            {"source": "embedded", "data_dir": "/data"},
            "data_dir: got /data with the embedded problems, which need no data; leave one out",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        load_problems(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("source", "data_dir", "message"),
    [
        ("math", "{}/none", "data_dir: got {}/none, which is not a folder; expected one with math/train.jsonl.gz"),
        (
            "math",
            "{}",
            "{}: no math problems; expected math/train.jsonl.gz and math/test.jsonl.gz, or train and test files, in it;"
            " name another folder",
        ),
        (
            "{}/none.jsonl",
            None,
            "source: got '{}/none.jsonl', and there is no {}/none.jsonl; expected math, gsm8k, embedded, or an existing"
            " .jsonl or .jsonl.gz file or folder of such files",
        ),
        (
            "{}",
            None,
            "{}: no test file; expected test.jsonl or test.jsonl.gz beside its counterpart; add it, or name a single"
            " file, which is divided into splits",
        ),
    ],
)
def test_missing_data(tmp_path, source, data_dir, message):
    with pytest.raises(MissingInputError) as error:
        load_problems(source.format(tmp_path), data_dir=data_dir and data_dir.format(tmp_path))
    assert str(error.value) == message.replace("{}", str(tmp_path))


def test_a_wrong_environment_variable_is_named(monkeypatch):
    monkeypatch.setenv("STEERLIFT_DATA", "/nowhere")
    with pytest.raises(MissingInputError) as error:
        load_problems("gsm8k")
    assert str(error.value) == ("$STEERLIFT_DATA: got /nowhere, which is not a folder; expected one with gsm8k/train.jsonl.gz")


def test_two_files_of_one_split(tmp_path, write):
    shutil.copytree(DATA / "math", tmp_path, dirs_exist_ok=True)
    write("test.jsonl", "a")
    with pytest.raises(InputError) as error:
        load_problems(str(tmp_path), "test")
    assert str(error.value) == (f"{tmp_path}: got both test.jsonl and test.jsonl.gz; expected one of them; remove the other")


def test_too_few_problems(write, tmp_path):
    path = write("two.jsonl", ["a", "b", "a "])
    with pytest.raises(InputError) as error:
        load_problems(str(path))
    assert str(error.value) == (f"{path}: got 2 different problem(s); expected at least 3 for train, dev and test; add some")
    write("folder/train.jsonl", "ab")
    write("folder/test.jsonl", "b")
    with pytest.raises(InputError) as error:
        load_problems(str(tmp_path / "folder"))
    assert str(error.value) == (
        f"{tmp_path}/folder: got 1 training problem(s) that are not in test; expected at least 2, as dev is carved out"
        " of train; add some"
    )


@pytest.mark.parametrize("source", ["math", "gsm8k", "embedded"])
def test_worked_examples_are_the_first_of_the_training_sample_that_are_short(source):
    data_dir = None if source == "embedded" else DATA
    train = load_problems(source, "train", seed=1, data_dir=data_dir)
    short = [problem for problem in train if len(clean_solution(problem)) <= LONGEST_SOLUTION]
    assert load_worked_examples(source, 3, 1, data_dir) == short[:3]
    assert load_worked_examples(source, 5, 1, data_dir) == short[:5]
    assert load_worked_examples(source, 3, 2, data_dir) != short[:3]
    for example in short[:5]:
        shown = worked_example(example)
        assert shown.startswith("<think>")
        assert shown.endswith(f"</think><answer>{example.answer}</answer>")
        assert not any(mark in shown for mark in ("<<", ">>", "####"))
        # MATH's own mark of the answer is part of its reasoning.
        assert ("\\boxed" in shown) == (source == "math")


def test_training_goes_on_without_the_worked_examples_and_their_near_copies(tmp_path):
    long = "How many apples does Ann have who buys {} apples, {}?"
    rows = [
        {"problem": long.format(n, word), "answer": "1", "solution": "1"} for n in range(9) for word in ("eats one", "eats-one")
    ]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in (rows if name == "train" else rows[:2]))
        )
    (example,) = load_worked_examples(str(tmp_path), 1)
    whole = load_problems(str(tmp_path))
    rest = load_problems(str(tmp_path), held_out=[example])
    assert [problem for problem in whole if near_key(problem.problem) != near_key(example.problem)] == rest
    assert len(rest) == len(whole) - 2
    # As many as were asked for, the same in the same order.
    assert load_problems(str(tmp_path), size=5, held_out=[example]) == rest[:5]
    with pytest.raises(InputError) as error:
        load_problems(str(tmp_path), held_out=whole)
    assert str(error.value) == (
        f"held_out: got {len(whole)} problem(s) that leave no train problem of {tmp_path}; expected some to be left; hold out"
        " fewer (a lower few_shot)"
    )


def test_the_embedded_problems_go_on_without_their_worked_examples():
    examples = load_worked_examples("embedded", 2, 5)
    assert load_problems("embedded", "train", 10, 5, held_out=examples) == load_problems("embedded", "train", 12, 5)[2:]


def test_no_worked_example_asks_for_no_data():
    assert load_worked_examples("nowhere") == []


def test_too_few_worked_examples(tmp_path):
    rows = [{"problem": f"p{n}", "answer": "1", "solution": "x" * length} for n, length in enumerate([0, 400, 401] * 10)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usable = sum(len(problem.solution) == 400 for problem in load_problems(str(path)))
    assert len(load_worked_examples(str(path), usable)) == usable > 1
    with pytest.raises(InputError) as error:
        load_worked_examples(str(path), usable + 1)
    assert str(error.value) == (
        f"few_shot: got {usable} training problem(s) of {path} with a solution of at most 400 characters; expected at least"
        f" {usable + 1}; ask for fewer or add solutions"
    )
    with pytest.raises(InputError, match="few_shot: got -1; expected at least 0"):
        load_worked_examples(str(path), -1)


@pytest.fixture
def with_examples(write, tmp_path):
    """A folder whose `examples` file repeats a training and a test problem, and holds one without a solution."""
    folder = tmp_path / "folder"
    write("folder/train.jsonl", [f"train {number}" for number in range(20)])
    write("folder/test.jsonl", ["test 1", "test 2"])
    rows = [
        {"problem": "shown 2", "answer": "2", "solution": "x" * (LONGEST_SOLUTION + 1)},
        {"problem": "test 1", "answer": "1", "solution": "x"},
        {"problem": "not shown", "answer": "1"},
        {"problem": "train 3", "answer": "1", "solution": "x"},
        {"problem": "shown 1", "answer": "1", "solution": "x"},
    ]
    return folder, "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["examples.jsonl", "examples.jsonl.gz"])
def test_worked_examples_of_a_file_are_its_first_whatever_the_seed(with_examples, name):
    folder, content = with_examples
    before = splits_of(str(folder))
    (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    # A test problem is no example, however the file came about.
    expected = ["shown 2", "train 3", "shown 1"]
    for seed in (0, 1):
        assert texts(load_worked_examples(str(folder), 3, seed)) == expected
        assert texts(load_worked_examples(folder.name, 2, seed, folder.parent)) == expected[:2]
    with pytest.raises(InputError) as error:
        load_worked_examples(str(folder), 4)
    assert str(error.value) == (
        f"few_shot: got 3 problem(s) with a solution in {folder / name}; expected at least 4; ask for fewer or add solutions"
    )
    # They are in no split, also where no example is asked for.
    after = splits_of(str(folder))
    assert after["test"] == before["test"]
    everything = [set(texts(splits["train"] + splits["dev"])) for splits in (before, after)]
    assert everything[1] == everything[0] - {"train 3"}
    assert_apart(after)
