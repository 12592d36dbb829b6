import pytest
from small_pipeline import graded_problem

from bench import scaling
from bench.measure import DifferentResultsError
from steerlift.records.runs import Journal


def test_scaling_compares_work_per_second_round_by_round():
    def laps(*seconds):
        return [dict.fromkeys(scaling.PHASES, second) for second in seconds]

    sizes = scaling.Sizes(problems=16, rounds=2)
    one, two = [laps(1.0, 1.0, 9.0), laps(2.0)], [laps(0.5, 0.5, 7.0), laps(1.25)]
    assert scaling.cells(scaling.ONE, sizes, one, one) == [
        *("one process", "1", "16"),
        *["1.50 (1.00 – 9.00)"] * 3,
        *("4.50 (3.00 – 27.0)", "-", "-", "4"),
    ]
    assert scaling.cells(scaling.STRONG, sizes, two, one)[-3:] == ["**1.80x (1.60 – 2.00)**", "90.0 % (80.0 – 100)", "4"]
    assert scaling.cells(scaling.WEAK, sizes, one, one)[-3:] == ["**2.00x (2.00 – 2.00)**", "100 % (100 – 100)", "4"]


def test_runs_that_differ_are_no_scaling(tmp_path):
    for name, ids, norm in (("one", [1, 2], 1.0), ("two", [1, 2], 1.1), ("three", [1, 3], 1.0)):
        Journal(tmp_path / name / "completions.jsonl").append([{"completions": [{"token_ids": ids}]}])
        Journal(tmp_path / name / "metrics.jsonl").append([{"loss": 0.5, "grad_norm": norm}])
    assert scaling.check(tmp_path / "one", tmp_path / "one").startswith("on two processes 1 of 1 completions")
    with pytest.raises(DifferentResultsError, match="loss and gradient norm of the first step"):
        scaling.check(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DifferentResultsError, match="completions, strong scaling: the same in 0 of 1 rows"):
        scaling.check(tmp_path / "one", tmp_path / "three")


def test_every_group_has_signal():
    assert scaling.every_second(graded_problem(0, 4)) == [0.0, 1.0, 0.0, 1.0]
