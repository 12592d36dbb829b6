"""The tables in the docs are those of the summaries that are kept, and what is kept is small."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steerlift.records.errors import InputError

REPOSITORY = Path(__file__).parents[2]
MOST_BYTES = 5e6


def test_the_tables_in_the_docs_are_those_of_the_summaries(recipe):
    tables = recipe("tables")
    made = tables.tables(tables.RESULTS)
    assert list(made) == [tables.DOCS, tables.README]
    for document, places in made.items():
        assert tables.filled(document, places) == document.read_text(encoding="utf-8"), "run: python recipes/tables.py"


def test_tables_without_a_place_in_the_docs_are_told(recipe):
    tables = recipe("tables")
    made = tables.tables(tables.RESULTS)[tables.DOCS]
    with pytest.raises(InputError, match=r"places for tables of overview, .*; there are tables of .*, llama-moon"):
        tables.filled(tables.DOCS, {**made, "llama-moon": "| |"})


def test_another_score_in_a_summary_is_another_table(recipe, tmp_path):
    tables = recipe("tables")
    copy = shutil.copytree(tables.RESULTS, tmp_path / "results")
    path = next(copy.glob("smollm2-sums-0/summary.json"))
    summary = json.loads(path.read_text())
    summary["evaluations"]["results"]["base"]["pass_at_1"] += 1
    path.write_text(json.dumps(summary))
    for document, places in tables.tables(copy).items():
        assert places != tables.tables(tables.RESULTS)[document]


def test_a_mean_of_some_of_the_seeds_says_of_how_many(recipe, tmp_path):
    tables = recipe("tables")
    arm = {"pass_at_1": 50.0, "ci95": [40.0, 60.0]}
    table = next(tables._tables_of_seeds({"0": {"all": arm, "two": arm}, "1": {"all": arm, "two": arm}, "2": {"all": arm}}))
    means = [line.split(" | ")[-1] for line in table.splitlines()[2:]]
    assert means == ["50.0 |", "50.0 (of 2) |"]


@pytest.mark.parametrize("finetuned", [True, None])
def test_an_evaluation_that_is_added_is_one_more_row(recipe, tmp_path, finetuned):
    tables = recipe("tables")
    copy = shutil.copytree(tables.RESULTS, tmp_path / "results")
    before = tables.tables(copy)[tables.DOCS]["smollm2-sums"]
    arm = {"pass_at_1": 50.0, "ci95": [40.0, 60.0], "format_rate": 90.0}
    steered = {"1.0": {**arm, "gap_recovered": None, "difference_from_base": 2.0, "difference_ci95": [1.0, 3.0]}}
    added = tmp_path / "on-the-moon.json"
    added.write_text(json.dumps({"base_model": arm, "finetuned_model": finetuned and arm, "base_with_steering": steered}))
    recipe("keep").add(added, copy / "smollm2-sums-0")
    rows = set(tables.tables(copy)[tables.DOCS]["smollm2-sums"].splitlines()) - set(before.splitlines())
    score = "50.0 (40.0 to 60.0)"
    assert rows == {f"| on the moon | {score} | {score if finetuned else ''} | {score} | 2.0 (1.0 to 3.0) |  |"}


def test_what_is_kept_is_small_and_holds_neither_weights_nor_paths_of_a_machine(recipe):
    files = [path for path in recipe("keep").RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png", ".md", ".html"}
    for path in files:
        if path.suffix in (".json", ".safetensors", ".html"):
            content = path.read_bytes()
            assert not any(root in content for root in (b"/home/", b"/root/", b"/tmp/", b"/work/")), path
            assert b'"text"' not in content, path


def test_a_run_without_learned_vectors_keeps_its_means_and_stands_in_the_first_table_alone(recipe, tmp_path):
    run, results = tmp_path / "qwen-math-7", tmp_path / "results"
    arm = {"pass_at_1": 50.0, "ci95": [40.0, 60.0], "num_eval_problems": 9, "lenient_pass_at_1": 51.0}
    arm |= {"format_rate": 90.0, "truncated_rate": 1.0}
    both = {"base_model": arm, "finetuned_model": arm, "provenance": {}}
    mean = {**arm, "pass_at_1": 55.0, "gap_recovered": 70.0, "gap_recovered_ci95": [60.0, 80.0]}
    files = {
        "answers.json": {**both, "base_with_steering": {}},
        "results-completion-mean.json": {**both, "base_with_steering": {"1.0": mean}},
        "chosen/choose.json": {"counts": {}, "completions_per_problem": 4, "histogram": {}, "settings": {}},
        "grpo/eval_summary.json": {},
        "grpo/config.json": {},
        "grpo/metrics.jsonl": {"update_seconds": 2, "sampling_seconds": 1, "tokens_per_second": 8, "no_signal_rate": 0},
    }
    for name, content in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(content))
    (run / "stages").write_text("choose 3600 1800 1800\n")
    for name, size in (("completion-mean.safetensors", 7000), ("grpo/checkpoint_step_4/model.safetensors", 3_000_000)):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"0" * size)
    recipe("keep").keep(run, results / run.name)
    assert {path.name for path in (results / run.name).iterdir()} == {"summary.json", "completion-mean.safetensors"}
    shutil.copytree(recipe("tables").RESULTS / "qwen-math-0_float32", results / "qwen-math-0_float32")
    made = recipe("tables").tables(results)
    row = "| 7 | 50.0 (40.0 to 60.0) | 50.0 (40.0 to 60.0) |  |  |  | 3 MB | 7 kB | 1.0 |"
    assert made[recipe("tables").DOCS]["overview"].endswith(row)
    row = "| completion mean, weight chosen on dev problems | 55.0 (40.0 to 60.0) | 70 (60 to 80) | 51.0 | 90.0 | 1.0 |"
    assert row in made[recipe("tables").DOCS]["qwen-math"]
    assert "200 problems, 1 run |" in made[recipe("tables").README]["tasks"]


def test_nothing_to_keep_is_said_in_one_line_and_ends_with_2(tmp_path):
    def told(*arguments):
        command = [sys.executable, "recipes/keep.py", *map(str, arguments)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        return ended.stderr

    assert told(tmp_path).startswith(
        f"error: {tmp_path} has no vectors: expected *.safetensors or distill/vectors.safetensors or"
    )
    missing = tmp_path / "smollm2-sums-0" / "none.json"
    assert told(missing).startswith(f"error: {missing}: no such file")
    assert told().startswith("error: nothing to keep: expected ")
