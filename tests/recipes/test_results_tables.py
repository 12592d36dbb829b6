"""The tables in the docs are those of the summaries that are kept, and what is kept is small."""

import json
import shutil

import pytest

MOST_BYTES = 5e6


def test_the_tables_in_the_docs_are_those_of_the_summaries(recipe):
    results = recipe("results")
    made = results.tables(results.RESULTS)
    assert list(made) == [results.DOCS, results.README]
    for document, tables in made.items():
        assert results.filled(document, tables) == document.read_text(encoding="utf-8"), "run: python recipes/results.py tables"


def test_tables_without_a_place_in_the_docs_are_told(recipe):
    results = recipe("results")
    made = results.tables(results.RESULTS)[results.DOCS]
    with pytest.raises(SystemExit, match=r"places for tables of overview, .*; there are tables of .*, llama-moon"):
        results.filled(results.DOCS, {**made, "llama-moon": "| |"})


def test_another_score_in_a_summary_is_another_table(recipe, tmp_path):
    results = recipe("results")
    copy = shutil.copytree(results.RESULTS, tmp_path / "results")
    path = next(copy.glob("smollm2-sums-0/summary.json"))
    summary = json.loads(path.read_text())
    summary["evaluations"]["results"]["base"]["pass_at_1"] += 1
    path.write_text(json.dumps(summary))
    for document, tables in results.tables(copy).items():
        assert tables != results.tables(results.RESULTS)[document]


def test_an_evaluation_that_is_added_is_one_more_row(recipe, tmp_path):
    results = recipe("results")
    copy = shutil.copytree(results.RESULTS, tmp_path / "results")
    before = results.tables(copy)[results.DOCS]["smollm2-sums"]
    arm = {"pass_at_1": 50.0, "ci95": [40.0, 60.0], "format_rate": 90.0}
    steered = {"1.0": {**arm, "gap_recovered": None}}
    added = tmp_path / "on-the-moon.json"
    added.write_text(json.dumps({"base_model": arm, "finetuned_model": arm, "base_with_steering": steered}))
    results.add(added, copy / "smollm2-sums-0")
    rows = set(results.tables(copy)[results.DOCS]["smollm2-sums"].splitlines()) - set(before.splitlines())
    assert rows == {"| on the moon | 50.0 (40.0 to 60.0) | 50.0 (40.0 to 60.0) | 50.0 (40.0 to 60.0) |  |"}


def test_what_is_kept_is_small_and_holds_neither_weights_nor_paths_of_a_machine(recipe):
    files = [path for path in recipe("results").RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png", ".md", ".html"}
    for path in files:
        if path.suffix in (".json", ".safetensors", ".html"):
            content = path.read_bytes()
            assert not any(root in content for root in (b"/home/", b"/root/", b"/tmp/", b"/work/")), path
            assert b'"text"' not in content, path


def test_a_command_that_is_none_says_what_there_is(recipe):
    with pytest.raises(SystemExit, match=r"keep RUN \.\.\. \| add RESULTS \.\.\. \| tables"):
        recipe("results").main(["publish"])
